"""Greedy and sampled generation: stop strings, end-of-text, limits, streaming and errors."""

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import LogitsOnly, generate_one, tiny_model
from wholegpt.console import Console
from wholegpt.errors import ConfigError, NumericsError, TokenizerError
from wholegpt.generation import Engine, generate
from wholegpt.generation.stopping import StopSearch
from wholegpt.model import Transformer
from wholegpt.settings.schema import GenerationConfig
from wholegpt.tokenizers import Tokenizer, byte_tokenizer, train_character

CPU, QUIET = torch.device("cpu"), Console(quiet=True)


class ScriptedModel(LogitsOnly):
    """Generates a fixed text after a prompt of one token, whatever that token is."""

    def __init__(self, tokenizer: Tokenizer, text: str, then_end: bool = False) -> None:
        super().__init__(tokenizer.vocab_size, 10_000)
        self.script = tokenizer.encode(text) + [tokenizer.end_of_text_id] * then_end

    def forward(self, token_ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
        logits = torch.zeros(*token_ids.shape, self.vocab_size)
        for row, length in enumerate(cache.lengths.tolist()):
            for position in range(token_ids.shape[1]):
                logits[row, position, self.script[min(length + position, len(self.script) - 1)]] = 100.0
        self.prefill(token_ids, cache)
        return logits


def generate_scripted(
    text: str, stop: tuple[str, ...] = (), then_end: bool = False, **settings: Any
) -> tuple[object, str]:
    tokenizer = byte_tokenizer()
    shown: list[str] = []
    config = GenerationConfig(
        **{"max_tokens": len(text.encode()), "temperature": 0, "stop": stop, **settings}
    )
    completion = generate_one(ScriptedModel(tokenizer, text, then_end), tokenizer, "x", config, shown.append)
    assert "".join(shown) == completion.text
    return completion.finish_reason, completion.text


def test_max_tokens_limits_the_length() -> None:
    assert generate_scripted("hello", max_tokens=3) == ("length", "hel")
    assert generate_scripted("hello", max_tokens=0) == ("length", "")


def test_end_of_text_ends_generation() -> None:
    assert generate_scripted("hi", then_end=True, max_tokens=50) == ("end_of_text", "hi")


def test_choices_list_the_text_of_each_token() -> None:
    """A character is listed with its last token; the token that ended generation is listed too."""
    tokenizer = byte_tokenizer()
    config = GenerationConfig(50, 0, stop=("!",), alternatives=2)
    for script, listed, text in (("é.", ["", "é", ".", "<|endoftext|>"], "é."), ("a!b", ["a", "!"], "a")):
        made = generate_one(ScriptedModel(tokenizer, script, then_end=True), tokenizer, "x", config)
        assert [one.text for one in made.choices] == listed and made.text == text
        assert all(one.surprisal_bits == 0 and one.alternatives[0][1] == 1 for one in made.choices)


def test_incomplete_character_at_the_end_becomes_u_fffd() -> None:
    """The replacement character is listed with the token that ended generation."""
    tokenizer = byte_tokenizer()
    model = ScriptedModel(tokenizer, "a")
    model.script += [0xC3, tokenizer.end_of_text_id]
    made = generate_one(model, tokenizer, "x", GenerationConfig(9, 0, alternatives=1))
    assert made.text == "a\ufffd"
    assert "".join(one.text for one in made.choices) == "a\ufffd<|endoftext|>"


def test_request_without_an_allowed_token_ends_alone() -> None:
    """Other sequences in the batch are unaffected; it is an error only if no request can continue."""
    tokenizer = byte_tokenizer()
    model = ScriptedModel(tokenizer, "ab" * 20)
    free = GenerationConfig(30, 0)
    stuck = GenerationConfig(30, 0, regex="abc", banned=("c",))
    alone = generate_one(model, tokenizer, "x", free)
    console = Console(quiet=True)
    prompt = [ord("x")]
    together = generate(model, tokenizer, [prompt] * 3, [free, stuck, free], CPU, console)
    assert [one.finish_reason for one in together] == ["length", "forbidden", "length"]
    assert [one.text for one in together] == [alone.text, "ab", alone.text]
    banned = dataclasses.replace(stuck, banned=("a",))
    with pytest.raises(ConfigError, match="every token is forbidden: banned, a repeated n-gram, or outside"):
        generate(model, tokenizer, [prompt], [banned], CPU, console)


def test_stop_strings_count_only_after_forced_texts_and_min_tokens() -> None:
    found = generate_scripted("a.b.i.c.d.e.f.", stop=(".",), forced=("i",), min_tokens=3)
    assert found == ("stop", "a.b.i")
    assert generate_scripted("a.b.i.c.d.", stop=(".",), forced=("i",), min_tokens=7) == ("stop", "a.b.i.c")


def test_generation_does_not_stop_before_min_tokens() -> None:
    assert generate_scripted("a.b.c.", stop=(".",)) == ("stop", "a")
    assert generate_scripted("a.b.c.", stop=(".",), min_tokens=2) == ("stop", "a.b")
    assert generate_scripted("a.b.c.", stop=(".",), min_tokens=4) == ("stop", "a.b.c")
    assert generate_scripted("hi", then_end=True, max_tokens=50, min_tokens=4) == ("end_of_text", "hi\0\0")


def test_max_seconds_ends_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock advances one second per token, so a limit of 2.5 seconds stops after the third token."""
    clock = itertools.count()
    monkeypatch.setattr("wholegpt.generation.request.time.perf_counter", lambda: float(next(clock)))
    assert generate_scripted("abcdef", max_seconds=2.5) == ("time", "abc")


def test_stop_strings_match_across_tokens() -> None:
    assert generate_scripted("one\n\ntwo", stop=("\n\n",)) == ("stop", "one")
    assert generate_scripted("ababac", stop=("abac",)) == ("stop", "ab")
    assert generate_scripted("abcdef", stop=("ef", "cd")) == ("stop", "ab")
    assert generate_scripted("abab", stop=("abc",)) == ("length", "abab")
    assert generate_scripted("né!", stop=("é",)) == ("stop", "n")


@given(
    st.text("ab", max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(1, 3)),
)
def test_incremental_stop_search_equals_truncating_the_whole_text(
    text: str, stops: list[str], sizes: list[int]
) -> None:
    search, shown, rest = StopSearch(stops), "", text
    for size in itertools.chain(sizes, itertools.repeat(1)):
        if not rest or search.found:
            break
        shown += search.push(rest[:size])
        rest = rest[size:]
    shown += search.finish()
    found = [text.find(stop) for stop in stops if stop in text]
    assert search.found == bool(found)
    if not found:
        assert shown == text
    else:
        # Pieces arrive in order, so the first stop string to be completed ends the text.
        first_complete = min(text.find(stop) + len(stop) for stop in stops if stop in text)
        assert text.startswith(shown) and len(shown) < first_complete
        assert not any(stop in shown for stop in stops)


def test_long_prompt_is_truncated_to_its_tail_with_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = train_character(["abc"])
    model = Transformer(tiny_model(vocab_size=tokenizer.vocab_size)).eval()
    config = GenerationConfig(max_tokens=5, temperature=0)
    long = generate_one(model, tokenizer, "abc" * 10 + "aabbccaabbcc", config, console=Console())
    assert "the prompt has 42 tokens; the model sees the last 12" in capsys.readouterr().err
    assert long.text == generate_one(model, tokenizer, "aabbccaabbcc", config).text


def test_same_seed_gives_the_same_text() -> None:
    tokenizer = train_character(["abcdef"])
    model = Transformer(tiny_model(vocab_size=tokenizer.vocab_size)).eval()
    texts = [
        generate_one(model, tokenizer, "a", GenerationConfig(20, 1.0, seed=seed)).text for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_invalid_prompts_and_settings_are_rejected() -> None:
    tokenizer = train_character(["abc"])
    model = Transformer(tiny_model(vocab_size=tokenizer.vocab_size)).eval()
    with pytest.raises(TokenizerError, match="character 'z'"):
        generate_one(model, tokenizer, "az", GenerationConfig())
    with pytest.raises(ConfigError, match="top_p is 0"):
        generate_one(model, tokenizer, "a", GenerationConfig(top_p=0))


@pytest.mark.parametrize(
    "changes", [{"banned": "ab"}, {"forced": "zz"}, {"temperature": 0.0, "banned": ["a", "f"]}]
)
def test_settings_can_be_passed_by_name(changes: dict[str, Any]) -> None:
    from wholegpt.language_model import LanguageModel

    tokenizer = train_character(["abcdefz"])
    lm: Any = LanguageModel(Transformer(tiny_model(vocab_size=tokenizer.vocab_size)), tokenizer)
    text = lm.generate("a", max_tokens=40, console=QUIET, **changes).text
    assert "ab" not in text if changes.get("banned") == "ab" else True
    assert "zz" in text if "forced" in changes else True
    with pytest.raises(ConfigError, match="no parameter 'temprature'; did you mean 'temperature'"):
        lm.generate("a", temprature=1.0)


def test_speed_is_tokens_over_seconds() -> None:
    tokenizer = byte_tokenizer()
    completion = generate_one(ScriptedModel(tokenizer, "abc"), tokenizer, "x", GenerationConfig(3, 0))
    assert 0 < completion.tokens_per_second < math.inf


class NaNModel(LogitsOnly):
    """Returns NaN for every logit."""

    def forward(self, token_ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
        return torch.full((*token_ids.shape, self.vocab_size), math.nan)


def test_nan_logits_are_an_error() -> None:
    tokenizer = byte_tokenizer()
    with pytest.raises(NumericsError, match="the model produces NaN"):
        generate_one(NaNModel(tokenizer.vocab_size, 10), tokenizer, "x", GenerationConfig(3))


def test_request_longer_than_its_slot_is_rejected() -> None:
    tokenizer = byte_tokenizer()
    engine = Engine(ScriptedModel(tokenizer, "abc"), tokenizer, CPU, 1, 10)
    with pytest.raises(ConfigError, match="take 11 positions; a slot has 10"):
        engine.submit([1], GenerationConfig(10))
