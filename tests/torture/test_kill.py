"""Killed at any moment, a run resumes and ends with the weights of a run that never was."""

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path

from tests.helpers import text_of, tiny_config
from wholegpt import api
from wholegpt.checkpoint import CheckpointStore
from wholegpt.console import Console

KILLS = 10


def prepared_run(folder: Path, text: Path) -> Path:
    """A run ready for its first step: dropout, micro-batches, evaluations, samples, many saves."""
    config = tiny_config(
        text,
        model={"dropout": 0.1, "n_layers": 3, "d_model": 32},
        training={"steps": 80, "batch_size": 6, "micro_batch_size": 4},
        evaluation={"every": 7},
        checkpointing={"every": 3, "keep": 2},
        logging={"every": 1, "sample_every": 10, "sample_tokens": 5},
    )
    return api.start_run(config, folder, False, Console(quiet=True))


def result_of(run: Path) -> tuple[str, str, list[tuple[object, ...]]]:
    """Hashes of weights and optimiser, and every logged figure that is not a time."""
    last = CheckpointStore(run).path(80)
    hashes = [
        hashlib.sha256((last / name).read_bytes()).hexdigest()
        for name in ("model.safetensors", "training/optimizer.safetensors")
    ]
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    figures = [(r["kind"], r["step"], r.get("nats_per_token"), r.get("text")) for r in records]
    return hashes[0], hashes[1], figures


def victim(run: Path, mode: str, number: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.torture.victim", str(run), mode, str(number)]
    return subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300)


def test_killed_ten_times_the_weights_are_the_same(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(text_of(4000))
    whole = prepared_run(tmp_path / "whole", text)
    uninterrupted = victim(whole, "never", 0)
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    seconds, calls = map(float, uninterrupted.stdout.split())
    expected = result_of(whole)

    generator = random.Random(1)
    killed = prepared_run(tmp_path / "killed", text)
    moments: list[int | None] = []
    for attempt in range(KILLS):
        # Every other kill is inside a save, just before a file-system call; the others fall anywhere.
        if attempt % 2:
            process = victim(killed, "call", generator.randrange(1, int(calls / KILLS) + 1))
        else:
            process = victim(killed, "delay", generator.uniform(0, 1.2 * seconds / KILLS))
        assert process.returncode == -9, f"attempt {attempt} was not killed: {process.stderr}"
        moments.append(CheckpointStore(killed).last_good()[0])
    assert len(set(moments)) > 4, f"the kills did not spread over the run: {moments}"
    assert moments[-1] is not None and moments[-1] < 80
    last = victim(killed, "never", 0)
    assert last.returncode == 0, last.stderr
    assert result_of(killed) == expected
