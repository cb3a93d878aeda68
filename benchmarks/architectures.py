"""Compare architectures: a mixture of experts at equal FLOPs, encoder and decoder, attention in long contexts."""

import argparse
import dataclasses
import math
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import wholegpt as wg
from benchmarks.generation import ratio
from benchmarks.tables import conditions, machine_line, publish
from benchmarks.training_step import alternate, ours
from benchmarks.transfer import difference
from wholegpt.console import Console
from wholegpt.data import TokenShards
from wholegpt.files import read_json, write_json_atomic
from wholegpt.metrics import bootstrap
from wholegpt.model import KeyValueCache, Transformer, flops_per_token, parameter_count
from wholegpt.model.layers.cache import RecurrentCache
from wholegpt.runs.folder import run_data
from wholegpt.runs.train import Run
from wholegpt.settings.choices import Attention, AttentionKernel, Positions
from wholegpt.settings.schema import Config, ModelConfig

SEEDS = (1, 2, 3)
LENGTHS = (1024, 2048, 4096, 8192, 16_384)
PSEUDO_TOKENS, PSEUDO_CONTEXT = 4096, 128
NAMES = {"transformer": "decoder", "encoder": "encoder"}
"""Names of the two kinds of models in the table."""
STEPS = 8
"""Tokens per round of each model and length."""


def run_of(out: Path, console: Console, *sources: Path, config: Config) -> Run[Any]:
    """Return a finished run. Train it if there is none, and resume an interrupted one."""
    if (out / "config.yaml").exists():
        return wg.resume(out, console=console)
    return wg.train(*sources, config=config, out=out, console=console)


def experts(data: Path, out: Path, steps: int, rounds: int, console: Console) -> None:
    """Compare a dense model with mixtures of experts at equal cost per token: loss and time per step."""
    base = wg.configure(
        {
            "model": {"preset": "modern-tiny"},
            "tokenizer": {"vocab_size": 4096},
            "training": {"steps": steps, "batch_size": 16},
            "schedule": {"kind": "warmup_stable_decay", "decay_fraction": 0.8, "final_fraction": 0.0},
            "evaluation": {"every": max(1, steps // 4), "patience": 0},
            "logging": {"every": 10, "sample_every": 0},
        }
    )
    kinds = {
        "dense": {},
        "Switch, 8 experts, 1 per token": {"n_experts": 8},
        "8 experts of half the width, 2 per token": {"n_experts": 8, "experts_per_token": 2, "d_ff": 352},
    }
    configs = {name: wg.configure({"model": changes}, base=base) for name, changes in kinds.items()}
    vocabulary = base.tokenizer.vocab_size
    sides = [
        dataclasses.replace(
            ours(dataclasses.replace(one.model, vocab_size=vocabulary), base.training.batch_size), name=name
        )
        for name, one in configs.items()
    ]
    alternate(sides, rounds)
    runs = {
        name: run_of(out / f"experts-{number}", console, data / "english.jsonl", config=one)
        for number, (name, one) in enumerate(configs.items())
    }
    rows: list[str] = []
    for side, (name, run) in zip(sides, runs.items(), strict=True):
        model = run.config.model
        lines = [line for line in _log(run.path) if line["kind"] == "train"]
        routed = ""
        if "load_entropy" in lines[-1]:
            late = lines[len(lines) // 2 :]
            entropy, dropped = (
                sum(line[field] for line in late) / len(late) for field in ("load_entropy", "dropped_share")
            )
            routed = f"{entropy:.3f} | {dropped:.1%}"
        count = parameter_count(model)
        rows.append(
            f"| {name} | {count.total:,} | {count.active:,} | {flops_per_token(model):,} | "
            f"{run.validation.nats_per_token:.4f} | {ratio(side.seconds, sides[0].seconds)} | {routed or '– | –'} |"
        )
    header = [
        "| Model | Parameters | Parameters used per token | Forward FLOPs per token | Nats per token, held-out text "
        "| Time of a step ÷ dense | Entropy of the load ÷ ln E | Dropped tokens |",
        "|" + " --- |" * 8,
    ]
    what = (
        f"The models are trained on english.jsonl for {steps:,} steps of {base.training.batch_size} windows each, with "
        "one seed. Forward FLOPs count the experts that a token uses. During training, the capacity of each expert is "
        "a quarter above its share of the tokens."
    )
    publish("Mixture of experts", "\n".join([conditions(rounds), "", what, "", *header, *rows]))


def _log(run: Path) -> list[dict[str, Any]]:
    from wholegpt.training.callbacks import MetricsLog

    return MetricsLog(run / "metrics.jsonl").read()


def encoder(data: Path, out: Path, steps: int, console: Console) -> None:
    """Compare masked and causal pretraining on the same text, size, steps and windows, by SST-2 with λ = 0."""
    shared: dict[str, dict[str, Any]] = {
        "tokenizer": {"vocab_size": 8192, "lowercase": True},
        "training": {"steps": steps, "batch_size": 16},
        "schedule": {"kind": "warmup_stable_decay", "decay_fraction": 0.6, "final_fraction": 0.0},
        "evaluation": {"every": max(1, steps // 4), "patience": 0},
        "logging": {"sample_every": 0},
    }
    results: dict[str, list[dict[str, Any]]] = {}
    pretrained: dict[str, str] = {}
    pseudo = ""
    for kind in ("transformer", "encoder"):
        config = wg.configure({**shared, "model": {"preset": "modern-tiny", "architecture": kind}})
        run = run_of(out / f"pretrained-{kind}", console, data / "english.jsonl", config=config)
        if kind == "transformer":
            pretrained[kind] = f"{run.validation.nats_per_token:.4f} nats per token"
        else:
            masked = run.validation.metrics["nats_per_masked_token"]
            pretrained[kind] = f"{masked.value:.4f} nats per masked token"
            pseudo = pseudo_of(run, console)
        pretrained[kind] += f" | {run.parameters:,}"
        results[kind] = [_tuned(run.path, data, out / f"sst2-{kind}-{seed}", seed, console) for seed in SEEDS]
    rows: list[str] = []
    for kind, found in results.items():
        each = ", ".join(f"{one['accuracy']:.4f}" for one in found)
        right = np.mean([one["correct"] for one in found], axis=0)
        mean = bootstrap(len(right), lambda chosen, right=right: float(right[chosen].mean()))
        rows.append(
            f"| {NAMES[kind]} | {pretrained[kind]} | {mean.value:.4f} ({mean.low:.4f} to {mean.high:.4f}) | {each} |"
        )
    gain = difference(results["encoder"], results["transformer"])
    last = (
        f"Difference encoder − decoder: {gain.value:+.4f} ({gain.low:+.4f} to {gain.high:+.4f}, 95%, paired)."
    )
    what = [
        f"{machine_line()} Both models are modern-tiny, with a causal mask (decoder) and without (encoder).",
        "",
        f"- **Pretraining:** english.jsonl, {steps:,} steps of 16 windows of 256 tokens. The decoder learns from every "
        "token, the encoder from the 15% that are masked.",
        "- **Fine-tuning:** SST-2, two epochs, λ = 0, the same learning rate, three seeds.",
        "- **Intervals** are 95% intervals over the test examples.",
        f"- **Pseudo-perplexity** of the encoder: {pseudo}. It is not a perplexity, because the model sees the "
        "following tokens.",
    ]
    header = [
        "| Pretrained as | Loss on held-out text | Parameters | SST-2 test accuracy (95%) | Each seed |",
        "| --- | --- | ---: | --- | --- |",
    ]
    publish("Encoder and decoder", "\n".join([*what, "", *header, *rows, "", last]))


def pseudo_of(run: Run[Any], console: Console) -> str:
    """Return the pseudo-perplexity of the first validation tokens."""
    some = TokenShards([run_data(run.path).validation.read(0, PSEUDO_TOKENS)])
    found = run.load().pseudo_perplexity_of_tokens(some, run.config.precision.dtype, console, PSEUDO_CONTEXT)
    interval = f"{found.pseudo_perplexity:.1f} ({math.exp(found.low):.1f} to {math.exp(found.high):.1f})"
    return f"{interval} on {found.tokens:,} held-out tokens in windows of {PSEUDO_CONTEXT}"


def _tuned(base: Path, data: Path, out: Path, seed: int, console: Console) -> dict[str, Any]:
    kept = out / "test.json"
    if not kept.exists():
        if (out / "config.yaml").exists():
            run = wg.resume(out, console=console)
        else:
            settings = {
                "finetuning": {"language_modeling": 0.0},
                "training": {"epochs": 2},
                "evaluation": {"every": 100},
                "runtime": {"seed": seed},
            }
            config = wg.configure(settings, base=wg.recipe("finetune"))
            files = {"validation": data / "sst2/dev.tsv", "config": config, "out": out, "console": console}
            run = wg.finetune(base, data / "sst2/train.tsv", task="classification", **files)
        score = run.load().evaluate_task(data / "sst2/test.tsv", console=console)
        correct = [float(one["correct"]) for one in score.records]
        write_json_atomic(kept, {"accuracy": score.metrics["accuracy"].value, "correct": correct})
    return read_json(kept)


@torch.inference_mode()
def long_contexts(rounds: int) -> None:
    """Measure time and memory of one decoded token after contexts of different lengths."""
    base = ModelConfig(vocab_size=512, context_length=LENGTHS[-1], n_layers=4, d_model=256, n_heads=4)
    kinds = {
        "full": base,
        "sliding window, W = 256": dataclasses.replace(
            base, attention=Attention.sliding_window, attention_window=256
        ),
        "linear": dataclasses.replace(base, attention=Attention.linear, positions=Positions.none),
    }
    prefilled: dict[tuple[str, int], tuple[Transformer, Any]] = {}
    for name, config in kinds.items():
        model = Transformer(config, AttentionKernel.fused).eval()
        for length in LENGTHS:
            cache = model.new_cache(1, length + STEPS * (rounds + 1))
            for piece in torch.randint(512, (1, length)).split(512, dim=1):
                model.prefill(piece, cache)
            prefilled[name, length] = model, cache
    token = torch.zeros(1, 1, dtype=torch.long)
    found: dict[tuple[str, int], list[float]] = {key: [] for key in prefilled}
    for _ in range(rounds + 1):
        for key, (model, cache) in prefilled.items():
            started = time.perf_counter()
            for _ in range(STEPS):
                model(token, cache)
            found[key].append(1000 * (time.perf_counter() - started) / STEPS)
    rows: list[str] = []
    for name in kinds:
        times = " | ".join(f"{statistics.median(found[name, length][1:]):.2f}" for length in LENGTHS)
        sizes = " | ".join(f"{cache_bytes(prefilled[name, length][1]) / 1e6:.2f}" for length in LENGTHS)
        rows += [f"| {name} | ms per token | {times} |", f"| | MB of cache | {sizes} |"]
    header = [
        f"| Attention | Quantity | {' | '.join(f'{length:,}' for length in LENGTHS)} |",
        "| --- | --- |" + " ---: |" * len(LENGTHS),
    ]
    what = (
        "A model of 4 layers and width 256. The column headings are the numbers of tokens before the measured one. "
        f"Values are medians of {rounds} alternating rounds."
    )
    publish("Long contexts", "\n".join([f"{machine_line()} {what}", "", *header, *rows]))


def cache_bytes(cache: KeyValueCache | RecurrentCache) -> int:
    """Return the bytes of the tensors of a cache."""
    if isinstance(cache, KeyValueCache):
        return cache.keys.nbytes + cache.values.nbytes
    return cache.states.nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/architectures"))
    parser.add_argument("--only", default="", help="experts, encoder or long")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    console, data, out = Console(), arguments.data, arguments.out
    out.mkdir(parents=True, exist_ok=True)
    if arguments.only in ("", "experts"):  # first, because it forks, which threads do not survive
        experts(data, out, arguments.steps, arguments.rounds, console)
    if arguments.only in ("", "long"):
        long_contexts(arguments.rounds)
    if arguments.only in ("", "encoder"):
        encoder(data, out, arguments.steps, console)


if __name__ == "__main__":
    main()
