"""Whether evaluation text stands in the training text: runs of words that both have (Brown et al. 2020, appendix C)."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt64

from wholegpt.data.text.words import words_of

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
EXCERPT_CHARACTERS = 160


@dataclass(frozen=True)
class Overlap:
    """How much of an evaluation document stands in the training text."""

    document: int
    """Its number, from 0."""
    runs: int
    """Different runs of words that it has; 0 where it is shorter than one."""
    found: int
    """Those that stand in the training text too."""
    excerpt: str
    """The first of them."""

    @property
    def share(self) -> float:
        """found / runs."""
        return self.found / self.runs if self.runs else 0.0


def contamination(
    training: Iterable[Iterable[str]], evaluation: Iterable[Iterable[str]], words: int = 13
) -> list[Overlap]:
    """The overlap of each evaluation document: runs of ``words`` words, without case and punctuation.

    Documents come in pieces and are read once. Memory: some dozens of bytes a word of the evaluation text. Runs are
    compared by 64-bit hashes; those of different words collide once in 10¹⁹ pairs.
    """
    vocabulary: dict[str, int] = {}
    documents: list[np.ndarray] = []
    for pieces in evaluation:
        read = (word for piece in pieces for word in words_of(piece))
        ids = [vocabulary.setdefault(word, len(vocabulary) + 1) for word in read]
        documents.append(np.array(ids, dtype=np.int32))
    numbers = np.random.default_rng(0).integers(1, 2**63, len(vocabulary) + 1, dtype=np.uint64)
    numbers[0] = 0
    hashes = [_runs(numbers[ids], words) for ids in documents]
    asked = np.unique(np.concatenate([*hashes, np.empty(0, np.uint64)]))
    seen = np.zeros(len(asked), dtype=bool)
    for pieces in training:
        held = np.empty(0, np.int64)
        for piece in pieces:
            known = np.array([vocabulary.get(word, 0) for word in words_of(piece)], dtype=np.int64)
            known = np.concatenate([held, known])  # a run may lie across two pieces of a document
            _mark(numbers[known], words, asked, seen)
            held = known[len(known) - words + 1 :] if words > 1 else known[:0]
    names = ["", *vocabulary]
    overlaps: list[Overlap] = []
    for number, (ids, runs) in enumerate(zip(documents, hashes, strict=True)):
        found = seen[np.searchsorted(asked, runs)]
        _, different = np.unique(runs, return_index=True)
        at = int(np.argmax(found)) if found.any() else 0
        excerpt = " ".join(names[i] for i in ids[at : at + words]) if found.any() else ""
        overlaps.append(
            Overlap(number, len(different), int(found[different].sum()), excerpt[:EXCERPT_CHARACTERS])
        )
    return overlaps


def _mark(
    numbers: UInt64[np.ndarray, " N"], words: int, asked: UInt64[np.ndarray, " M"], seen: np.ndarray
) -> None:
    """Note in ``seen`` which of the sorted hashes ``asked`` a stretch of training text has."""
    runs = _runs(numbers, words)
    if not len(runs) or not len(asked):
        return
    unknown = np.convolve(numbers == 0, np.ones(words), "valid") > 0.5
    runs = runs[~unknown]
    places = np.minimum(np.searchsorted(asked, runs), len(asked) - 1)
    seen[places[asked[places] == runs]] = True


def _runs(numbers: UInt64[np.ndarray, " N"], words: int) -> UInt64[np.ndarray, " R"]:
    """A hash of each run of ``words`` numbers: Σ xᵢ·mⁱ modulo 2⁶⁴."""
    count = len(numbers) - words + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    total = np.zeros(count, dtype=np.uint64)
    for place in range(words):
        total = total * _MULTIPLIER + numbers[place : place + count]
    return total
