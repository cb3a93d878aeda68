"""Forced texts appear in every completion, whatever the model prefers."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import LogitsOnly, generate_one
from wholegpt.console import Console
from wholegpt.errors import ConfigError
from wholegpt.generation.beam import beam_search
from wholegpt.settings.schema import GenerationConfig
from wholegpt.tokenizers import character_tokenizer

TOKENIZER = character_tokenizer(["abc."])


class RandomBigramModel(LogitsOnly):
    """A bigram model with random logits, so that it starts some forced texts by itself and breaks them off."""

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
def test_forced_texts_are_generated(
    model: int, forced: list[str], room: int, seed: int, stop: tuple[str, ...]
) -> None:
    config = GenerationConfig(sum(map(len, forced)) + room, 1.0, forced=tuple(forced), stop=stop, seed=seed)
    made = generate_one(RandomBigramModel(model), TOKENIZER, "a", config)
    assert all(text in made.text for text in forced)


def test_beam_search_generates_forced_texts() -> None:
    config = GenerationConfig(6, forced=("cab",), stop=(".",))
    found = beam_search(
        RandomBigramModel(3), TOKENIZER, [0], config, 3, 1.0, torch.device("cpu"), Console(quiet=True)
    )
    assert found and all("cab" in one.text for one in found)


def test_forced_text_must_not_contain_a_stop_string() -> None:
    with pytest.raises(ConfigError, match="is forced and contains 'a', a stop text"):
        generate_one(RandomBigramModel(0), TOKENIZER, "a", GenerationConfig(9, forced=("ba",), stop=("a",)))


def test_incomplete_character_at_max_tokens_is_not_shown() -> None:
    from wholegpt.tokenizers import byte_tokenizer

    tokenizer = byte_tokenizer()

    class JapaneseModel(LogitsOnly):
        def forward(self, token_ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
            script = "日本".encode()
            logits = torch.zeros(1, 1, tokenizer.vocab_size)
            logits[..., script[int(cache.lengths[0]) % 6]] = 9.0
            self.prefill(token_ids, cache)
            return logits

    shown: list[str] = []
    config = GenerationConfig(4, temperature=0)
    made = generate_one(JapaneseModel(tokenizer.vocab_size, 100), tokenizer, [0], config, shown.append)
    assert made.text == "".join(shown) == "日" and len(made.token_ids) == 4
