"""Invariants of generation in float64: cached = uncached, batched = alone, streamed = whole, drafted = not drafted."""

import dataclasses
import string
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import generate_one, tiny_models
from tests.parity import test_plain
from tests.parity.test_plain import randomized
from wholegpt.console import Console
from wholegpt.errors import ConfigError
from wholegpt.generation import Engine, GenerationRequest, Sampler, generate, generate_ids
from wholegpt.generation.speculation import Drafter, DraftModel, PromptLookup
from wholegpt.model import CompiledTransformer, Transformer
from wholegpt.model.compiled import compilable
from wholegpt.settings.schema import GenerationConfig
from wholegpt.tokenizers import character_tokenizer, train_character

CPU, QUIET = torch.device("cpu"), Console(quiet=True)
TOKENIZER = character_tokenizer([string.ascii_lowercase + string.digits + "."])
MODELS = {name: randomized(name) for name in test_plain.MODELS}
KINDS = st.sampled_from(sorted(MODELS))
REWINDING = st.sampled_from([name for name, model in sorted(MODELS.items()) if model.new_cache(1).can_rewind])
FIXED = {
    name: CompiledTransformer(model, QUIET, compiler=lambda one, **_: one)
    for name, model in MODELS.items()
    if compilable(model)
}
"""Models with the fixed shapes of compiled decoding, run eagerly."""
PROMPTS = st.lists(st.integers(0, 36), min_size=1, max_size=20)


def settings(max_tokens: int) -> st.SearchStrategy[dict[str, Any]]:
    """Generate settings: greedy and sampled, with and without those that depend on the text so far."""
    return st.fixed_dictionaries(
        {
            "max_tokens": st.integers(1, max_tokens),
            "temperature": st.sampled_from([0.0, 0.7, 1.0]),
            "top_k": st.sampled_from([0, 20]),
            "top_p": st.sampled_from([1.0, 0.95]),
            "repetition_penalty": st.sampled_from([1.0, 1.2]),
            "stop": st.sampled_from([(), ("a",), ("bc", "7")]),
            "seed": st.integers(0, 2**31),
        }
    )


@given(KINDS, PROMPTS, settings(30))
def test_cached_equals_uncached(kind: str, prompt: list[int], chosen: dict[str, Any]) -> None:
    """Also beyond the context length."""
    config = GenerationConfig(**{**chosen, "stop": ()})
    cached = generate_one(MODELS[kind], TOKENIZER, prompt, config).token_ids
    assert cached == list(generate_ids(MODELS[kind], prompt, Sampler(config, None, prompt), CPU))
    assert len(cached) == config.max_tokens


@pytest.mark.parametrize("kind", tiny_models())
@pytest.mark.parametrize("context_length", [1, 2, 3])
def test_smallest_context_lengths(kind: str, context_length: int) -> None:
    config = dataclasses.replace(tiny_models()[kind], context_length=context_length)
    model = Transformer(config).double().eval()
    greedy = GenerationConfig(max_tokens=9, temperature=0)
    cached = generate_one(model, TOKENIZER, [1, 2, 3, 4], greedy).token_ids
    assert cached == list(generate_ids(model, [1, 2, 3, 4], Sampler(greedy), CPU))


@pytest.mark.slow
@given(
    KINDS,
    st.lists(st.integers(0, 36), max_size=20),
    st.lists(st.tuples(PROMPTS, settings(20), st.integers(0, 9)), min_size=1, max_size=7),
    st.integers(1, 4),
    st.integers(1, 30),
    st.integers(1, 30),
    st.booleans(),
)
def test_completion_does_not_depend_on_other_sequences_in_the_batch(
    kind: str,
    shared_prefix: list[int],
    ends: list[tuple[list[int], dict[str, Any], int]],
    slots: int,
    prefill_chunk: int,
    beyond_window: int,
    fixed: bool,
) -> None:
    """Requests arrive at any step, in any number of slots; prompts are prefilled in chunks of any size.

    The result depends neither on copied prefixes, nor on the cache's extra positions, nor on fixed shapes.
    """
    model = MODELS[kind]
    requests = [(shared_prefix + end, chosen, arrival) for end, chosen, arrival in ends]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wholegpt.generation.engine.PREFILL_CHUNK", prefill_chunk)
        patch.setattr("wholegpt.model.layers.cache.PREFILL_CHUNK", beyond_window)
        generator = FIXED.get(kind, model) if fixed else model
        engine = Engine(generator, TOKENIZER, CPU, slots=slots)
        waiting = sorted(enumerate(requests), key=lambda one: one[1][2])
        submitted: dict[int, GenerationRequest] = {}
        for step in range(10_000):
            while waiting and waiting[0][1][2] <= step:
                number, (prompt, chosen, _) = waiting.pop(0)
                submitted[number] = engine.submit(prompt, GenerationConfig(**chosen))
            engine.step()
            if not waiting and not engine.busy:
                break
    for number, (prompt, chosen, _) in enumerate(requests):
        together = submitted[number].completion()
        alone = generate_one(model, TOKENIZER, prompt, GenerationConfig(**chosen))
        assert (together.token_ids, together.text) == (alone.token_ids, alone.text)
        assert together.finish_reason == alone.finish_reason != ""


def prefilled(prompts: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Return the shapes of the prefilled token ids, and check that each completion equals the one generated alone."""
    model, shapes = MODELS["modern"], list[tuple[int, ...]]()
    prefill = model.prefill
    configs = [GenerationConfig(5, seed=seed) for seed in range(len(prompts))]
    engine = Engine(model, TOKENIZER, CPU, slots=4)
    requests = [engine.submit(*one) for one in zip(prompts, configs, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            model, "prefill", lambda ids, cache: shapes.append(tuple(ids.shape)) or prefill(ids, cache)
        )
        engine.run()
    for request, prompt, config in zip(requests, prompts, configs, strict=True):
        assert request.token_ids == generate_one(model, TOKENIZER, prompt, config).token_ids
    return shapes


def test_shared_prefix_is_prefilled_once() -> None:
    """All tokens of a prompt but the last are prefilled; the third prompt is a prefix of what was prefilled."""
    same = [20, 21, 22, 23, 24]
    assert prefilled([same, [*same, 5, 6], [*same, 5]]) == [(1, 4), (1, 2)]


def test_prompts_are_prefilled_in_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are padded to the longest, also after a shared prefix, unless padding costs too much."""
    assert prefilled([[1, 2, 3, 4], [5, 6, 7], [8], [9, 1]]) == [(2, 3), (1, 1)]
    assert prefilled([[1, 2, 3], [1, 2, 3, 4, 5, 6], [1, 2, 7, 8, 9, 1]]) == [(3, 5)]
    assert prefilled([[1, 2, 3], [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 7, 8]]) == [(1, 2), (2, 2)]
    monkeypatch.setattr("wholegpt.generation.engine.MOST_PADDING", 0)
    assert prefilled([[1, 2, 3, 4], [5, 6, 7]]) == [(1, 3), (1, 2)]
    assert prefilled([[1, 2, 3, 4], [5, 6, 7, 8]]) == [(2, 3)]


@given(KINDS, PROMPTS, settings(30))
def test_streamed_text_equals_the_completion(kind: str, prompt: list[int], chosen: dict[str, Any]) -> None:
    config, shown = GenerationConfig(**chosen), list[str]()
    completion = generate_one(MODELS[kind], TOKENIZER, prompt, config, shown.append)
    assert "".join(shown) == completion.text
    assert TOKENIZER.decode(completion.token_ids).startswith(completion.text)
    assert not any(stop in completion.text for stop in config.stop)


def test_end_of_text_ends_one_request_only() -> None:
    tokenizer = train_character(["abc"])
    config = dataclasses.replace(tiny_models()["gpt2"], vocab_size=tokenizer.vocab_size)
    torch.manual_seed(0)
    model = Transformer(config).double().eval()
    engine = Engine(model, tokenizer, CPU, slots=3)
    requests = [engine.submit([0], GenerationConfig(5, 1.0, seed=seed)) for seed in range(20)]
    engine.run()
    reasons = {request.finish_reason for request in requests}
    assert reasons == {"end_of_text", "length"}
    lengths = {len(request.token_ids) for request in requests}
    assert len(lengths) > 3


@pytest.mark.slow
@given(REWINDING, REWINDING, PROMPTS, settings(40), st.sampled_from(["lookup", "model", "oracle"]))
def test_speculative_decoding_does_not_change_the_completion(
    kind: str, other: str, prompt: list[int], chosen: dict[str, Any], drafter: str
) -> None:
    """Greedy and sampled, with good and bad draft tokens, also beyond the context length."""
    config, model = GenerationConfig(**chosen), MODELS[kind]
    alone = generate_one(model, TOKENIZER, prompt, config)
    sampler = Sampler(config, TOKENIZER, prompt)
    drafters: dict[str, Drafter] = {
        "lookup": PromptLookup(1),
        "model": DraftModel(MODELS[other], sampler, CPU),
        "oracle": DraftModel(model, sampler, CPU),
    }
    drafted = generate_one(model, TOKENIZER, prompt, config, drafter=drafters[drafter])
    assert (drafted.token_ids, drafted.text) == (alone.token_ids, alone.text)
    assert drafted.finish_reason == alone.finish_reason


@pytest.mark.parametrize("linear_drafts", [False, True])
def test_speculative_decoding_needs_a_cache_that_can_rewind(linear_drafts: bool) -> None:
    linear, other = MODELS["linear"], MODELS["modern"]
    model, draft = (other, linear) if linear_drafts else (linear, "prompt")
    with pytest.raises(ConfigError, match="a cache that can be rewound"):
        generate(model, TOKENIZER, [[1, 2, 3]], [GenerationConfig(5)], CPU, QUIET, draft=draft)


def test_drafting_stops_when_no_token_is_allowed() -> None:
    """With each letter allowed once, the draft runs out of tokens before the completion ends."""
    config = GenerationConfig(max_tokens=30, temperature=1, no_repeat_ngram=1, min_tokens=5)
    for seed in range(20):
        chosen = dataclasses.replace(config, seed=seed)
        prompt = list(range(seed, 30))
        alone = generate_one(MODELS["modern"], TOKENIZER, prompt, chosen)
        drafter = DraftModel(MODELS["modern"], Sampler(chosen, TOKENIZER, prompt), CPU)
        drafted = generate_one(MODELS["modern"], TOKENIZER, prompt, chosen, drafter=drafter)
        assert (drafted.token_ids, drafted.finish_reason) == (alone.token_ids, alone.finish_reason)


def test_accepted_draft_tokens_save_steps() -> None:
    """A drafter that knows the completion is asked once for all its tokens."""
    model, calls = MODELS["modern"], 0
    config = GenerationConfig(max_tokens=10, temperature=0)

    class Oracle:
        def propose(self, token_ids: Sequence[int], most: int) -> list[int]:
            return expected[len(token_ids) - 1 :][:most]

        def update(self, drafted: int, accepted: int) -> None:
            nonlocal calls
            calls += 1
            assert drafted == accepted

    expected = generate_one(model, TOKENIZER, [3], config).token_ids
    assert generate_one(model, TOKENIZER, [3], config, drafter=Oracle()).token_ids == expected
    assert calls == 1
