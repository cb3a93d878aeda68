"""Check whether a tokenizer is lossless.

A tokenizer is accepted if the texts of its tokens, joined, are the encoded text after its normalizer. This
follows from its parts: no pre-tokenizer, model or added token may drop or add a character. The exceptions
are GPT-1's form, which marks the ends of words, and SentencePiece's, which puts a space before a text.
"""

import json
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer as Library
from tokenizers import decoders, models

from wholegpt.tokenizers.sentencepiece import sentencepiece_fault, uses_byte_entries

KEEPING = {"ByteLevel", "Split", "Punctuation", "Digits", "FixedLength"}
"""Pre-tokenizers that split a text without changing it, depending on their options."""


def byte_level_alphabet() -> str:
    """Return the 256 printable characters that represent the bytes 0–255 in GPT-2's vocabulary, in byte
    order.

    A byte that is a printable Latin-1 character other than the space represents itself; the others are mapped
    to U+0100 onwards, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))


BYTES = {character: byte for byte, character in enumerate(byte_level_alphabet())}


def is_byte_level(library: Library) -> bool:
    """Return whether the entries consist of characters of ``byte_level_alphabet``."""
    return isinstance(library.decoder, decoders.ByteLevel)


def word_end(library: Library) -> str:
    """Return the suffix of entries that end a word, in GPT-1's form; otherwise empty."""
    return getattr(library.model, "end_of_word_suffix", None) or ""


def fault(library: Library) -> str:
    """Return why encoding is not lossless or not deterministic; empty if nothing is wrong."""
    ids = sorted(library.get_vocab(with_added_tokens=True).values())
    if ids != list(range(len(ids))):
        return f"has {len(ids):,} entries with ids up to {max(ids, default=0):,}; expected each id from 0 on once"
    if getattr(library.model, "dropout", None):
        return "has a model with dropout, which cuts the same text differently each time"
    changes = _added_token_fault(library)
    if uses_byte_entries(library):
        changes = changes or sentencepiece_fault(library)
    elif not word_end(library):
        changes = changes or _normalizer_fault(library) or _model_fault(library)
    return changes and f"is not lossless: it {changes}"


def _added_token_fault(library: Library) -> str:
    entries = library.get_vocab(with_added_tokens=False)
    for token in library.get_added_tokens_decoder().values():
        if (token.lstrip or token.rstrip) and not (token.special and is_byte_level(library)):
            return f"has the added token {token.content!r} with lstrip or rstrip, which drops white space beside it"
        if token.normalized and not token.special and library.normalizer is not None:
            found = library.normalizer.normalize_str(token.content)
            if found != token.content:
                return f"has the added token {token.content!r}, which normalized text holds as {found!r}"
        if is_byte_level(library) and token.content in entries:
            spelled = bytes(BYTES[character] for character in token.content if character in BYTES)
            if spelled != token.content.encode():
                return f"has the added token {token.content!r} under the id of an entry that stands for other bytes"
    return ""


def _normalizer_fault(library: Library) -> str:
    """Check the normalizer: a text is normalized in parts, between added tokens, which must give the same
    result.
    """
    if library.normalizer is None:
        return ""
    normalized = library.normalizer.normalize_str
    one, other = " A é ", " B ﬁ "
    if normalized(normalized(one) + normalized(other)) != normalized(one + other):
        return "has a normalizer that changes the beginning or the end of each text"
    return ""


def _model_fault(library: Library) -> str:
    if isinstance(library.model, models.WordPiece):
        return "is WordPiece, which drops spaces and long words"
    if getattr(library.model, "continuing_subword_prefix", None):
        return "marks the entries that continue a word"
    steps = list(_steps(library.pre_tokenizer))
    for step in steps:
        if step["type"] not in KEEPING:
            return f"has the pre-tokenizer {step['type']}, which does not keep white space as it is"
        if step.get("add_prefix_space"):
            return "puts a space before each text (add_prefix_space)"
        if step.get("behavior") == "Removed":
            return f"has the pre-tokenizer {step['type']} that removes what it cuts at"
    encodes_bytes = any(step["type"] == "ByteLevel" for step in steps)
    if is_byte_level(library) and (isinstance(library.model, models.WordLevel) or not encodes_bytes):
        return "decodes bytes that it does not encode"
    return ""


def missing_bytes(library: Library) -> bytes:
    """Return the bytes that a byte-level vocabulary has no entry for: the library drops them from a text."""
    if not is_byte_level(library) or word_end(library):
        return b""
    entries = library.get_vocab(with_added_tokens=False)
    return bytes(byte for character, byte in BYTES.items() if character not in entries)


def _steps(pre_tokenizer: Any) -> Iterator[dict[str, Any]]:
    """Yield the settings of each pre-tokenizer, those of a sequence one by one."""

    def flat(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if settings["type"] == "Sequence":
            for one in settings["pretokenizers"]:
                yield from flat(one)
        else:
            yield settings

    if pre_tokenizer is not None:
        yield from flat(json.loads(pre_tokenizer.__getstate__()))
