"""A run killed at any moment resumes and ends with the weights of an uninterrupted run."""

import hashlib
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import text_of, tiny_config
from wholegpt.checkpoint import CheckpointStore
from wholegpt.console import Console
from wholegpt.runs import api
from wholegpt.runs.create import create_run
from wholegpt.settings import presets
from wholegpt.settings.presets import configure

QUIET = Console(quiet=True)
STEPS = 80
LOOP: dict[str, dict[str, Any]] = {
    "training": {"steps": STEPS, "batch_size": 6, "micro_batch_size": 4},
    "evaluation": {"every": 7, "patience": 0},
    "checkpointing": {"every": 3, "keep": 2},
    "logging": {"every": 1, "sample_every": 10, "sample_tokens": 5},
}


def prepared_run(folder: Path, text: Path) -> Path:
    """Return a run before its first step, with dropout, micro-batches, evaluations, samples and many checkpoints."""
    config = tiny_config(text, model={"dropout": 0.1, "n_layers": 3, "d_model": 32}, **LOOP)
    return create_run(config, folder, False, Console(quiet=True))


def prepared_finetuning(task: str, lora: int) -> Callable[[Path, Path], Path]:
    """Return a function that prepares a fine-tuning run, whose examples are the lines of the text."""

    def prepare(folder: Path, text: Path) -> Path:
        base, data = folder.with_name("base"), folder.with_name("data.jsonl")
        if not base.exists():
            small = {"context_length": 48, "n_layers": 3, "d_model": 32}
            api.train(config=tiny_config(text, model=small, training={"steps": 2}), out=base, console=QUIET)
        lines = text.read_text().splitlines()
        fields = ("prompt", "response") if task == "instruct" else ("text", "label")
        examples = [dict(zip(fields, (line[:20], line[-3:-1]), strict=True)) for line in lines]
        known = Counter(one[fields[1]] for one in examples)
        kept = [one for one in examples if known[one[fields[1]]] > 5]
        data.write_text("".join(json.dumps(one) + "\n" for one in kept))
        config = configure(
            {
                **LOOP,
                "model": {"dropout": 0.1},
                "finetuning": {"task": task, "model": str(base), "data": str(data)},
                "lora": {"rank": lora},
                "optimizer": {"kind": "adamw"},
                "runtime": {"device": "cpu"},
            }
        )
        return create_run(config, folder, False, QUIET)

    return prepare


ROLLOUTS: dict[str, Any] = {
    "rewards": ["length:2"],
    "rollout_size": 12,
    "rollout_epochs": 2,
    "completion_tokens": 8,
    "kl": 0.05,
}


def prepared_alignment(method: str, **settings: Any) -> Callable[[Path, Path], Path]:
    """Return a function that prepares an alignment run on pairs or prompts, from an instruction-tuned model."""

    def prepare(folder: Path, text: Path) -> Path:
        chat, data, prompts = map(folder.with_name, ("chat", "pairs.json", "prompts.json"))
        if not chat.exists():
            small = {"context_length": 48, "n_layers": 3, "d_model": 32}
            base = tiny_config(text, model=small, training={"steps": 2})
            parent = api.train(config=base, out=folder.with_name("base"), console=QUIET)
            lines = text.read_text().splitlines()
            rows = [{"prompt": one[:15], "response": one[15:25], "rejected": one[-11:]} for one in lines]
            data.write_text(json.dumps([{**row, "chosen": row["response"]} for row in rows]))
            prompts.write_text(json.dumps([{"prompt": row["prompt"]} for row in rows]))
            tuned = configure(
                {"training": {"steps": 2}, "runtime": {"device": "cpu"}}, presets.recipe("instruct")
            )
            api.finetune(parent.path, data, task="instruct", config=tuned, out=chat, console=QUIET)
        config = configure(
            {
                **LOOP,
                "model": {"dropout": 0.0 if "rewards" in settings else 0.1},
                "finetuning": {
                    "task": method,
                    "model": str(chat),
                    "data": str(prompts if "rewards" in settings else data),
                },
                "alignment": settings,
                "optimizer": {"kind": "adamw"},
                "runtime": {"device": "cpu"},
            }
        )
        return create_run(config, folder, False, QUIET)

    return prepare


def result_of(run: Path) -> tuple[str, str, list[Any]]:
    """Return hashes of weights and optimizer state, and every logged value that is not a time or process memory."""
    last = CheckpointStore(run).path(STEPS)
    hashes = [
        hashlib.sha256((last / name).read_bytes()).hexdigest()
        for name in ("model.safetensors", "training/optimizer.safetensors")
    ]
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    of_process = ("train_seconds", "tokens_per_second", "peak_memory_bytes")
    figures = [tuple((k, v) for k, v in record.items() if k not in of_process) for record in records]
    return hashes[0], hashes[1], figures


def victim(run: Path, mode: str, number: float, way: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.torture.victim", str(run), mode, str(number), way]
    return subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300)


WAYS: dict[str, tuple[Callable[[Path, Path], Path], int]] = {
    "pretraining": (prepared_run, 10),
    "classification": (prepared_finetuning("classification", lora=0), 4),
    "instruct by LoRA": (prepared_finetuning("instruct", lora=4), 4),
    "reward": (prepared_alignment("reward"), 4),
    "dpo with the loss of KTO": (prepared_alignment("dpo", loss="kto"), 4),
    "grpo": (prepared_alignment("grpo", **ROLLOUTS, group_size=4), 10),
    "ppo": (prepared_alignment("ppo", **ROLLOUTS, kl_target=1.0), 10),
    "rollouts": (prepared_run, 6),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_repeatedly_killed_run_has_the_same_weights(way: str, tmp_path: Path) -> None:
    prepare, kills = WAYS[way]
    text = tmp_path / "text.txt"
    text.write_text(text_of(4000))
    whole = prepare(tmp_path / "whole", text)
    uninterrupted = victim(whole, "never", 0, way)
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    seconds, calls = map(float, uninterrupted.stdout.split())
    expected = result_of(whole)

    generator = random.Random(1)
    killed = prepare(tmp_path / "killed", text)
    moments: list[int | None] = []
    while len(moments) < kills:
        # Every second kill is just before a file-system call of a save; the others are at random times.
        if len(moments) % 2:
            process = victim(killed, "call", generator.randrange(1, int(calls / kills) + 1), way)
        else:
            process = victim(killed, "delay", generator.uniform(0, 1.2 * seconds / kills), way)
        if process.returncode == 0:  # the run finished before the kill; another one is started
            assert result_of(killed) == expected
            killed = prepare(tmp_path / f"killed-{len(list(tmp_path.iterdir()))}", text)
            continue
        assert process.returncode == -9, f"neither done nor killed: {process.stderr}"
        moments.append(CheckpointStore(killed).last_good()[0])
    assert len(set(moments)) > kills / 2 - 1, f"the kills did not spread over the run: {moments}"
    assert moments[-1] is not None and moments[-1] < STEPS
    last = victim(killed, "never", 0, way)
    assert last.returncode == 0, last.stderr
    assert result_of(killed) == expected
