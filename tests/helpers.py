"""Helpers used by many tests."""

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from wholegpt.console import Console
from wholegpt.data.examples.batches import TaskBatch
from wholegpt.generation import Completion, Engine, encode_prompt
from wholegpt.generation.speculation import Drafter
from wholegpt.model import TaskModel
from wholegpt.model.quantized import has_bfloat16_kernel
from wholegpt.settings.choices import Attention, Bias, FeedForward, Positions, RotaryScaling, TaskKind
from wholegpt.settings.presets import configure, gpt1, gpt2
from wholegpt.settings.schema import Config, GenerationConfig, ModelConfig
from wholegpt.stages.task_objective import is_summed
from wholegpt.tokenizers import Tokenizer

TEXT = "the of and a to in is you that it he was for on are with as his they at be this from"
WORDS = TEXT.split(" ")
NEEDS_BFLOAT16 = pytest.mark.skipif(
    not has_bfloat16_kernel(), reason="oneDNN has no bfloat16 kernel for this processor"
)


def text_of(characters: int, seed: int = 0) -> str:
    """Return reproducible text of about this many characters: lines of words."""
    generator = random.Random(seed)
    lines: list[str] = []
    while sum(map(len, lines)) < characters:
        lines.append(" ".join(generator.choices(WORDS, k=8)) + ".\n")
    return "".join(lines)


def tiny_model(**changes: Any) -> ModelConfig:
    """Return a modern model with two layers, width 16, context length 12 and 37 tokens."""
    fields = {
        "vocab_size": 37,
        "context_length": 12,
        "n_layers": 2,
        "d_model": 16,
        "n_heads": 4,
        "n_kv_heads": 2,
    }
    return ModelConfig(**{**fields, **changes})


def shrink(config: ModelConfig, **changes: Any) -> ModelConfig:
    """Return ``config`` with the sizes of ``tiny_model``, without dropout and otherwise unchanged."""
    from dataclasses import replace

    small = {
        "vocab_size": 37,
        "context_length": 12,
        "n_layers": 2,
        "d_model": 16,
        "n_heads": 4,
        "dropout": 0.0,
    }
    return replace(config, **{**small, **changes})


def tiny_models() -> dict[str, ModelConfig]:
    """Return one tiny model of each kind."""
    return {"gpt1": shrink(gpt1()), "gpt2": shrink(gpt2()), "modern": tiny_model()}


def tiny_variants() -> dict[str, ModelConfig]:
    """Return further tiny models with combinations of parts that no published preset has."""
    return {
        "window": tiny_model(attention=Attention.sliding_window, attention_window=5),
        "strided": tiny_model(attention=Attention.strided, attention_window=3),
        "linear": tiny_model(attention=Attention.linear, positions=Positions.none),
        "average": tiny_model(attention=Attention.average, positions=Positions.none),
        "window, learned": shrink(gpt2(), attention=Attention.sliding_window, attention_window=4),
        "shared": tiny_model(n_layers=4, distinct_layers=2, feed_forward=FeedForward.relu_squared),
        "sinusoidal": shrink(gpt2(), positions=Positions.sinusoidal, feed_forward=FeedForward.relu),
        "switch": tiny_model(n_experts=4, bias=Bias.all),
        "experts": shrink(gpt2(), n_experts=4, experts_per_token=2),
        "scaled, linear": tiny_model(d_head=8, rotary_scaling=RotaryScaling.linear, rotary_factor=4.0),
        # Wavelengths 6, 17, 44 and 118: one unchanged, one interpolated, two divided by the factor.
        "scaled, llama3": tiny_model(
            d_head=8,
            rotary_base=50.0,
            rotary_scaling=RotaryScaling.llama3,
            rotary_factor=4.0,
            rotary_low_freq_factor=0.5,
            rotary_high_freq_factor=1.5,
            rotary_original_context=12,
        ),
        "without positions": tiny_model(positions=Positions.none, feed_forward=FeedForward.gelu),
    }


def tiny_config(source: Path | str, **sections: dict[str, Any]) -> Config:
    """Return the config of a run of a few seconds: characters, 12 steps."""
    mapping: dict[str, dict[str, Any]] = {
        "model": {"context_length": 16, "n_layers": 2, "d_model": 16, "n_heads": 2},
        "tokenizer": {"kind": "character"},
        "data": {"source": [str(source)]},
        "training": {"steps": 12, "batch_size": 4},
        "schedule": {"warmup_steps": 2},
        "evaluation": {"every": 6},
        "checkpointing": {"every": 4},
        "logging": {"every": 1, "sample_every": 6, "sample_tokens": 8, "sample_prompt": "the"},
        "precision": {"dtype": "float32"},  # "automatic" is bfloat16 on some processors only
        "runtime": {"device": "cpu"},
    }
    for name, fields in sections.items():
        mapping[name] = {**mapping.get(name, {}), **fields}
    return configure(mapping)


OPTIONS = {
    "--model.context-length": "16",
    "--model.n-layers": "1",
    "--model.d-model": "16",
    "--model.n-heads": "2",
    "--training.steps": "6",
    "--training.batch-size": "2",
    "--tokenizer.kind": "character",
    "--checkpointing.every": "2",
    "--device": "cpu",
}


def tiny(*more: str, **changes: str) -> list[str]:
    """Return options for a quiet run of a second; ``changes`` have underscores for dots and hyphens."""
    given = {
        name: changes.pop(re.sub("[.-]", "_", name.lstrip("-")), value) for name, value in OPTIONS.items()
    }
    assert not changes
    return ["--quiet", *more, *(part for item in given.items() for part in item)]


TINY = tiny()
Fails = Callable[..., str]
"""Runs a command line that must fail, and returns its error line."""


def make_plans_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit plans to a few seconds: tiny windows and batches, one size."""
    from wholegpt.planning import choice, planner

    for name, value in {
        "CONTEXT_LENGTH": 32,
        "BATCH_SIZE": 2,
        "WIDTHS": (64,),
        "LEAST_STEPS": 8,
        "LEAST_TOKENS": 8 * 2 * 32,
        "PILOT_STEPS": 10,
        "REPORT_SECONDS": 1.0,
    }.items():
        monkeypatch.setattr(choice, name, value)
    monkeypatch.setattr(planner, "PILOT_STEPS", 10)
    monkeypatch.setattr(planner, "FEWEST_PILOT_STEPS", 10)


class CountingCache:
    """A cache for models that only need the number of processed tokens."""

    can_rewind = True
    padded_capacity = 0

    def __init__(self, lengths: torch.Tensor) -> None:
        self.lengths = lengths

    def can_rewind_to(self, row: int, length: int) -> bool:
        return True

    @classmethod
    def empty(cls, batch_size: int) -> "CountingCache":
        return cls(torch.zeros(batch_size, dtype=torch.long))

    def rows(self, first: int, last: int) -> "CountingCache":
        return CountingCache(self.lengths[first:last])

    def copy_row(self, source: int, target: int, length: int | None = None) -> None:
        self.lengths[target] = self.lengths[source] if length is None else length

    def reorder(self, sources: Sequence[int]) -> None:
        self.lengths[: len(sources)] = self.lengths[list(sources)]

    def clear(self) -> None:
        self.lengths.zero_()

    def repeated(self, batch_size: int, capacity: int) -> "CountingCache":
        return CountingCache(self.lengths.repeat(batch_size))


class LogitsOnly(torch.nn.Module):
    """The interface of a causal language model apart from its logits, for models that cache nothing."""

    def __init__(self, vocab_size: int, context_length: int) -> None:
        super().__init__()
        self.vocab_size, self.context_length, self.ends_at_context = vocab_size, context_length, False

    def forward(self, token_ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
        raise NotImplementedError

    def logits_at(self, *arguments: Any, **named: Any) -> torch.Tensor:
        raise AssertionError

    def prefill(self, token_ids: torch.Tensor, cache: CountingCache) -> None:
        cache.lengths += token_ids.shape[1]

    def cache_bytes(self, batch_size: int, capacity: int) -> int:
        return 0

    def new_cache(self, batch_size: int, capacity: int = 0) -> CountingCache:
        return CountingCache.empty(batch_size)


def generate_one(
    model: Any,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    config: GenerationConfig,
    emit: Callable[[str], None] = lambda text: None,
    drafter: Drafter | None = None,
    console: Console | None = None,
) -> Completion:
    """Generate one completion with an engine that has one slot of sufficient size."""
    if isinstance(prompt, str):
        prompt = encode_prompt(model, tokenizer, "", prompt, False, console or Console(quiet=True))
    capacity = min(model.context_length, len(prompt) + config.max_tokens)
    engine = Engine(model, tokenizer, torch.device("cpu"), 1, capacity)
    request = engine.submit(prompt, config, emit, drafter)
    engine.run()
    if request.error:
        raise request.error
    return request.completion()


def outputs_of_batch(model: TaskModel, batch: TaskBatch, task: TaskKind) -> tuple[torch.Tensor, torch.Tensor]:
    """Return hidden states and head outputs for a batch."""
    return model.task_outputs(batch.token_ids, batch.last, batch.second, is_summed(task))
