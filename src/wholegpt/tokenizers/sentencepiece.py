"""The form of ``tokenizer.json`` into which SentencePiece's BPE is converted: Llama 2, TinyLlama, Mistral 7B.

A space is the character ▁ (U+2581), which is part of the words, and a character without an entry is encoded as its
bytes, ``<0x00>`` to ``<0xFF>``. A space is put before a text, so that a word has the same token at its beginning as
after a space; decoding drops it.
"""

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tokenizers import Tokenizer as Library
from tokenizers import models

SPACE = "\u2581"
BYTE_ENTRIES = {f"<0x{byte:02X}>": byte for byte in range(256)}
"""The entry for unknown characters, which never occurs since every byte has an entry."""


class SpaceBefore(StrEnum):
    """Before which parts of a text the tokenizer puts a space. Added tokens separate the parts."""

    none = "none"
    first = "first"
    """Before the text, unless it begins with an added token."""
    always = "always"
    """Before each part."""


@dataclass(frozen=True)
class SentencePiece:
    """A variant of the form."""

    space: SpaceBefore
    metaspace: bool
    """Whether a pre-tokenizer replaces the spaces, and not a normalizer. It puts no space before a part that begins
    with one, so that space is lost in decoding.
    """

    def parts(self) -> dict[str, Any]:
        """Return ``normalizer``, ``pre_tokenizer`` and ``decoder`` of a ``tokenizer.json``."""
        scheme = {SpaceBefore.none: "never"}.get(self.space, str(self.space))
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        prepend = {"type": "Prepend", "prepend": SPACE}
        steps: list[dict[str, Any]] = [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]
        if self.space is not SpaceBefore.none:
            steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        pre_tokenizer = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}
        normalizer = {
            "type": "Sequence",
            "normalizers": [replace] if self.space is SpaceBefore.none else [prepend, replace],
        }
        return {
            "normalizer": None if self.metaspace else normalizer,
            "pre_tokenizer": pre_tokenizer if self.metaspace else None,
            "decoder": {"type": "Sequence", "decoders": steps},
        }

    def normalized(self, text: str) -> str:
        """Return the text that ``text`` decodes to after encoding."""
        text = text.replace(SPACE, " ")
        return text.removeprefix(" ") if self.metaspace and self.space is not SpaceBefore.none else text


VARIANTS = (
    SentencePiece(SpaceBefore.always, metaspace=False),
    SentencePiece(SpaceBefore.none, metaspace=False),
    *(SentencePiece(space, metaspace=True) for space in SpaceBefore),
)


def sentencepiece_of(library: Library) -> SentencePiece | None:
    """Return the variant that a tokenizer has; ``None`` if it has none of them."""
    if not uses_byte_entries(library):
        return None
    found = _parts_of(library)
    return next((one for one in VARIANTS if one.parts() == found), None)


def uses_byte_entries(library: Library) -> bool:
    """Return whether characters without an entry are encoded as bytes, ``<0x00>`` to ``<0xFF>``."""
    return (
        isinstance(library.model, models.BPE)
        and bool(library.model.byte_fallback)
        and b"ByteFallback" in _state(library.decoder)
    )


def sentencepiece_fault(library: Library) -> str:
    """Return what makes a tokenizer with byte entries lossy or unsupported; empty if nothing does."""
    found, variant = _parts_of(library), sentencepiece_of(library)
    if variant is None:
        named = ", ".join(f"{part} {_types(value)}" for part, value in found.items())
        return (
            f"has bytes as entries (byte_fallback) in a combination of parts that is not supported: {named}"
        )
    entries = library.get_vocab(with_added_tokens=False)
    if missing := [name for name in (*BYTE_ENTRIES, SPACE) if name not in entries]:
        return f"lacks the entry {missing[0]}, so that it cannot encode every text"
    for token in library.get_added_tokens_decoder().values():
        if token.special:
            continue
        if token.single_word or (variant.metaspace and variant.space is SpaceBefore.always):
            return f"has the added token {token.content!r}, beside which a space of the text is lost"
    return ""


def bytes_of(entry: str) -> bytes:
    """Return the bytes that an entry stands for."""
    byte = BYTE_ENTRIES.get(entry)
    return entry.replace(SPACE, " ").encode() if byte is None else bytes([byte])


def with_variant(content: str, variant: SentencePiece) -> str:
    """Return a ``tokenizer.json`` of this form as another ``variant`` of it."""
    return json.dumps({**json.loads(content), **variant.parts()}, ensure_ascii=False)


def _parts_of(library: Library) -> dict[str, Any]:
    names = ("normalizer", "pre_tokenizer", "decoder")
    parts = {name: json.loads(_state(getattr(library, name))) for name in names}
    normalizer = parts["normalizer"]
    if normalizer and normalizer["type"] == "Replace":
        parts["normalizer"] = {"type": "Sequence", "normalizers": [normalizer]}
    return parts


def _state(part: Any) -> bytes:
    return b"null" if part is None else part.__getstate__()


def _types(part: Any) -> str:
    """Return the types of a part and of what it consists of, in a few words."""
    if part is None:
        return "none"
    steps = next((value for value in part.values() if isinstance(value, list)), [])
    inner = f" of {' and '.join(one['type'] for one in steps)}" if steps else ""
    return f"{part['type']}{inner}"
