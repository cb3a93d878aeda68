"""Cancelling a request between engine steps leaves the output of other requests unchanged."""

import string

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import generate_one
from tests.parity.test_plain import randomized
from wholegpt.generation import Engine, GenerationRequest
from wholegpt.generation.speculation import PromptLookup
from wholegpt.settings.schema import GenerationConfig
from wholegpt.tokenizers import character_tokenizer

TOKENIZER = character_tokenizer([string.ascii_lowercase + string.digits + "."])
MODELS = {kind: randomized(kind) for kind in ("modern", "gpt2", "window", "linear")}
PROMPTS = st.lists(st.integers(0, 36), min_size=1, max_size=16)


@settings(max_examples=20)
@given(
    st.sampled_from(sorted(MODELS)),
    st.lists(
        st.tuples(PROMPTS, st.integers(1, 12), st.integers(0, 6), st.none() | st.integers(0, 12)),
        min_size=2,
        max_size=6,
    ),
    st.integers(1, 4),
    st.integers(1, 20),
)
def test_cancelling_does_not_change_other_requests(
    kind: str, asked: list[tuple[list[int], int, int, int | None]], slots: int, prefill_chunk: int
) -> None:
    """A request is cancelled at any time: while it waits, during prefill or during decoding."""
    model = MODELS[kind]
    requests: dict[int, GenerationRequest] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wholegpt.generation.engine.PREFILL_CHUNK", prefill_chunk)
        engine = Engine(model, TOKENIZER, torch.device("cpu"), slots=slots)
        for step in range(1000):
            for number, (prompt, tokens, arrival, cancelled) in enumerate(asked):
                if arrival == step:
                    requests[number] = engine.submit(prompt, GenerationConfig(tokens, 1.0, seed=number))
                if number in requests and cancelled is not None and arrival + cancelled == step:
                    ended = requests[number].finish_reason
                    engine.cancel(requests[number])
                    assert requests[number].finish_reason == (ended or "cancelled")
            engine.step()
            if step > 20 and not engine.busy:
                break
    assert engine.free_slots == slots
    for number, (prompt, tokens, _, cancelled) in enumerate(asked):
        one = requests[number].completion()
        alone = generate_one(model, TOKENIZER, prompt, GenerationConfig(tokens, 1.0, seed=number))
        if one.finish_reason == "cancelled":
            assert cancelled is not None
            assert alone.token_ids[: len(one.token_ids)] == one.token_ids
            assert alone.text.startswith(one.text) and len(one.text) == len(one.token_ids)
        else:
            assert (one.token_ids, one.text) == (alone.token_ids, alone.text)


def test_emit_error_while_cancelling_fails_only_its_request() -> None:
    def emit(text: str) -> None:
        raise OSError("nobody listens")

    engine = Engine(MODELS["modern"], TOKENIZER, torch.device("cpu"), slots=2)
    held, other = (
        engine.submit([1], GenerationConfig(9, 0, stop=("." * 20,)), emit=one)
        for one in (emit, lambda text: None)
    )
    engine.cancel(held)
    assert isinstance(held.error, OSError) and held.finish_reason == "error"
    engine.run()
    assert other.finish_reason == "length"


def test_cancelling_frees_the_drafter() -> None:
    engine = Engine(MODELS["modern"], TOKENIZER, torch.device("cpu"), slots=1)
    request = engine.submit([1, 2], GenerationConfig(9), drafter=PromptLookup())
    engine.step()
    engine.cancel(request)
    assert request._drafter is None and not engine.busy
