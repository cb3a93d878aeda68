"""Results of the ladder, and their table."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Choice:
    """The result of the search for one baseline."""

    size: int
    """Width, or order of n-grams."""
    learning_rate: float
    tried: list[list[float | None]]
    """Size, learning rate and nats per token of each trial; ``None`` for a trial that diverged."""


@dataclass(frozen=True)
class Result:
    """A trained baseline."""

    size: int
    """Width, or order of n-grams."""
    learning_rate: float
    parameters: int
    bits_per_byte: float
    """On the validation text, with the last weights."""
    bytes: int
    """Bytes of the validation text that are scored: all except those of its first token."""
    intervals: dict[str, list[float]]
    """95% intervals of ``bits_per_byte`` and ``nats_per_token``: a bootstrap over pieces of the text, not over
    trainings."""
    nats_per_token: float
    train_flops: float
    """3 · forward FLOPs per token · tokens."""
    train_seconds: float
    tokens: int
    tokens_per_second: float
    sample: str


@dataclass(frozen=True)
class Ladder:
    """All baselines on one text."""

    corpus: str
    folder: str
    """Folder of the page and the runs."""
    minutes: float
    """Of the whole comparison."""
    training_seconds: float
    """Of each training of a network."""
    baselines: list[dict[str, Any]]
    """For each baseline: name, description, trials, result, and the result at the size of the last one (``equal``)."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


COLUMNS = (
    "Model",
    "Bits per byte (95%)",
    "Parameters",
    "Training FLOPs",
    "Training seconds",
    "Tokens/s",
    "Width or order, learning rate",
    "Bits per byte at equal parameters (number)",
)


def table_rows(ladder: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of the table for people; the first row holds the column names."""
    return [list(COLUMNS), *(_row(one) for one in ladder["baselines"])]


def _row(one: Mapping[str, Any]) -> list[str]:
    result, equal = one["result"], one.get("equal")
    low, high = result["intervals"]["bits_per_byte"]
    rate = f", {result['learning_rate']:g}" if result["learning_rate"] else ""
    return [
        one["name"],
        f"{result['bits_per_byte']:.4f} ({low:.4f} to {high:.4f})",
        f"{result['parameters']:,}",
        f"{result['train_flops']:.2e}" if result["train_flops"] else "–",
        f"{result['train_seconds']:.0f}",
        f"{result['tokens_per_second']:,.0f}",
        f"{result['size']}{rate}",
        f"{equal['bits_per_byte']:.4f} ({equal['parameters']:,})" if equal else "–",
    ]
