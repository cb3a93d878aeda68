"""The baselines that the ladder compares: every kind of model from the uniform distribution to a modern GPT."""

import bisect
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from wholegpt.model import parameter_count
from wholegpt.settings import presets
from wholegpt.settings.choices import Architecture, Attention, Positions
from wholegpt.settings.schema import ModelConfig
from wholegpt.settings.validation import complete_model

NGRAM_ORDERS = (2, 3, 4, 6)
MIN_WIDTH, WIDTH_STEP, MAX_WIDTH = 32, 8, 2048
"""Widths that ``width_of_size`` considers."""


@dataclass(frozen=True)
class Baseline:
    """One kind of model."""

    name: str
    description: str
    """One line for tables and notes."""
    of_width: Callable[[int], ModelConfig] | None = None
    """The model of a given width, without vocabulary and context length. ``None`` for n-grams."""
    orders: Sequence[int] = ()
    """For n-grams: the orders to try."""

    @property
    def key(self) -> str:
        """The name in lower case, as the command line accepts it and folders use it."""
        return self.name.lower()


def _transformer(like: ModelConfig, **changes: Any) -> Callable[[int], ModelConfig]:
    """Return a transformer like a published one: one layer per 64 of width, at least two; heads of width 32."""

    def of_width(width: int) -> ModelConfig:
        sizes = {
            "d_model": width,
            "n_layers": max(2, round(width / 64)),
            "n_heads": max(1, width // 32),
            "d_head": 32,
        }
        return dataclasses.replace(like, **{**sizes, "n_kv_heads": 0, "d_ff": 0, "dropout": 0.0, **changes})

    return of_width


def _recurrent(kind: Architecture) -> Callable[[int], ModelConfig]:
    """Return a recurrent network of two layers."""
    return lambda width: ModelConfig(architecture=kind, d_model=width, n_layers=2)


BASELINES = (
    Baseline("uniform", "all tokens equally likely", orders=(0,)),
    Baseline("unigram", "token frequencies", orders=(1,)),
    Baseline("n-gram", "counts of the last few tokens with Kneser–Ney smoothing", orders=NGRAM_ORDERS),
    Baseline(
        "average",
        "the mean of all previous positions in place of attention",
        _transformer(presets.gpt2(), attention=Attention.average, positions=Positions.learned),
    ),
    Baseline("Elman", "simple recurrent network", _recurrent(Architecture.elman)),
    Baseline("GRU", "recurrent network with gates", _recurrent(Architecture.gru)),
    Baseline("LSTM", "recurrent network with gates and a memory cell", _recurrent(Architecture.lstm)),
    Baseline("GPT-1", "attention with post-norm blocks", _transformer(presets.gpt1())),
    Baseline("GPT-2", "attention with pre-norm blocks", _transformer(presets.gpt2())),
    Baseline("modern", "rotary positions, RMSNorm, SwiGLU", _transformer(presets.modern("tiny"))),
)


def width_of_size(
    of_width: Callable[[int], ModelConfig], parameters: int, vocab_size: int, context_length: int
) -> int:
    """Return the width whose model has the closest number of ``parameters`` (by ratio).

    The number of parameters must increase with the width.
    """

    def parameters_of(width: int) -> int:
        config = dataclasses.replace(of_width(width), vocab_size=vocab_size, context_length=context_length)
        return parameter_count(complete_model(config)).total

    widths = range(MIN_WIDTH, MAX_WIDTH, WIDTH_STEP)
    above = bisect.bisect_left(widths, parameters, key=parameters_of)
    nearest = widths[max(0, above - 1) : above + 1]
    return min(nearest, key=lambda width: abs(math.log(parameters_of(width) / parameters)))
