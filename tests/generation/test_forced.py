"""Texts that have to be written: always there, whatever the model likes."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import LogitsOnly, write_one
from wholegpt.console import Console
from wholegpt.errors import ConfigError
from wholegpt.generation.beam import beam_search
from wholegpt.settings.schema import GenerationConfig
from wholegpt.tokenizers import character_tokenizer

TOKENIZER = character_tokenizer(["abc."])


class Likes(LogitsOnly):
    """Likes some pairs of tokens more than others, so that it begins a forced text by itself, and breaks off."""

    def __init__(self, seed: int) -> None:
        super().__init__(4, 100)
        self.pairs = 3 * torch.randn(4, 4, generator=torch.Generator().manual_seed(seed))

    def forward(self, token_ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
        self.prefill(token_ids, cache)
        return self.pairs[token_ids]


@given(
    st.integers(0, 50),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=2),
    st.integers(0, 6),
    st.integers(0, 2**31),
    st.sampled_from([(), (".",)]),
)
def test_forced_texts_are_written(
    model: int, forced: list[str], room: int, seed: int, stop: tuple[str, ...]
) -> None:
    config = GenerationConfig(sum(map(len, forced)) + room, 1.0, forced=tuple(forced), stop=stop, seed=seed)
    made = write_one(Likes(model), TOKENIZER, "a", config)
    assert all(text in made.text for text in forced)


def test_beams_write_them_too() -> None:
    config = GenerationConfig(6, forced=("cab",), stop=(".",))
    found = beam_search(Likes(3), TOKENIZER, [0], config, 3, 1.0, torch.device("cpu"), Console(quiet=True))
    assert found and all("cab" in one.text for one in found)


def test_a_forced_text_with_a_stop_text_in_it() -> None:
    with pytest.raises(ConfigError, match="is forced and contains 'a', a stop text"):
        write_one(Likes(0), TOKENIZER, "a", GenerationConfig(9, forced=("ba",), stop=("a",)))


def test_half_a_character_at_the_limit_is_not_shown() -> None:
    from wholegpt.tokenizers import byte_tokenizer

    tokenizer = byte_tokenizer()

    class Writes(LogitsOnly):
        def forward(self, token_ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
            script = "日本".encode()
            logits = torch.zeros(1, 1, tokenizer.vocab_size)
            logits[..., script[int(cache.lengths[0]) % 6]] = 9.0
            self.prefill(token_ids, cache)
            return logits

    shown: list[str] = []
    config = GenerationConfig(4, temperature=0)
    made = write_one(Writes(tokenizer.vocab_size, 100), tokenizer, [0], config, shown.append)
    assert made.text == "".join(shown) == "日" and len(made.token_ids) == 4
