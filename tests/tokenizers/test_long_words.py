"""Long texts without word boundaries."""

import base64
import random
import string

import pytest

from tests.helpers import text_of
from tests.tokenizers.test_forms import merges_of, twin
from wholegpt.settings.choices import Normalization
from wholegpt.tokenizers import Tokenizer, byte_tokenizer, train_bpe, train_character, train_gpt1
from wholegpt.tokenizers.training import LONGEST_WORD

LENGTH = 20_000
draw = random.Random(0)
LONG = {
    "one sign": "=" * LENGTH,
    "letters": "".join(draw.choices(string.ascii_lowercase, k=LENGTH)),
    "base64": base64.b64encode(draw.randbytes(LENGTH * 3 // 4)).decode(),
    "ideographs": "".join(chr(draw.randrange(0x4E00, 0x9FA5)) for _ in range(LENGTH)),
    "spaces": " " * LENGTH,
    "line ends": "\n" * LENGTH,
    "white space": "".join(draw.choices(" \n\t", k=LENGTH)),
    "no-break spaces": "\u00a0" * LENGTH,
    "DNA": "".join(draw.choices("ACGT", k=LENGTH)),
    "digits": "7" * LENGTH,
    "emoji": "🙂" * LENGTH,
    "accents": "e" + "\u0301" * LENGTH,
}
TRAINED = train_bpe([text_of(8000)], 400)
TOKENIZERS = {
    "bpe": TRAINED,
    "nfc": train_bpe([text_of(8000)], 400, Normalization.nfc),
    "byte": byte_tokenizer(),
    "character": train_character([text_of(2000), *LONG.values()]),
    "gpt1": train_gpt1([text_of(8000)], 50),
}


@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_long_words_are_encoded_consistently(name: str, kind: str) -> None:
    tokenizer: Tokenizer = TOKENIZERS[name]
    text = f"the {LONG[kind]} of"
    ids = tokenizer.encode(text)
    assert next(tokenizer.encode_all([text])).tolist() == ids
    assert tokenizer.decode(ids) == text or not tokenizer.keeps_text


def test_long_words_are_split_for_training() -> None:
    """Otherwise entries of every length would be learned, in time quadratic in the length."""
    made = train_bpe([LONG["one sign"] + "\n" + text_of(2000)], 400)
    assert max(map(len, made.token_bytes)) == LONGEST_WORD
    assert "=" * LONGEST_WORD in made.texts_of(made.encode(LONG["one sign"]))
    gpt1 = train_gpt1(["a" * LENGTH + " the of"], 30)
    assert max(map(len, gpt1.token_bytes)) == LONGEST_WORD + 1  # and the space after it


def test_plain_twin_splits_long_words_alike() -> None:
    text = "ab" * 400 + " " + "ba" * 500 + " 東" + "京" * 300
    fast = merges_of(train_bpe([text], 320))
    assert twin([text], len(fast)) == fast


def test_words_up_to_the_limit_are_learned_whole() -> None:
    word = "x" * LONGEST_WORD
    assert len(train_bpe([f"{word}\n" * 3], 400).encode(word)) == 1
