"""An error in one request reaches its submitter only, and NaN is detected at every position."""

import dataclasses
import math
import string
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import LogitsOnly, generate_one, tiny_model
from tests.parity.test_plain import randomized
from wholegpt.console import Console
from wholegpt.errors import ConfigError, NumericsError
from wholegpt.generation import Engine, GenerationRequest, Sampler, beam_search, generate
from wholegpt.generation.sampling import Draw
from wholegpt.generation.speculation import DraftModel, PromptLookup
from wholegpt.model import Transformer
from wholegpt.settings.schema import GenerationConfig
from wholegpt.tokenizers import byte_tokenizer, character_tokenizer

CPU, QUIET = torch.device("cpu"), Console(quiet=True)
TOKENIZER = character_tokenizer([string.ascii_lowercase + string.digits + "."])
MODELS = {kind: randomized(kind) for kind in ("modern", "gpt2", "window", "linear")}
PROMPTS = st.lists(st.integers(0, 36), min_size=1, max_size=8)


class CallerError(Exception):
    """An error raised by the caller's own code."""


def failing_after(calls: int) -> Callable[[str], None]:
    """Return an ``emit`` callback that raises at its n-th call."""
    left = [calls]

    def emit(text: str) -> None:
        left[0] -= 1
        if left[0] <= 0:
            raise CallerError("emit")

    return emit


class FailingDrafter(PromptLookup):
    """Drafts by prompt lookup and raises in one of its two methods after some calls."""

    def __init__(self, calls: int, method: str) -> None:
        super().__init__(1)
        self._left, self._method = calls, method

    def _called(self, method: str) -> None:
        if method == self._method:
            self._left -= 1
            if self._left <= 0:
                raise CallerError(method)

    def propose(self, token_ids: Sequence[int], most: int) -> list[int]:
        self._called("propose")
        return super().propose(token_ids, most)

    def update(self, drafted: int, accepted: int) -> None:
        self._called("update")
        super().update(drafted, accepted)


def break_sampler(request: GenerationRequest, calls: int) -> None:
    """Make a request's processors raise at their n-th call."""
    draw, left = request.sampler.draw, [calls]

    def failing(logits: torch.Tensor, generated: Sequence[int]) -> Draw:
        left[0] -= 1
        if left[0] <= 0:
            raise CallerError("sampler")
        return draw(logits, generated)

    request.sampler.draw = failing
    request.sampler.shared = None  # only processors that depend on the text can fail in one request


@settings(max_examples=20)
@given(
    st.sampled_from(sorted(MODELS)),
    st.lists(
        st.tuples(
            PROMPTS,
            st.integers(1, 10),
            st.sampled_from(["", "", "emit", "propose", "update", "sampler"]),
            st.integers(1, 6),
            st.integers(0, 6),
        ),
        min_size=2,
        max_size=5,
    ),
    st.integers(1, 4),
)
def test_failure_ends_one_request_only(
    kind: str, asked: list[tuple[list[int], int, str, int, int]], slots: int
) -> None:
    """Whichever callback fails at whichever step, the other requests generate what they generate alone, in float64."""
    model = MODELS[kind]
    if not model.new_cache(1).can_rewind:
        asked = [(p, n, "emit" if how in ("propose", "update") else how, c, a) for p, n, how, c, a in asked]
    engine = Engine(model, TOKENIZER, CPU, slots=slots)
    waiting = sorted(enumerate(asked), key=lambda one: one[1][4])
    requests: dict[int, GenerationRequest] = {}
    for step in range(1000):
        while waiting and waiting[0][1][4] <= step:
            number, (prompt, tokens, how, calls, _) = waiting.pop(0)
            config = GenerationConfig(tokens, 1.0, seed=number)
            emit = failing_after(calls) if how == "emit" else lambda text: None
            drafter = FailingDrafter(calls, how) if how in ("propose", "update") else None
            requests[number] = engine.submit(prompt, config, emit, drafter)
            if how == "sampler":
                break_sampler(requests[number], calls)
        engine.step()
        if not waiting and not engine.busy:
            break
    for number, (prompt, tokens, how, _, _) in enumerate(asked):
        one = requests[number]
        alone = generate_one(model, TOKENIZER, prompt, GenerationConfig(tokens, 1.0, seed=number))
        if one.error is None:
            assert one.completion().token_ids == alone.token_ids
            assert one.finish_reason == alone.finish_reason
        else:
            assert isinstance(one.error, CallerError) and how and one.finish_reason == "error"
            assert alone.token_ids[: len(one.token_ids)] == one.token_ids


def test_emit_error_reaches_the_caller_after_other_requests_finish() -> None:
    shown = ["", "", ""]

    def emit(number: int, text: str) -> None:
        shown[number] += text
        if number == 1 and len(shown[1]) > 3:
            raise CallerError("no more")

    configs = [GenerationConfig(12, 1.0, seed=seed) for seed in range(3)]
    with pytest.raises(CallerError, match="no more"):
        generate(MODELS["modern"], TOKENIZER, [[1, 2]] * 3, configs, CPU, QUIET, emit)
    for number in (0, 2):
        assert shown[number] == generate_one(MODELS["modern"], TOKENIZER, [1, 2], configs[number]).text


def test_config_error_raised_by_emit_is_not_swallowed() -> None:
    """A caller's ``ConfigError`` must not be mistaken for a request without allowed tokens, which only warns."""
    shown: list[str] = []

    def emit(number: int, text: str) -> None:
        shown.append(text)
        if len(shown) == 3:
            raise ConfigError("mine")

    with pytest.raises(ConfigError, match="mine"):
        generate(MODELS["modern"], TOKENIZER, [[1]], [GenerationConfig(9)], CPU, QUIET, emit)


def test_model_error_ends_running_requests_but_not_waiting_ones() -> None:
    class Fails(LogitsOnly):
        calls = 0

        def forward(self, token_ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
            self.calls += 1
            if self.calls == 3:
                raise RuntimeError("out of memory")
            self.prefill(token_ids, cache)
            return torch.zeros(*token_ids.shape, self.vocab_size)

    engine = Engine(Fails(37, 100), TOKENIZER, CPU, slots=2)
    requests = [engine.submit([1], GenerationConfig(5)) for _ in range(3)]
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.run()
    assert [one.finish_reason for one in requests] == ["error", "error", ""]
    engine.run()
    assert requests[2].finish_reason == "length"


def test_invalid_token_ids_are_rejected() -> None:
    engine = Engine(MODELS["modern"], TOKENIZER, CPU)
    for prompt, problem in (
        ([], "has 0 tokens"),
        ([37], "token id 37; expected ids"),
        ([-1, 2], "token id -1"),
    ):
        with pytest.raises(ConfigError, match=problem):
            engine.submit(prompt, GenerationConfig(5))

    class Wrong:
        def propose(self, token_ids: Sequence[int], most: int) -> list[int]:
            return [99]

        def update(self, drafted: int, accepted: int) -> None:
            raise AssertionError

    wrong = engine.submit([1], GenerationConfig(5), drafter=Wrong())
    engine.run()
    assert isinstance(wrong.error, ValueError) and "proposed [99]" in str(wrong.error)


class FixedLogits(LogitsOnly):
    """After token t, the logit in column ``position`` is ``values[t]``; all others are 0."""

    def __init__(self, values: dict[int, float], position: int) -> None:
        super().__init__(37, 100)
        self.values, self.position = values, position

    def forward(self, token_ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
        logits = torch.zeros(*token_ids.shape, self.vocab_size)
        for token, value in self.values.items():
            logits[..., self.position] = logits[..., self.position].masked_fill(token_ids == token, value)
        self.prefill(token_ids, cache)
        return logits


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("position", [0, 5, 36])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_non_finite_logits_fail_their_request_only(value: float, position: int, temperature: float) -> None:
    model = FixedLogits({9: value}, position)
    engine = Engine(model, TOKENIZER, CPU, slots=3)
    config = GenerationConfig(8, temperature, logit_bias=((9, -1e6),))
    good, bad, other = (engine.submit([token], config) for token in (1, 9, 2))
    engine.run()
    assert isinstance(bad.error, NumericsError) and "produces NaN or infinite logits" in str(bad.error)
    assert bad.token_ids == []
    for one, token in ((good, 1), (other, 2)):
        assert one.token_ids == generate_one(model, TOKENIZER, [token], config).token_ids
        assert len(one.token_ids) == 8
    with pytest.raises(NumericsError, match="NaN or infinite"):
        generate(model, TOKENIZER, [[1], [9]], [config] * 2, CPU, QUIET)


def test_minus_infinity_logits_are_allowed() -> None:
    """A model may rule out some tokens, but not all of them."""
    assert (
        generate_one(FixedLogits({1: -math.inf}, 3), TOKENIZER, [1], GenerationConfig(5)).finish_reason
        == "length"
    )

    class Nothing(FixedLogits):
        def forward(self, token_ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
            return torch.full_like(super().forward(token_ids, cache), -math.inf)

    with pytest.raises(NumericsError, match="NaN or infinite"):
        generate(Nothing({}, 0), TOKENIZER, [[1]], [GenerationConfig(5)], CPU, QUIET)


@pytest.mark.parametrize("kind", ["modern", "gpt2", "window", "linear"])
def test_nan_does_not_leak_to_the_next_request_in_a_slot(kind: str) -> None:
    """With NaN in one embedding, a request that uses the token leaves no NaN in the cache of its slot."""
    model = randomized(kind)
    with torch.no_grad():
        model.token_embedding.weight[9] = math.nan
        model.unembedding = type(model.unembedding)(model.config.d_model, 37, bias=False).double()
        torch.nn.init.normal_(model.unembedding.weight, std=0.1)
    config = GenerationConfig(6, 0, logit_bias=((9, -1e6),))
    engine = Engine(model, TOKENIZER, CPU, slots=2)
    prompts = [[1, 2, 3], [4, 5, 6, 7, 9, 9, 9], [8], [10, 11], [9, 1], [12, 13, 14]]
    requests = [engine.submit(prompt, config) for prompt in prompts]
    engine.run()
    for prompt, one in zip(prompts, requests, strict=True):
        if 9 in prompt:
            assert isinstance(one.error, NumericsError)
        else:
            assert one.token_ids == generate_one(model, TOKENIZER, prompt, config).token_ids


def test_beam_search_and_draft_models_detect_nan() -> None:
    damaged = FixedLogits({9: math.nan}, 7)
    config = GenerationConfig(5, 0)
    with pytest.raises(NumericsError, match="NaN or infinite"):
        beam_search(damaged, TOKENIZER, [9], config, 2, 1.0, CPU, QUIET)
    drafter = DraftModel(damaged, Sampler(config, TOKENIZER, [9]), CPU)
    engine = Engine(FixedLogits({}, 0), TOKENIZER, CPU)
    request = engine.submit([9], config, drafter=drafter)
    engine.run()
    assert isinstance(request.error, NumericsError) and "draft: the model produces NaN" in str(request.error)


TEXT_LIMITS: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": 2**20 + 1}, "max_tokens is 1048577; expected a value from 0 to 1,048,576"),
    ({"top_k": 10**30}, "top_k is"),
    ({"alternatives": 101}, "alternatives is 101; expected a value from 0 to 100"),
    ({"alternatives": 100, "max_tokens": 200_000}, "alternatives times max_tokens is 20,000,000"),
    ({"stop": ("a",) * 1001}, "stop has 1,001 texts; expected at most 1,000"),
    ({"stop": ("a" * 1001,)}, "stop contains a text of 1,001 characters; expected at most 1,000"),
    ({"banned": ("b" * 1001,)}, "banned contains a text of 1,001 characters"),
    ({"forced": ("a",) * 1001}, "forced has 1,001 texts"),
    ({"logit_bias": ((1, 0.0),) * 100_001}, "logit_bias has 100,001 entries"),
    ({"no_repeat_ngram": 1001}, "no_repeat_ngram is 1001"),
    ({"seed": 2**63}, "seed is 9223372036854775808"),
]


@pytest.mark.parametrize(("chosen", "problem"), TEXT_LIMITS)
def test_generation_settings_have_limits(chosen: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Sampler(GenerationConfig(**chosen))


def test_engine_limits_are_enforced(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("engine", "decoding"):
        monkeypatch.setattr(f"wholegpt.generation.{name}.MOST_WAITING", 2)
    monkeypatch.setattr("wholegpt.generation.engine.MOST_PROMPT_TOKENS", 20)
    model, config = MODELS["modern"], GenerationConfig(2)
    engine = Engine(model, TOKENIZER, CPU)
    for _ in range(2):
        engine.submit([1], config)
    with pytest.raises(ConfigError, match="2 requests are waiting, which is the limit"):
        engine.submit([1], config)
    with pytest.raises(ConfigError, match="3 texts requested at once; expected at most 2"):
        generate(model, TOKENIZER, [[1]] * 3, [config] * 3, CPU, QUIET)
    with pytest.raises(ConfigError, match="the prompt has 21 tokens; expected 1 to 20"):
        Engine(model, TOKENIZER, CPU).submit([1] * 21, config)
    with pytest.raises(ConfigError, match="beams is 257; expected 1 to 256"):
        beam_search(model, TOKENIZER, [1], dataclasses.replace(config, temperature=0), 257, 1.0, CPU, QUIET)


def test_memory_estimate_includes_the_draft_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The draft model's cache has room for the text, not for the whole context."""
    tokenizer = byte_tokenizer()
    sizes = {"vocab_size": tokenizer.vocab_size, "context_length": 4096}
    model, draft = (Transformer(tiny_model(**sizes)).eval() for _ in range(2))
    capacities: list[int] = []
    new_cache = draft.new_cache
    monkeypatch.setattr(
        draft, "new_cache", lambda rows, capacity=0: capacities.append(capacity) or new_cache(rows, capacity)
    )
    one = model.cache_bytes(1, 10)
    monkeypatch.setattr("wholegpt.generation.memory.free_memory", lambda device: 2 * (3 * one))
    slots: list[int] = []

    class Watched(Engine):
        def __init__(self, *arguments: Any) -> None:
            slots.append(arguments[3])
            super().__init__(*arguments)

    monkeypatch.setattr("wholegpt.generation.decoding.Engine", Watched)
    configs = [GenerationConfig(8, 0)] * 4
    for drafting in ("", draft):
        generate(model, tokenizer, [[1, 2]] * 4, configs, CPU, QUIET, draft=drafting)
    assert slots == [3, 1]
    assert max(capacities) == 10
