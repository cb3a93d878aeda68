"""Statistics of text: its size, its Unicode scripts, and identical documents."""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int

from wholegpt.data.reading.decoding import Piece

CODE_POINTS = 0x110000
COUNTED_AT_ONCE = 2**20
"""Non-ASCII characters that are buffered before they are counted."""
SCRIPTS_NAMED = 20
DIGEST_BYTES = 16
LETTERS = ("LETTER", "LIGATURE", "IDEOGRAPH", "SYLLABLE", "SYLLABICS")
"""Starts of a word in the Unicode name of every letter of a script."""
FORMS = {"FULLWIDTH", "HALFWIDTH", "MODIFIER"}
"""Words before the name of the script."""


@dataclass
class SourceStatistics:
    """Statistics of the documents of one source."""

    documents: int = 0
    characters: int = 0
    bytes: int = 0
    """Bytes in UTF-8."""
    digest: Any = field(default_factory=hashlib.sha256)
    """SHA-256 of the BLAKE2b hashes of all documents, in order: changes with any of their bytes and
    boundaries.
    """


class TextStatistics:
    """Counts of a stream of documents, in some dozens of bytes per document."""

    def __init__(self) -> None:
        self.sources: list[SourceStatistics] = []
        self._digests = bytearray()
        self._of_document: Any = None
        self._code_points = np.zeros(CODE_POINTS, dtype=np.int64)
        self._waiting: list[np.ndarray] = []

    def watch(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """Yield the same pieces after counting them."""
        for piece in pieces:
            self._add(piece)
            yield piece
        self._end_document()

    def _add(self, piece: Piece) -> None:
        while len(self.sources) <= piece.source:
            self._end_document()
            self.sources.append(SourceStatistics())
        source, content = self.sources[piece.source], piece.text.encode()
        if piece.begins:
            self._end_document()
            self._of_document = hashlib.blake2b(digest_size=DIGEST_BYTES)
            source.documents += 1
        self._of_document.update(content)
        source.characters += len(piece.text)
        source.bytes += len(content)
        if piece.text.isascii():
            self._code_points[:128] += np.bincount(np.frombuffer(content, np.uint8), minlength=128)
        else:
            self._waiting.append(np.frombuffer(piece.text.encode("utf-32-le"), np.uint32))
            if sum(map(len, self._waiting)) >= COUNTED_AT_ONCE:
                self._count_waiting()

    def _end_document(self) -> None:
        if self._of_document is not None:
            self._digests += self._of_document.digest()
            self.sources[-1].digest.update(self._of_document.digest())
            self._of_document = None

    def _count_waiting(self) -> None:
        if self._waiting:
            counts = np.bincount(np.concatenate(self._waiting))
            self._code_points[: len(counts)] += counts
            self._waiting.clear()

    def of_source(self, number: int) -> SourceStatistics:
        """Return the counts of one source; zeros if it had no text."""
        return self.sources[number] if number < len(self.sources) else SourceStatistics()

    @property
    def identical_documents(self) -> int:
        """Return the number of documents that equal an earlier one, byte for byte."""
        digests = np.frombuffer(self._digests, dtype=f"V{DIGEST_BYTES}")
        return len(digests) - len(np.unique(digests))

    @property
    def different_characters(self) -> int:
        """Return the number of distinct code points."""
        self._count_waiting()
        return int((self._code_points > 0).sum())

    def script_shares(self) -> dict[str, float]:
        """Return each script's share of the letters, largest first."""
        self._count_waiting()
        return script_shares(self._code_points)


def script_shares(code_points: Int[np.ndarray, " C"]) -> dict[str, float]:
    """Return each script's share of the letters, given the count of each code point.

    A script is the first word of a letter's Unicode name: LATIN, GREEK, CYRILLIC, CJK and so on; OTHER are
    signs that count as letters, such as ª.
    """
    counts: dict[str, int] = {}
    for code_point in np.flatnonzero(code_points):
        character = chr(code_point)
        if unicodedata.category(character).startswith("L"):
            words = [word for word in unicodedata.name(character, "").split() if word not in FORMS]
            name = words[0] if any(word.startswith(LETTERS) for word in words) else "OTHER"
            counts[name] = counts.get(name, 0) + int(code_points[code_point])
    letters = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:SCRIPTS_NAMED]
    return {name: count / letters for name, count in ordered}
