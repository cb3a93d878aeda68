"""Sampling against exact distributions; stop texts, end-of-text, streaming."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import tiny_model
from wholegpt.config import GenerationConfig
from wholegpt.console import Console
from wholegpt.errors import ConfigError, TokenizerError
from wholegpt.generation import generate
from wholegpt.generation.decoding import before_stop
from wholegpt.model import Transformer
from wholegpt.tokenizers import Tokenizer, byte_tokenizer, train_character

CPU, QUIET = torch.device("cpu"), Console(quiet=True)


class Parrot(torch.nn.Module):
    """Writes a fixed text, whatever it reads."""

    def __init__(self, tokenizer: Tokenizer, text: str, then_end: bool = False) -> None:
        super().__init__()
        self.vocab_size, self.context_length = tokenizer.vocab_size, 10_000
        self.script = tokenizer.encode(text) + [tokenizer.end_of_text_id] * then_end
        self.place = 0

    def forward(self, token_ids: torch.Tensor, cache: object = None) -> torch.Tensor:
        logits = torch.zeros(*token_ids.shape, self.vocab_size)
        logits[:, -1, self.script[min(self.place, len(self.script) - 1)]] = 100.0
        self.place += 1
        return logits

    def logits_at(self, *arguments: Any, **named: Any) -> torch.Tensor:
        raise AssertionError

    def read(self, *arguments: Any, **named: Any) -> None:
        raise AssertionError

    def repeated(self, batch_size: int, capacity: int) -> "Parrot":
        raise AssertionError

    def new_cache(self, batch_size: int, capacity: int = 0) -> "Parrot":
        return self

    @property
    def length(self) -> int:
        return 0

    def clear(self) -> None: ...


def write(
    text: str, stop: tuple[str, ...] = (), then_end: bool = False, **settings: float
) -> tuple[object, str]:
    tokenizer = byte_tokenizer()
    shown: list[str] = []
    config = GenerationConfig(
        **{"max_tokens": len(text.encode()), "temperature": 0, "stop": stop, **settings}
    )
    completion = generate(Parrot(tokenizer, text, then_end), tokenizer, "x", config, CPU, QUIET, shown.append)
    assert "".join(shown) == completion.text
    return completion.finish_reason, completion.text


def test_length_is_the_limit() -> None:
    assert write("hello", max_tokens=3) == ("length", "hel")
    assert write("hello", max_tokens=0) == ("length", "")


def test_end_of_text_ends() -> None:
    assert write("hi", then_end=True, max_tokens=50) == ("end_of_text", "hi")


def test_no_stop_before_the_least_length() -> None:
    assert write("a.b.c.", stop=(".",)) == ("stop", "a")
    assert write("a.b.c.", stop=(".",), min_tokens=2) == ("stop", "a.b")
    assert write("a.b.c.", stop=(".",), min_tokens=4) == ("stop", "a.b.c")
    assert write("hi", then_end=True, max_tokens=50, min_tokens=4) == ("end_of_text", "hi\0\0")


def test_time_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token takes a second; after two and a half the third is the last."""
    clock = itertools.count()
    monkeypatch.setattr("wholegpt.generation.decoding.time.perf_counter", lambda: float(next(clock)))
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
    def pieces() -> Iterator[str]:
        rest = text
        for size in itertools.chain(sizes, itertools.repeat(1)):
            if not rest:
                return
            yield rest[:size]
            rest = rest[size:]

    written = list(before_stop(pieces(), stops))
    found = [text.find(stop) for stop in stops if stop in text]
    stopped = None in written
    assert stopped == bool(found)
    shown = "".join(piece for piece in written if piece is not None)
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
    long = generate(model, tokenizer, "abc" * 10 + "aabbccaabbcc", config, CPU, Console())
    assert "the prompt has 42 tokens; the model sees the last 12" in capsys.readouterr().err
    assert long.text == generate(model, tokenizer, "aabbccaabbcc", config, CPU, QUIET).text


def test_the_same_seed_gives_the_same_text() -> None:
    tokenizer = train_character(["abcdef"])
    model = Transformer(tiny_model(vocab_size=tokenizer.vocab_size)).eval()
    texts = [
        generate(model, tokenizer, "a", GenerationConfig(20, 1.0, seed=seed), CPU, QUIET).text
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_bad_prompts_and_settings() -> None:
    tokenizer = train_character(["abc"])
    model = Transformer(tiny_model(vocab_size=tokenizer.vocab_size)).eval()
    with pytest.raises(TokenizerError, match="character 'z'"):
        generate(model, tokenizer, "az", GenerationConfig(), CPU, QUIET)
    with pytest.raises(ConfigError, match="top_p is 0"):
        generate(model, tokenizer, "a", GenerationConfig(top_p=0), CPU, QUIET)


@pytest.mark.parametrize(
    "changes", [{"banned": "ab"}, {"forced": "zz"}, {"temperature": 0.0, "banned": ["a", "f"]}]
)
def test_settings_by_name(changes: dict[str, Any]) -> None:
    from wholegpt.language_model import LanguageModel

    tokenizer = train_character(["abcdefz"])
    lm = LanguageModel(Transformer(tiny_model(vocab_size=tokenizer.vocab_size)), tokenizer)
    text = lm.generate("a", max_tokens=40, console=QUIET, **changes).text
    assert "ab" not in text if changes.get("banned") == "ab" else True
    assert "zz" in text if "forced" in changes else True
    with pytest.raises(ConfigError, match="unknown field 'temprature'; did you mean 'temperature'"):
        lm.generate("a", temprature=1.0)


def test_speed_is_tokens_over_seconds() -> None:
    tokenizer = byte_tokenizer()
    completion = generate(Parrot(tokenizer, "abc"), tokenizer, "x", GenerationConfig(3, 0), CPU, QUIET)
    assert 0 < completion.tokens_per_second < math.inf
