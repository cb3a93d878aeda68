"""The figures at the top of a run's report: of the weights that commands use, and of the training."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wholegpt.analysis.curves import Log, in_words
from wholegpt.model import flops_per_token
from wholegpt.planning.adjustment import announced
from wholegpt.settings.choices import Architecture, TaskKind
from wholegpt.settings.schema import Config

DIGITS = {"perplexity": 3}
"""Decimals of figures; 4 for all others."""
DENOMINATORS = ("examples", "tokens", "characters", "bytes")
TRAINING_TO_FORWARD = 3
"""FLOPs of training relative to those of the forward pass (Kaplan et al. 2020, section 2.1)."""


@dataclass(frozen=True)
class Shown:
    """A figure as text, with a note below it."""

    value: str
    note: str = ""


@dataclass(frozen=True)
class Weights:
    """Figures of some weights, and on what they were measured."""

    title: str
    figures: dict[str, Shown]
    measured: str


def number(value: float | None, digits: int) -> str:
    """Return a number with so many decimals, or a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}"


def headline(result: Mapping[str, Any], log: Log, bound: float) -> tuple[Weights, list[Weights]]:
    """Return the figures of the weights that commands use and, if the last weights are others, theirs.

    The best weights were measured while training, possibly on a part of the held-out data; the last weights also on
    that part, if their step was evaluated, and on all of the data.
    """
    best, steps, uniform = result["best"], result["steps"], f"uniform guess: {bound:.4f}"
    if best is None or best["step"] == steps:
        which = "the last and the best ones" if best else "the last ones"
        return _whole(result, f"Result: weights of step {steps:,}, {which}", uniform), []
    lead = _quick(best, f"Result: weights of step {best['step']:,}, the best ones", uniform)
    at_end = [one for one in log.by_kind["validation"] if one["step"] == steps]
    same = [_quick(one, "while training", "") for one in at_end[-1:]]
    return lead, [*same, _whole(result, "at the end", "")]


def _quick(values: Mapping[str, Any], title: str, uniform: str) -> Weights:
    """Return the figures of an evaluation while training, from its line in the log."""
    rest = {name: value for name, value in values.items() if name not in ("step", "kind", "train_seconds")}
    sizes = _sizes(values)
    measured = f"{sizes} of held-out data, while training" if sizes else "held-out data, while training"
    return Weights(title, _figures(rest, {"nats_per_token": uniform}), measured)


def _whole(result: Mapping[str, Any], title: str, uniform: str) -> Weights:
    """Return the figures of the last weights on all held-out data."""
    validation = result["validation"]
    if "kind" in validation:
        figures = {
            in_words(name): Shown(
                number(one["value"], 4), f"95%: {number(one['low'], 4)} to {number(one['high'], 4)}"
            )
            for name, one in validation.items()
            if isinstance(one, Mapping)
        }
        cut = validation["truncated"]
        too_long = f", {cut:,} of them too long and cut" if cut else ""
        return Weights(
            title, figures, f"{validation['examples']:,} held-out examples ({validation['kind']}){too_long}"
        )
    expected: list[str] = []
    if plan := result.get("plan"):
        plans = {"planned": announced(plan), **({"adjusted": plan} if "adjustment" in plan else {})}
        for name, one in plans.items():
            loss = one["bits_per_byte"]
            expected.append(f"{name}: {loss['expected']:.4f} ({loss['low']:.4f} to {loss['high']:.4f})")
    notes = {"nats_per_token": uniform, "bits_per_byte": "; ".join(expected)}
    return Weights(title, _figures(validation, notes), f"all held-out text: {_sizes(validation)}")


def _figures(values: Mapping[str, Any], notes: Mapping[str, str]) -> dict[str, Shown]:
    return {
        in_words(name): Shown(number(value, DIGITS.get(name, 4)), notes.get(name, ""))
        for name, value in values.items()
        if name not in DENOMINATORS
    }


def _sizes(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{values[name]:,} {name}" for name in DENOMINATORS if values.get(name) is not None)


def training_figures(result: Mapping[str, Any], log: Log, config: Config) -> dict[str, Shown]:
    """Return size, duration, speed and memory of the training, with what was planned for it."""
    plan, seconds, tokens = result.get("plan", {}), result["train_seconds"], result["tokens"]

    def planned(name: str, scale: float, words: str) -> str:
        values = {**plan, **announced(plan)} if plan else {}
        return f"planned: {words.format(values[name] / scale)}" if values.get(name) else ""

    figures = {
        "parameters": Shown(f"{result['parameters']:,}"),
        "training tokens": Shown(f"{tokens:,}"),
        "steps": Shown(f"{result['steps']:,}", f"of {result['planned_steps']:,}"),
        "training time": Shown(f"{seconds:.1f} s", planned("train_seconds", 1, "{:.1f} s")),
        "evaluation, samples, saving": Shown(f"{result['other_seconds']:.1f} s", "between the steps"),
        "training tokens per second": Shown(f"{tokens / seconds:,.0f}" if seconds else "–"),
    }
    forward = flops_per_token(config.model)
    if forward:
        figures["forward FLOPs per token"] = Shown(f"{forward:,}")
    if forward and seconds and _counts_all_flops(config):
        figures["training FLOP/s"] = _flop_rate(TRAINING_TO_FORWARD * forward * tokens / seconds, plan)
    peaks = log.column("train", "peak_memory_bytes")[1]
    if len(peaks):
        where = "tensors on the GPU" if config.runtime.device.startswith("cuda") else "the process"
        notes = (f"of {where}", planned("peak_memory_bytes", 1e9, "{:.2f} GB"))
        figures["peak memory"] = Shown(f"{peaks.max() / 1e9:.2f} GB", "; ".join(filter(None, notes)))
    return figures


def _flop_rate(rate: float, plan: Mapping[str, Any]) -> Shown:
    """Return the FLOP/s of training, with their share of the product rate that was measured for the plan."""
    product = plan.get("product_flops_per_second")
    share = f"{rate / product:.0%} of a matrix product's {product / 1e9:,.0f} GFLOP/s" if product else ""
    return Shown(f"{rate / 1e9:,.1f} GFLOP/s", share)


def _counts_all_flops(config: Config) -> bool:
    """Return whether three times ``flops_per_token`` are the FLOPs of training per token.

    This is not so with frozen weights, or if steps do not consist of full windows or do not predict each token.
    """
    others = (Architecture.encoder, Architecture.encoder_decoder, Architecture.ngram)
    on_text = config.finetuning.task is TaskKind.pretraining and config.model.architecture not in others
    return on_text and not config.lora.rank
