"""SentencePiece BPE with byte fallback, as in Llama 2, TinyLlama and Mistral 7B, against transformers."""

import json
from collections.abc import Callable
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tests.tokenizers.sentencepiece import DECODER, VARIANTS, content, entries, library, metaspace
from wholegpt.errors import TokenizerError
from wholegpt.tokenizers import Tokenizer, quality

SPACED = ("prepend", "first", "always")
"""The variants that put a space before a text."""
FRAGMENTS = [
    "the",
    " the",
    "The",
    " ",
    "  ",
    " " * 5,
    "\n",
    "\n\n",
    "\t",
    "東京",
    "🙂",
    "é",
    "e\u0301",
    "12",
    "</s>",
]
FRAGMENTS += [
    "<s>",
    "<0x0A>",
    "<unk>",
    "[INST]",
    "<|user|>",
    "▁",
    "▁the",
    "\0",
    "x",
    ".",
    "\u00a0",
    "\ufffd",
    "ー",
]
TEXTS = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=3)), max_size=10).map("".join)
TEXTS = TEXTS.filter(lambda text: text.encode(errors="ignore").decode() == text)
TOKENS = st.lists(
    st.sampled_from(["<s>", "</s>", "a", " a", "  ", "the", " the", "\n", "é"]), max_size=8
).map("".join)


@cache
def both(variant: str, *added: tuple[str, bool]) -> tuple[Tokenizer, Any]:
    """Return the tokenizer here and in transformers, with further tokens, each special or not."""
    made = library(variant)
    made.add_tokens([AddedToken(name, special=special, normalized=False) for name, special in added])
    return Tokenizer(made), PreTrainedTokenizerFast(tokenizer_object=made)


def restored(variant: str, text: str) -> str:
    """Return what a text decodes to: ▁ becomes a space, and Metaspace drops one leading space."""
    text = text.replace("▁", " ")
    return text[1:] if variant in ("first", "always") and text.startswith(" ") else text


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=80, deadline=None)
@given(text=TEXTS)
def test_ids_and_texts_equal_those_of_transformers(variant: str, text: str) -> None:
    tokenizer, theirs = both(variant)
    ids = tokenizer.encode(text)
    assert ids == theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids) == theirs.decode(ids) == restored(variant, text)
    assert [one.tolist() for one in tokenizer.encode_all([text, text])] == [ids, ids]
    stream = tokenizer.stream()
    assert (
        "".join([*map(stream.push, ids), stream.finish()])
        == "".join(tokenizer.texts_of(ids))
        == tokenizer.decode(ids)
    )
    assert not tokenizer.special_ids.intersection(ids)
    spelled = tokenizer.decode(ids)
    sizes = tokenizer.sizes_after(np.array([tokenizer.end_of_text_id, *ids])).sum(axis=0)
    assert sizes.tolist() == [len(spelled.encode()), len(spelled)]


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=60, deadline=None)
@given(text=TOKENS)
def test_special_tokens_in_text_equal_those_of_transformers(variant: str, text: str) -> None:
    tokenizer, theirs = both(variant)
    assert tokenizer.encode(text, allow_special=True) == theirs(text, add_special_tokens=False)["input_ids"]
    assert [*tokenizer.prefix_ids, *tokenizer.encode(text, allow_special=True)] == theirs(text)["input_ids"]


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=60, deadline=None)
@given(parts=st.lists(TEXTS.map(lambda text: text.replace("▁", "_")), min_size=1, max_size=4))
def test_pieces_encode_to_the_whole_text(variant: str, parts: list[str]) -> None:
    """Each piece continues the previous one, in every variant."""
    tokenizer, _ = both(variant)
    ids = tokenizer.encode(parts[0])
    for part in parts[1:]:
        more = tokenizer.encode(part, continues=tokenizer.continues_after(ids))
        assert not ids or tokenizer.decode(more, after=ids[-1]) == part
        ids = ids + more
    started = next((part for part in parts if part), "")
    assert tokenizer.decode(ids) == restored(variant, started) + "".join(parts).removeprefix(started)
    pieces = [one.tolist() for one in tokenizer.encode_all(parts, [True] + [False] * (len(parts) - 1))]
    if parts[0]:
        assert [*chain.from_iterable(pieces)] == ids


@pytest.mark.parametrize("variant", ["prepend", "first"])
@settings(max_examples=80, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(["<x>", "<y>", "a", " a", "  ", "the", " the", "é"]), min_size=1, max_size=6
    )
)
def test_added_tokens_in_a_text(variant: str, parts: list[str]) -> None:
    tokenizer, theirs = both(variant, ("<x>", False), ("<y>", True))
    text = "".join(parts)
    ids = tokenizer.encode(text)
    assert ids == theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids) == (restored(variant, text))
    if "<y>" not in text:
        assert tokenizer.decode(tokenizer.encode(text, continues=True), after=entries().index("a")) == text
    parsed = tokenizer.encode("a" + text, allow_special=True)
    assert parsed == theirs("a" + text, add_special_tokens=False)["input_ids"]
    first = tokenizer.encode("a")
    continued = tokenizer.encode(text, allow_special=True, continues=True)
    assert tokenizer.decode(first + continued) == tokenizer.decode(parsed)
    if text.startswith(("<", " ")):  # no entry spans the boundary
        assert first + continued == parsed


def test_prefix_and_end_tokens() -> None:
    tokenizer, _ = both("prepend")
    assert tokenizer.end_of_text_id == 2 and tokenizer.end_ids == {2} and tokenizer.prefix_ids == [1]
    assert tokenizer.special_ids == {0, 1, 2} and not tokenizer.keeps_text
    assert not Tokenizer(library("prepend", added_tokens=content()["added_tokens"][:2])).has_end_of_text
    new = tokenizer.with_special_tokens(["<|endoftext|>"])
    assert new.end_of_text_id == new.id_of("<|endoftext|>") == len(entries())


@pytest.mark.parametrize("variant", SPACED)
def test_text_sizes_exclude_the_prefix_space(variant: str) -> None:
    tokenizer, _ = both(variant)
    documents = ["The cat  sat.", "é 東京\n", "x", "the dog"]
    ids = [i for one in documents for i in (2, *tokenizer.encode(one))][1:]
    text = "".join(documents)
    sizes = [len(text.encode()), len(text)]
    assert tokenizer.sizes_after(np.array([2, *ids])).sum(axis=0).tolist() == sizes
    assert tokenizer.sizes_of_counts(np.bincount(ids)).tolist() == sizes
    assert tokenizer.decode(ids) == "</s>".join(documents)
    found = quality(tokenizer, documents)
    assert found.bytes_per_token == sizes[0] / (len(ids) - 3) and found.unknown_share == 0


def test_text_starts_after_a_special_token_and_continues_after_others() -> None:
    the = entries().index("▁the")
    for variant, spaced in (("prepend", " the"), ("first", " the"), ("always", " the"), ("never", " the")):
        tokenizer, _ = both(variant)
        begins = "the" if variant in SPACED else spaced
        assert tokenizer.decode([the]) == tokenizer.decode([the], after=2) == begins
        assert tokenizer.decode([the], after=1) == begins
        assert tokenizer.decode([the], after=the) == spaced
        chat = tokenizer.with_special_tokens(["<|assistant|>"])
        added = chat.id_of("<|assistant|>")
        # Like the text of an answer: transformers adds a space unless the scheme is "first".
        assert chat.decode([the], after=added) == ("the" if variant in ("prepend", "always") else spaced)


BYTES = {f"<0x{byte:02X}>" for byte in range(256)}


def without(*names: str) -> dict[str, Any]:
    """Return the content without some entries."""
    made = content()
    kept = [token for token in entries() if token not in names]
    made["model"]["vocab"] = {token: i for i, token in enumerate(kept)}
    made["model"]["merges"] = []
    return made


def with_added(variant: str, **flags: bool) -> dict[str, Any]:
    made = json.loads(library(variant).to_str())
    token = {**made["added_tokens"][0], "id": len(entries()), "content": "<x>", "special": False, **flags}
    return {**made, "added_tokens": [*made["added_tokens"], token]}


REFUSED: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "a missing byte": (lambda: without("<0x0A>"), "lacks the entry <0x0A>"),
    "a missing space": (lambda: without("▁"), "lacks the entry ▁"),
    "words": (
        lambda: content("first", pre_tokenizer=metaspace("first", split=True)),
        "normalizer none, pre_tokenizer Metaspace, decoder Sequence of Replace and ByteFallback and Fuse and Strip",
    ),
    "a prefix space that decoding keeps": (
        lambda: content("first", decoder={"type": "Sequence", "decoders": DECODER}),
        "in a combination of parts that is not supported",
    ),
    "composed": (lambda: content("first", normalizer={"type": "NFKC"}), "normalizer NFKC"),
    "a single-word token": (
        lambda: with_added("first", single_word=True),
        "has the added token '<x>', beside which a space of the text is lost",
    ),
    "a token that drops the next space": (
        lambda: with_added("always"),
        "beside which a space of the text is lost",
    ),
    "a normalized added token": (
        lambda: with_added("prepend", normalized=True),
        "has the added token '<x>', which normalized text holds as '▁<x>'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_files_are_rejected(name: str, tmp_path: Path) -> None:
    made, message = REFUSED[name]
    (tmp_path / "tokenizer.json").write_text(json.dumps(made()))
    with pytest.raises(TokenizerError) as error:
        Tokenizer.load(tmp_path / "tokenizer.json")
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("variant", VARIANTS)
def test_file_round_trips(variant: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(content(variant)))
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
    assert json.loads(tokenizer.to_json()) == content(variant)
