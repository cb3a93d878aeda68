"""Property tests of tokenizer round trips, and GPT-2's token ids against tiktoken."""

import functools
from pathlib import Path

import pytest
import tiktoken
import tokenizers as library
from hypothesis import given
from hypothesis import strategies as st
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from tests.helpers import text_of
from wholegpt.tokenizers import END_OF_TEXT, Tokenizer, byte_tokenizer, gpt2_tokenizer, train_bpe

UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
TRAINED = {"byte": byte_tokenizer(), "bpe": train_bpe([text_of(20_000), "naïve café — 東京 🙂"], 400)}
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

DIFFICULT = [
    "",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t\t x",
    "a  b   c",
    "trailing   ",
    "don't I'll we've he's I'M 'S",
    "''''",
    "x=1;y=[2,3]\n\n\n  z",
    "1234567890 12 3",
    "naïve café",
    "e\u0301 vs é",
    "日本語のテキスト",
    "עברית العربية",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈",
    "\u200b\u200d\ufeff",
    "\x00\x01\x7f\x80\x9f",
    "\u2028\u2029\x85",
    "\U0010ffff\U000e0001",
    END_OF_TEXT,
    f"a{END_OF_TEXT}b",
    "<|endoftext",
    "SolidGoldMagikarp",
    "½ ² ₃ Ⅷ ٣",
    "ﬁ ﬂ ǆ",
    "a\u0300\u0301\u0302\u0303",
    "<script>alert('x')</script>",
    "\\u0041 %s {0} \\n",
    "   leading and\u00a0nbsp\u3000wide",
]


@pytest.mark.parametrize("kind", TRAINED)
@given(text=UNICODE)
def test_decoding_undoes_encoding(kind: str, text: str) -> None:
    tokenizer = TRAINED[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert [one.tolist() for one in tokenizer.encode_all([text, text])] == [ids, ids]
    assert tokenizer.end_of_text_id not in ids
    assert list(tokenizer.text_sizes[ids].sum(axis=0)) == [len(text.encode()), len(text)]


@pytest.mark.parametrize("kind", TRAINED)
@given(ids=st.lists(st.integers(0, 255), max_size=12))
def test_any_ids_decode_as_in_the_tokenizers_library(kind: str, ids: list[int]) -> None:
    """Includes ids that form no complete characters: U+FFFD replaces invalid bytes."""
    tokenizer = TRAINED[kind]
    opened = library.Tokenizer.from_str(tokenizer.to_json())
    assert tokenizer.decode(ids) == opened.decode(ids, skip_special_tokens=False)


@functools.cache
def both_gpt2(folder: Path) -> tuple[Tokenizer, tiktoken.Encoding]:
    ranks = data_gym_to_mergeable_bpe_ranks(str(folder / "vocab.bpe"), str(folder / "encoder.json"))
    reference = tiktoken.Encoding(
        "gpt2-from-files", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 50256}
    )
    return gpt2_tokenizer(folder), reference


@pytest.fixture
def gpt2_folder(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    return shared_data / "gpt2"


@pytest.mark.parametrize("text", DIFFICULT)
def test_gpt2_ids_of_difficult_strings(gpt2_folder: Path, text: str) -> None:
    ours, reference = both_gpt2(gpt2_folder)
    assert ours.vocab_size == 50_257 and ours.end_of_text_id == 50_256
    assert ours.encode(text) == reference.encode_ordinary(text)
    assert ours.encode(text, allow_special=True) == reference.encode(text, allowed_special="all")
    assert ours.decode(ours.encode(text)) == text


def test_gpt2_ids_of_random_strings(gpt2_folder: Path) -> None:
    ours, reference = both_gpt2(gpt2_folder)

    @given(UNICODE)
    def check(text: str) -> None:
        assert ours.encode(text) == reference.encode_ordinary(text)

    check()


def test_gpt2_ids_of_real_text(gpt2_folder: Path, shared_data: Path) -> None:
    ours, reference = both_gpt2(gpt2_folder)
    text = (shared_data / "wikitext2-valid.txt").read_text(encoding="utf-8")
    assert ours.encode(text) == reference.encode_ordinary(text)
