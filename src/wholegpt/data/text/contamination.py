"""Contamination: word n-grams of evaluation text that also occur in the training text (Brown et al. 2020,
appendix C).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt64

from wholegpt.data.words import words_of

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
EXCERPT_CHARACTERS = 160


@dataclass(frozen=True)
class Contamination:
    """How much of an evaluation document occurs in the training text."""

    document: int
    """Index of the document, from 0."""
    ngrams: int
    """Distinct word n-grams of the document; 0 if it is shorter than one."""
    found: int
    """N-grams that also occur in the training text."""
    excerpt: str
    """The first of them."""

    @property
    def share(self) -> float:
        """Return found / ngrams."""
        return self.found / self.ngrams if self.ngrams else 0.0


def contamination(
    training: Iterable[Iterable[str]], evaluation: Iterable[Iterable[str]], words: int = 13
) -> list[Contamination]:
    """Return the contamination of each evaluation document by n-grams of ``words`` words, ignoring case and
    punctuation.

    Documents come in pieces and are read once. Memory: some dozens of bytes per word of the evaluation text.
    N-grams are compared by 64-bit hashes; those of different words collide once in 10¹⁹ pairs.
    """
    vocabulary: dict[str, int] = {}
    documents: list[np.ndarray] = []
    for pieces in evaluation:
        read = (word for piece in pieces for word in words_of(piece))
        ids = [vocabulary.setdefault(word, len(vocabulary) + 1) for word in read]
        documents.append(np.array(ids, dtype=np.int32))
    numbers = np.random.default_rng(0).integers(1, 2**63, len(vocabulary) + 1, dtype=np.uint64)
    numbers[0] = 0
    hashes = [_ngram_hashes(numbers[ids], words) for ids in documents]
    asked = np.unique(np.concatenate([*hashes, np.empty(0, np.uint64)]))
    seen = np.zeros(len(asked), dtype=bool)
    for pieces in training:
        held = np.empty(0, np.int64)
        for piece in pieces:
            known = np.array([vocabulary.get(word, 0) for word in words_of(piece)], dtype=np.int64)
            known = np.concatenate([held, known])  # an n-gram may span two pieces of a document
            _mark(numbers[known], words, asked, seen)
            held = known[len(known) - words + 1 :] if words > 1 else known[:0]
    names = ["", *vocabulary]
    results: list[Contamination] = []
    for number, (ids, ngrams) in enumerate(zip(documents, hashes, strict=True)):
        found = seen[np.searchsorted(asked, ngrams)]
        _, different = np.unique(ngrams, return_index=True)
        at = int(np.argmax(found)) if found.any() else 0
        excerpt = " ".join(names[i] for i in ids[at : at + words]) if found.any() else ""
        results.append(
            Contamination(number, len(different), int(found[different].sum()), excerpt[:EXCERPT_CHARACTERS])
        )
    return results


def _mark(
    numbers: UInt64[np.ndarray, " N"], words: int, asked: UInt64[np.ndarray, " M"], seen: np.ndarray
) -> None:
    """Mark in ``seen`` which of the sorted hashes ``asked`` occur in some training text."""
    ngrams = _ngram_hashes(numbers, words)
    if not len(ngrams) or not len(asked):
        return
    unknown = np.convolve(numbers == 0, np.ones(words), "valid") > 0.5
    ngrams = ngrams[~unknown]
    indices = np.minimum(np.searchsorted(asked, ngrams), len(asked) - 1)
    seen[indices[asked[indices] == ngrams]] = True


def _ngram_hashes(numbers: UInt64[np.ndarray, " N"], words: int) -> UInt64[np.ndarray, " R"]:
    """Return a hash of each n-gram of ``words`` numbers: Σ xᵢ·mⁱ modulo 2⁶⁴."""
    count = len(numbers) - words + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    total = np.zeros(count, dtype=np.uint64)
    for index in range(words):
        total = total * _MULTIPLIER + numbers[index : index + count]
    return total
