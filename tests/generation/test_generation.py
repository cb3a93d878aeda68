"""Sampling against exact distributions; stop texts, end-of-text, streaming."""

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import LogitsOnly, tiny_model, write_one
from wholegpt.console import Console
from wholegpt.errors import ConfigError, NumericsError, TokenizerError
from wholegpt.generation import Engine, generate
from wholegpt.generation.stopping import StopSearch
from wholegpt.model import Transformer
from wholegpt.settings.schema import GenerationConfig
from wholegpt.tokenizers import Tokenizer, byte_tokenizer, train_character

CPU, QUIET = torch.device("cpu"), Console(quiet=True)


class Parrot(LogitsOnly):
    """Writes a fixed text after a prompt of one token, whatever that is."""

    def __init__(self, tokenizer: Tokenizer, text: str, then_end: bool = False) -> None:
        super().__init__(tokenizer.vocab_size, 10_000)
        self.script = tokenizer.encode(text) + [tokenizer.end_of_text_id] * then_end

    def forward(self, token_ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
        logits = torch.zeros(*token_ids.shape, self.vocab_size)
        for row, length in enumerate(cache.lengths.tolist()):
            for place in range(token_ids.shape[1]):
                logits[row, place, self.script[min(length + place, len(self.script) - 1)]] = 100.0
        self.prefill(token_ids, cache)
        return logits


def write(
    text: str, stop: tuple[str, ...] = (), then_end: bool = False, **settings: Any
) -> tuple[object, str]:
    tokenizer = byte_tokenizer()
    shown: list[str] = []
    config = GenerationConfig(
        **{"max_tokens": len(text.encode()), "temperature": 0, "stop": stop, **settings}
    )
    completion = write_one(Parrot(tokenizer, text, then_end), tokenizer, "x", config, shown.append)
    assert "".join(shown) == completion.text
    return completion.finish_reason, completion.text


def test_length_is_the_limit() -> None:
    assert write("hello", max_tokens=3) == ("length", "hel")
    assert write("hello", max_tokens=0) == ("length", "")


def test_end_of_text_ends() -> None:
    assert write("hi", then_end=True, max_tokens=50) == ("end_of_text", "hi")


def test_choices_spell_the_text() -> None:
    """A character comes with its last token; what ends the text is listed too."""
    tokenizer = byte_tokenizer()
    config = GenerationConfig(50, 0, stop=("!",), alternatives=2)
    for script, listed, text in (("é.", ["", "é", ".", "<|endoftext|>"], "é."), ("a!b", ["a", "!"], "a")):
        made = write_one(Parrot(tokenizer, script, then_end=True), tokenizer, "x", config)
        assert [one.text for one in made.choices] == listed and made.text == text
        assert all(one.surprisal_bits == 0 and one.alternatives[0][1] == 1 for one in made.choices)


def test_half_a_character_before_the_end() -> None:
    """Is shown as U+FFFD, and listed with what ended it."""
    tokenizer = byte_tokenizer()
    model = Parrot(tokenizer, "a")
    model.script += [0xC3, tokenizer.end_of_text_id]
    made = write_one(model, tokenizer, "x", GenerationConfig(9, 0, alternatives=1))
    assert made.text == "a\ufffd"
    assert "".join(one.text for one in made.choices) == "a\ufffd<|endoftext|>"


def test_a_text_that_cannot_go_on_ends_alone() -> None:
    """Its companions are written as if it were not there; nothing but such texts is an error."""
    tokenizer = byte_tokenizer()
    model = Parrot(tokenizer, "ab" * 20)
    free = GenerationConfig(30, 0)
    stuck = GenerationConfig(30, 0, regex="abc", banned=("c",))
    alone = write_one(model, tokenizer, "x", free)
    console = Console(quiet=True)
    prompt = [ord("x")]
    together = generate(model, tokenizer, [prompt] * 3, [free, stuck, free], CPU, console)
    assert [one.finish_reason for one in together] == ["length", "forbidden", "length"]
    assert [one.text for one in together] == [alone.text, "ab", alone.text]
    banned = dataclasses.replace(stuck, banned=("a",))
    with pytest.raises(ConfigError, match="every token is forbidden: banned, a repeated n-gram, or outside"):
        generate(model, tokenizer, [prompt], [banned], CPU, console)


def test_stop_texts_count_after_forced_ones() -> None:
    """And after the least number of tokens, whichever comes last."""
    found = write("a.b.i.c.d.e.f.", stop=(".",), forced=("i",), min_tokens=3)
    assert found == ("stop", "a.b.i")
    assert write("a.b.i.c.d.", stop=(".",), forced=("i",), min_tokens=7) == ("stop", "a.b.i.c")


def test_no_stop_before_the_least_length() -> None:
    assert write("a.b.c.", stop=(".",)) == ("stop", "a")
    assert write("a.b.c.", stop=(".",), min_tokens=2) == ("stop", "a.b")
    assert write("a.b.c.", stop=(".",), min_tokens=4) == ("stop", "a.b.c")
    assert write("hi", then_end=True, max_tokens=50, min_tokens=4) == ("end_of_text", "hi\0\0")


def test_time_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token takes a second; after two and a half the third is the last."""
    clock = itertools.count()
    monkeypatch.setattr("wholegpt.generation.request.time.perf_counter", lambda: float(next(clock)))
    assert write("abcdef", max_seconds=2.5) == ("time", "abc")


def test_stop_texts_across_token_borders() -> None:
    assert write("one\n\ntwo", stop=("\n\n",)) == ("stop", "one")
    assert write("ababac", stop=("abac",)) == ("stop", "ab")
    assert write("abcdef", stop=("ef", "cd")) == ("stop", "ab")
    assert write("abab", stop=("abc",)) == ("length", "abab")
    assert write("né!", stop=("é",)) == ("stop", "n")


@given(
    st.text("ab", max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(1, 3)),
)
def test_stopping_in_pieces_equals_cutting_the_whole(text: str, stops: list[str], sizes: list[int]) -> None:
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
        # Pieces arrive in order, so the stop text that is complete first ends it.
        first_complete = min(text.find(stop) + len(stop) for stop in stops if stop in text)
        assert text.startswith(shown) and len(shown) < first_complete
        assert not any(stop in shown for stop in stops)


def test_a_long_prompt_keeps_its_tail_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = train_character(["abc"])
    model = Transformer(tiny_model(vocab_size=tokenizer.vocab_size)).eval()
    config = GenerationConfig(max_tokens=5, temperature=0)
    long = write_one(model, tokenizer, "abc" * 10 + "aabbccaabbcc", config, console=Console())
    assert "the prompt has 42 tokens; the model sees the last 12" in capsys.readouterr().err
    assert long.text == write_one(model, tokenizer, "aabbccaabbcc", config).text


def test_the_same_seed_gives_the_same_text() -> None:
    tokenizer = train_character(["abcdef"])
    model = Transformer(tiny_model(vocab_size=tokenizer.vocab_size)).eval()
    texts = [
        write_one(model, tokenizer, "a", GenerationConfig(20, 1.0, seed=seed)).text for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_bad_prompts_and_settings() -> None:
    tokenizer = train_character(["abc"])
    model = Transformer(tiny_model(vocab_size=tokenizer.vocab_size)).eval()
    with pytest.raises(TokenizerError, match="character 'z'"):
        write_one(model, tokenizer, "az", GenerationConfig())
    with pytest.raises(ConfigError, match="top_p is 0"):
        write_one(model, tokenizer, "a", GenerationConfig(top_p=0))


@pytest.mark.parametrize(
    "changes", [{"banned": "ab"}, {"forced": "zz"}, {"temperature": 0.0, "banned": ["a", "f"]}]
)
def test_settings_by_name(changes: dict[str, Any]) -> None:
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
    completion = write_one(Parrot(tokenizer, "abc"), tokenizer, "x", GenerationConfig(3, 0))
    assert 0 < completion.tokens_per_second < math.inf


class Nothing(LogitsOnly):
    """Gives no numbers."""

    def forward(self, token_ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
        return torch.full((*token_ids.shape, self.vocab_size), math.nan)


def test_a_model_that_gives_no_numbers() -> None:
    tokenizer = byte_tokenizer()
    with pytest.raises(NumericsError, match="the model produces NaN"):
        write_one(Nothing(tokenizer.vocab_size, 10), tokenizer, "x", GenerationConfig(3))


def test_a_text_that_does_not_fit_its_slot() -> None:
    tokenizer = byte_tokenizer()
    engine = Engine(Parrot(tokenizer, "abc"), tokenizer, CPU, 1, 10)
    with pytest.raises(ConfigError, match="take 11 positions; a slot has 10"):
        engine.submit([1], GenerationConfig(10))
