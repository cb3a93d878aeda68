"""Helpers for the scheduler tests: a tiny random model, a model stepped by the test, a request that fails."""

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from tests.helpers import LogitsOnly, tiny_model
from wholegpt.console import Console
from wholegpt.generation import Completion, Scheduler, generate, processors
from wholegpt.model import Transformer
from wholegpt.settings.schema import GenerationConfig
from wholegpt.tokenizers import byte_tokenizer

CPU, QUIET = torch.device("cpu"), Console(quiet=True)
TOKENIZER = byte_tokenizer()
PATIENCE = 20.0
"""Seconds that a test waits for another thread before it fails."""
LONG = GenerationConfig(max_tokens=500, temperature=0)
"""With uniform logits, greedy decoding generates token 0 forever."""


def random_model() -> Transformer:
    """Return a tiny float64 model with random parameters."""
    generator = torch.Generator().manual_seed(1)
    sizes = {"vocab_size": TOKENIZER.vocab_size, "context_length": 24, "n_layers": 1}
    model = Transformer(tiny_model(**sizes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator).mul_(0.5)
    return model


MODEL = random_model()


class Gated(LogitsOnly):
    """A model whose every step waits for the test's permission, and then raises ``failure`` if it is set."""

    def __init__(self) -> None:
        super().__init__(TOKENIZER.vocab_size, 1000)
        self.entered, self.permits = threading.Semaphore(0), threading.Semaphore(0)
        self.rows: list[int] = []
        self.is_open = False
        self.failure: Exception | None = None

    def forward(self, token_ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
        self.rows.append(len(token_ids))
        self.entered.release()
        assert self.is_open or self.permits.acquire(timeout=PATIENCE)
        if self.failure:
            raise self.failure
        self.prefill(token_ids, cache)
        return torch.zeros(*token_ids.shape, self.vocab_size)

    def wait(self) -> None:
        """Wait until a step has started."""
        assert self.entered.acquire(timeout=PATIENCE)

    def step(self) -> None:
        """Finish a step and wait until the next one has started."""
        self.permits.release()
        self.wait()

    def open(self) -> None:
        """Let all further steps run."""
        self.is_open = True
        self.permits.release()


def scheduler_of(model: Any = MODEL, **options: Any) -> Scheduler:
    return Scheduler(model, TOKENIZER, CPU, **options)


def alone(prompt: Sequence[int], config: GenerationConfig, model: Any = MODEL) -> Completion:
    return generate(model, TOKENIZER, [prompt], [config], CPU, QUIET)[0]


def content(completion: Completion) -> tuple[str, list[int], str]:
    return completion.text, completion.token_ids, completion.finish_reason


def until(condition: Callable[[], bool]) -> None:
    """Wait until another thread makes the condition true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


POISON = ((7, 0.125),)


class PoisonError(Exception):
    """The error raised by the poisoned request."""


def poison(
    monkeypatch: pytest.MonkeyPatch, draws: int, on_raise: Callable[[], object] = lambda: None
) -> None:
    """Make a request with the bias ``POISON`` fail at its draw number ``draws``."""
    add_bias, drawn = processors.add_bias, itertools.count(1)

    def poisoned(logits: torch.Tensor, bias: Sequence[tuple[int, float]]) -> torch.Tensor:
        if bias == POISON and next(drawn) == draws:
            on_raise()
            raise PoisonError("poisoned")
        return add_bias(logits, bias)

    monkeypatch.setattr(processors, "add_bias", poisoned)
