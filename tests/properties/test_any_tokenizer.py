"""Property tests of every ``tokenizer.json`` that loads: consistent encoding and lossless round trips."""

import tempfile
from pathlib import Path
from typing import Any

import tokenizers as library
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from tests.helpers import text_of
from wholegpt.errors import TokenizerError
from wholegpt.tokenizers import END_OF_TEXT, Tokenizer, byte_level_alphabet

FRAGMENTS = [
    "a",
    "b",
    "the",
    " the",
    "The",
    " ",
    "  ",
    " " * 8,
    "\n",
    "\n\n",
    "=",
    "==",
    "é",
    "e\u0301",
    "東京",
]
FRAGMENTS += [
    "🙂",
    "ﬁ",
    "'s",
    "42",
    "7",
    "<think>",
    "<THINK>",
    "<th",
    "ink>",
    "think",
    "_",
    "<a b>",
    "Ġ",
    "x\u00a0y",
]
FRAGMENTS += [END_OF_TEXT, "<mask>", "ß", "İ", "\t", "\r\n", "\ufffd", "\0", "a<think>b", ".", ","]
TEXTS = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=3)), max_size=12).map("".join)
TEXTS = TEXTS.filter(lambda text: text.isprintable() or text.encode(errors="ignore").decode() == text)
CORPUS = [text_of(2000), "".join(FRAGMENTS) * 3, "The the a  b == ==\n\n  the"]
BYTES = byte_level_alphabet()

added_tokens = st.lists(
    st.tuples(
        st.sampled_from([*FRAGMENTS, "=== ", "he", "  <think>", " a", "th", "Ġthe"]),
        st.fixed_dictionaries(
            {name: st.booleans() for name in ("special", "normalized", "single_word")},
            optional={name: st.booleans() for name in ("lstrip", "rstrip")},
        ),
    ),
    max_size=4,
)
normalizer = st.sampled_from(
    [
        *[None] * 4,
        normalizers.NFC(),
        normalizers.NFKC(),
        normalizers.Lowercase(),
        normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()]),
        normalizers.Prepend("_"),
        normalizers.Replace(" ", "_"),
        normalizers.Strip(),
    ]
)
regexes = st.sampled_from(
    [r"\p{L}+|\s+(?!\S)|\s+", r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+", r"\p{N}{1,3}", "[\\s\\S]", "e", "."]
)
behaviours = st.sampled_from(
    ["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"]
)
split = st.one_of(
    st.builds(lambda regex, how: pre_tokenizers.Split(Regex(regex), how), regexes, behaviours),
    st.builds(lambda one: pre_tokenizers.Digits(individual_digits=one), st.booleans()),
    st.builds(pre_tokenizers.Punctuation, behaviours),
    st.sampled_from(
        [
            pre_tokenizers.Metaspace(),
            pre_tokenizers.Whitespace(),
            pre_tokenizers.UnicodeScripts(),
            pre_tokenizers.CharDelimiterSplit("e"),
        ]
    ),
)
byte_level = st.builds(
    lambda space, regex: pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=regex),
    st.sampled_from([False, False, False, True]),
    st.booleans(),
)


@st.composite
def libraries(draw: st.DrawFn) -> library.Tokenizer:
    """Generate a tokenizer of any form; most are byte-level, like most that load."""
    steps: list[Any] = draw(st.lists(split, max_size=1))
    in_bytes = draw(st.sampled_from([True, True, True, False]))
    if in_bytes:
        steps.insert(draw(st.integers(0, len(steps))), draw(byte_level))
    kind = draw(st.sampled_from(["BPE", "BPE", "Unigram", "WordLevel", "WordPiece"]))
    alphabet = sorted(BYTES) if in_bytes else sorted(set("".join(CORPUS)))
    made = library.Tokenizer(
        {
            "BPE": models.BPE(ignore_merges=draw(st.booleans())),
            "Unigram": models.Unigram(),
            "WordLevel": models.WordLevel({one: i for i, one in enumerate(alphabet)}, unk_token="a"),
            "WordPiece": models.WordPiece({one: i for i, one in enumerate(alphabet)}, unk_token="a"),
        }[kind]
    )
    made.normalizer = draw(normalizer)
    if steps:
        made.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    if in_bytes:
        made.decoder = decoders.ByteLevel()
    else:
        made.decoder = draw(st.sampled_from([None, decoders.Fuse()]))
    if kind == "BPE":
        made.train_from_iterator(
            CORPUS,
            trainers.BpeTrainer(
                vocab_size=len(alphabet) + 60, initial_alphabet=alphabet, show_progress=False
            ),
        )
    if kind == "Unigram":
        pieces = [*((one, -6.0) for one in alphabet), ("the", -3.0), ("==", -4.0), ("aa", -2.0)]
        made.model = models.Unigram(pieces, 0, False)
    for content, flags in draw(added_tokens):
        made.add_tokens([AddedToken(content, **flags)])
    made.add_special_tokens([END_OF_TEXT])
    return made


def loaded(made: library.Tokenizer) -> Tokenizer | None:
    """Return the tokenizer loaded from its file, or None if it is rejected."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        made.save(str(path))
        try:
            return Tokenizer.load(path)
        except TokenizerError:
            return None


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow]
)
@given(libraries(), st.lists(TEXTS, min_size=1, max_size=4))
def test_encoding_is_consistent_and_round_trips(made: library.Tokenizer, texts: list[str]) -> None:
    tokenizer = loaded(made)
    assume(tokenizer is not None)
    assert tokenizer is not None
    made.encode_special_tokens = True
    for text in texts:
        try:
            ids = tokenizer.encode(text)
        except TokenizerError:
            assert set(text) - set(CORPUS[1])  # only for a character outside the vocabulary
            continue
        assert ids == made.encode(text, add_special_tokens=False).ids
        assert [one.tolist() for one in tokenizer.encode_all([text, text])] == [ids, ids]
        assert not tokenizer.special_ids.intersection(ids)
        decoded = tokenizer.decode(ids)
        if tokenizer.keeps_text:
            assert decoded == text
        else:
            normalizer = made.normalizer
            assert normalizer.normalize_str(decoded) == normalizer.normalize_str(text)
        stream = tokenizer.stream()
        assert "".join([*map(stream.push, ids), stream.finish()]) == decoded
        assert "".join(tokenizer.texts_of(ids)) == decoded
        assert b"".join(tokenizer.token_bytes[i] for i in ids) == decoded.encode()
        sizes = [len(decoded.encode()), len(decoded)]
        assert tokenizer.text_sizes[ids].sum(axis=0, dtype=int).tolist() == sizes
