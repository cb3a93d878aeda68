"""Concurrent requests from many threads each get the text that they get alone, in float64."""

import json
import random
import threading
import time
from typing import Any

import pytest

from tests.generation.scheduling import (
    MODEL,
    PATIENCE,
    POISON,
    PoisonError,
    alone,
    content,
    poison,
    scheduler_of,
)
from wholegpt.errors import QueueFull
from wholegpt.generation import CompletionStream, Scheduler
from wholegpt.settings.schema import GenerationConfig

pytestmark = pytest.mark.usefixtures("no_thread_is_left")

FORMS: list[dict[str, Any]] = [
    *[{}] * 6,
    {"regex": "[0-9]{3,6}(-[a-z]{1,4})?"},
    {"regex": "(yes|no|maybe)( (please|thanks)){0,3}"},
    {"json_schema": json.dumps({"type": "array", "items": {"type": "boolean"}, "maxItems": 3})},
    {
        "json_schema": json.dumps(
            {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        )
    },
]


def random_request(rng: random.Random) -> tuple[list[int], GenerationConfig]:
    prompt = [rng.randrange(256) for _ in range(rng.randint(1, 30))]
    form = rng.choice(FORMS)
    config = GenerationConfig(
        max_tokens=rng.randint(1, 15),
        temperature=rng.choice([0.0, 0.7, 1.0, 1.5]),
        top_k=rng.choice([0, 0, 5]),
        repetition_penalty=rng.choice([1.0, 1.3]),
        stop=() if form else rng.choice([(), ("e",), ("th", "qu")]),
        seed=rng.randrange(1000),
        **form,
    )
    return prompt, config


class Client(threading.Thread):
    """Submits random requests and cancels some: at once, after the first piece, or some milliseconds later."""

    def __init__(self, scheduler: Scheduler, seed: int, n_requests: int) -> None:
        super().__init__()
        self._scheduler, self._rng, self._n_requests = scheduler, random.Random(seed), n_requests
        self.asked: list[tuple[list[int], GenerationConfig, CompletionStream, bool]] = []
        self.refused = 0

    def run(self) -> None:
        for _ in range(self._n_requests):
            prompt, config = random_request(self._rng)
            how = self._rng.choice(["", "", "", "", "at once", "after a piece", "later"])
            stream = self.submit(prompt, config)
            self.asked.append((prompt, config, stream, bool(how)))
            if how == "after a piece":
                next(iter(stream), None)
            elif how == "later":
                time.sleep(self._rng.random() * 0.02)
            if how:
                stream.cancel()

    def submit(self, prompt: list[int], config: GenerationConfig) -> CompletionStream:
        """Submit a request and retry while the queue is full."""
        while True:
            try:
                return self._scheduler.submit(prompt, config)
            except QueueFull:
                self.refused += 1
                time.sleep(0.005)


@pytest.mark.slow
def test_every_uncancelled_request_gets_the_text_it_gets_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 requests from 8 threads, random cancellations, one request that fails, and a queue that is often full."""
    rows, beside_poison = list[int](), list[int]()
    forward = MODEL.forward
    monkeypatch.setattr(
        MODEL, "forward", lambda ids, cache=None: rows.append(len(ids)) or forward(ids, cache)
    )
    poison(monkeypatch, draws=5, on_raise=lambda: beside_poison.append(rows[-1]))
    with scheduler_of(slots=8, max_queued=12) as scheduler:
        clients = [Client(scheduler, seed, 25) for seed in range(8)]
        for client in clients:
            client.start()
        poisoned = Client(scheduler, 8, 0).submit([1, 2], GenerationConfig(20, logit_bias=POISON))
        for client in clients:
            client.join()
        asked = [one for client in clients for one in client.asked]
        completions = [stream.result(PATIENCE) for _, _, stream, _ in asked]
        with pytest.raises(PoisonError):
            poisoned.result(PATIENCE)
    assert max(rows) == 8 and beside_poison[0] > 1, "requests shared steps"
    assert sum(client.refused for client in clients) > 0
    survived, started, reasons = 0, 0, set[str]()
    for (prompt, config, stream, cancelled), completion in zip(asked, completions, strict=True):
        expected = alone(prompt, config)
        assert "".join(stream) == completion.text
        if cancelled and completion.finish_reason == "cancelled":
            assert completion.token_ids == expected.token_ids[: len(completion.token_ids)]
            started += bool(completion.token_ids)
        else:
            assert content(completion) == content(expected)
            survived += 1
        reasons.add(completion.finish_reason)
    assert len(asked) == 200 and survived > 100
    assert started > 0, "some requests were cancelled while running"
    assert reasons >= {"cancelled", "length", "stop"}


def test_random_requests_cover_all_kinds() -> None:
    requests = [random_request(random.Random(seed)) for seed in range(100)]
    assert any(config.regex for _, config in requests) and any(config.json_schema for _, config in requests)
    assert any(len(prompt) > MODEL.context_length for prompt, _ in requests)
