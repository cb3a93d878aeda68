"""Golden runs: stored results of tiny training runs, which refactoring must not change.

Each run is 20 steps in float64 on one thread. The files contain the loss and the gradient norm of each step,
and the norm of each weight tensor at the end. ``make golden`` writes new files; the commit message says why
the results changed.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import wholegpt as wg
from tests.helpers import text_of
from wholegpt.console import Console

FOLDER = Path(__file__).parent
QUIET = Console(quiet=True)
STEPS = 20
LOSSES = ("loss", "nats_per_token", "nats_per_masked_token")
"""The metric names of a step's loss."""
WEIGHTS = "checkpoints/step-{:08d}/model.safetensors"


@contextlib.contextmanager
def float64_on_one_thread() -> Iterator[None]:
    """Compute everything in this context in float64 instead of float32, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(threads)


def settings(**sections: dict[str, Any]) -> wg.Config:
    """Return the settings of a tiny run, with changes."""
    mapping: dict[str, dict[str, Any]] = {
        "model": {"context_length": 16, "n_layers": 2, "d_model": 16, "n_heads": 2, "dropout": 0.0},
        "tokenizer": {"kind": "character"},
        "training": {"steps": STEPS, "epochs": 0.0, "batch_size": 4},
        "optimizer": {"learning_rate": 0.01},
        "schedule": {"warmup_steps": 5},
        "evaluation": {"every": 0},
        "checkpointing": {"every": 0},
        "logging": {"every": 1, "sample_every": 0, "sample_tokens": 0},
        "precision": {"dtype": "float32"},
        "runtime": {"device": "cpu", "threads": 1, "seed": 7},
    }
    for name, fields in sections.items():
        mapping[name] = {**mapping.get(name, {}), **fields}
    return wg.configure(mapping)


def train(folder: Path, **sections: dict[str, Any]) -> Path:
    """Train on a small text in ``folder`` and return the run."""
    (folder / "text.txt").write_text(text_of(4000))
    out = folder / "pretrained"
    wg.train(folder / "text.txt", config=settings(**sections), out=out, console=QUIET)
    return out


def modern(folder: Path) -> Path:
    """RMS norm, rotary positions, grouped-query attention, Muon, averaged weights."""
    return train(
        folder,
        model={"n_heads": 4, "n_kv_heads": 2},
        optimizer={"kind": "muon"},
        training={"ema_decay": 0.9},
    )


def gpt2(folder: Path) -> Path:
    """Learned positions, layer norm, GELU, biases, tied embeddings; AdamW."""
    return train(folder, model={"preset": "gpt2-small"}, optimizer={"kind": "adamw", "weight_decay": 0.1})


def gpt1(folder: Path) -> Path:
    """GPT-2 with post-norm blocks."""
    return train(folder, model={"preset": "gpt1"}, optimizer={"kind": "adamw"})


def accumulation(folder: Path) -> Path:
    """Clipped gradients of three micro-batches, the last one smaller."""
    return train(folder, training={"batch_size": 5, "micro_batch_size": 2, "gradient_clip": 0.5})


def mixture_of_experts(folder: Path) -> Path:
    """Two of four experts per token, with the router's losses."""
    experts = {"n_experts": 4, "experts_per_token": 2}
    return train(folder, model=experts, training={"balance_loss": 0.01, "router_z_loss": 0.001})


def encoder(folder: Path) -> Path:
    """Masked-token prediction."""
    return train(folder, model={"architecture": "encoder"})


def encoder_decoder(folder: Path) -> Path:
    """Sequence to sequence."""
    rows = [f"{a}{b}\t{b}{a}" for a in "abcdefgh" for b in "abcdefgh"]
    (folder / "pairs.tsv").write_text("\n".join(["source\ttarget", *rows]))
    config, out = settings(model={"architecture": "encoder_decoder"}), folder / "run"
    wg.train(folder / "pairs.tsv", config=config, out=out, console=QUIET)
    return out


def classification(folder: Path) -> Path:
    """A head on a pretrained model, with the language-modeling loss (λ = 0.5)."""
    words = text_of(2000).split()
    rows = [f"{' '.join(words[4 * i : 4 * i + 4])},{'ab'[i % 2]}" for i in range(60)]
    (folder / "labels.csv").write_text("\n".join(["text,label", *rows]))
    return finetune(folder, "labels.csv", "classification", finetuning={"language_modeling": 0.5})


def instruction(folder: Path) -> Path:
    """Instruction tuning with LoRA on a pretrained model; only answers are scored."""
    words = text_of(2000).split()
    rows = [{"prompt": words[i], "response": words[i + 1]} for i in range(60)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return finetune(folder, "pairs.jsonl", "instruct", lora={"rank": 4})


def finetune(folder: Path, data: str, task: str, **sections: dict[str, Any]) -> Path:
    """Fine-tune a pretrained model, which determines the model settings."""
    parent, out = train(folder), folder / "run"
    config = settings(**sections)
    wg.finetune(parent, folder / data, task=task, config=config, out=out, console=QUIET)
    return out


RUNS: dict[str, Callable[[Path], Path]] = {
    run.__name__: run
    for run in (
        *(modern, gpt2, gpt1, accumulation, mixture_of_experts),
        *(encoder, encoder_decoder, classification, instruction),
    )
}


def figures(name: str, folder: Path) -> dict[str, Any]:
    """Return the results of the named run, trained in ``folder``."""
    with float64_on_one_thread():
        run = RUNS[name](folder)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    weights = load_file(run / WEIGHTS.format(STEPS))
    assert {tensor.dtype for tensor in weights.values()} == {torch.float64}
    return {
        "losses": [next(line[key] for key in LOSSES if key in line) for line in steps],
        "gradient_norms": [line["gradient_norm"] for line in steps],
        "weight_norms": {key: float(weights[key].norm()) for key in sorted(weights)},
    }


def path_of(name: str) -> Path:
    """Return the path of a run's stored results."""
    return FOLDER / f"{name}.json"
