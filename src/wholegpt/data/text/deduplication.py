"""Duplicates by a hash of the normalized text, and near-duplicates by MinHash.

Memory: some dozens of bytes per document for duplicates, 0.5 kB more for near-duplicates.
"""

import hashlib
import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt32, UInt64

from wholegpt.data.words import words_of

BANDS, ROWS = 42, 3
"""Bands of a signature and values per band: documents are compared if all values of a band agree (Leskovec et
al. 2020, section 3.4).
"""
COMPARED_WITH_ALL = 50
"""Largest group in which all documents are compared; in a larger one, each is compared with the first only."""
DIGEST_BYTES = 16


@dataclass(frozen=True)
class Duplicates:
    """Which documents are duplicates."""

    first: Int[np.ndarray, " N"]
    """For each document the index of the first duplicate; its own index if there is none before it."""
    exact: int
    """Duplicates of an earlier document except for case and white space."""
    near: int
    """Further documents that are near-duplicates of an earlier one."""
    similarity: Float[np.ndarray, " N"]
    """Estimated Jaccard similarity of each document to its first duplicate; 1 for exact duplicates."""

    @property
    def kept(self) -> Bool[np.ndarray, " N"]:
        """Return which documents are the first of their cluster."""
        return self.first == np.arange(len(self.first))

    def clusters(self, excerpt: Callable[[int], str]) -> Iterator[dict[str, Any]]:
        """Yield each cluster as plain values: the document that is kept, and its duplicates."""
        left_out = np.flatnonzero(~self.kept)
        ordered = left_out[np.argsort(self.first[left_out], kind="stable")]
        for duplicates in np.split(ordered, np.flatnonzero(np.diff(self.first[ordered])) + 1):
            if len(duplicates):
                kept = int(self.first[duplicates[0]])
                members = [
                    {"document": int(i), "similarity": float(self.similarity[i]), "excerpt": excerpt(int(i))}
                    for i in duplicates
                ]
                yield {"kept": {"document": kept, "excerpt": excerpt(kept)}, "left_out": members}


def find_duplicates(
    documents: Iterable[Iterable[str]], near: bool, threshold: float = 0.45, words: int = 3
) -> Duplicates:
    """Find duplicates among documents, each given in pieces, which are read once.

    Exact duplicates have the same words in the same order, ignoring case. Near-duplicates have sets of
    n-grams of ``words`` words with an estimated Jaccard similarity |A ∩ B| / |A ∪ B| of at least
    ``threshold`` (with three words it is 0.57 if one word in ten differs). The relation is transitive:
    duplicates of a duplicate belong to the same cluster.
    """
    digests, signatures = bytearray(), bytearray()
    wordless: list[int] = []
    for number, pieces in enumerate(documents):
        digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        sketch = _Sketch(words) if near else None
        for index, piece in enumerate(pieces):
            plain = " ".join(piece.split()).lower()
            digest.update(
                (" " + plain if index and plain else plain).encode()
            )  # pieces are cut before white space
            if sketch:
                sketch.update(words_of(piece))
        digests += digest.digest()
        if sketch:
            signatures += sketch.signature().tobytes()
            if not sketch.words:
                wordless.append(number)
    firsts = _first_of_equal(np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2))
    del digests
    exact = int((firsts != np.arange(len(firsts))).sum())
    similarity = np.ones(len(firsts))
    if near and len(firsts):
        matrix = np.frombuffer(signatures, dtype=np.uint32).reshape(len(firsts), BANDS * ROWS)
        # Documents without words have exact duplicates only.
        matrix[wordless] = np.random.default_rng(0).integers(
            0, 2**32, (len(wordless), BANDS * ROWS), np.uint32
        )
        firsts = _joined(firsts, _near_pairs(matrix, threshold))
        for number in np.flatnonzero(firsts != np.arange(len(firsts))):
            similarity[number] = (matrix[number] == matrix[firsts[number]]).mean()
        similarity[wordless] = 1.0
    everything = int((firsts != np.arange(len(firsts))).sum())
    return Duplicates(firsts, exact, everything - exact, similarity)


def _first_of_equal(digests: UInt64[np.ndarray, "N 2"]) -> Int[np.ndarray, " N"]:
    """Return for each row the index of the first equal row."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: among equal rows the first comes first
    ordered = digests[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    firsts = np.empty(len(order), dtype=np.int64)
    firsts[order] = order[new][np.cumsum(new) - 1]
    return firsts


class _Sketch:
    """The MinHash signature of a document's shingles (Broder 1997)."""

    def __init__(self, words: int) -> None:
        self._size = words
        self.words = 0
        """Number of words so far."""
        self._hash = importlib.import_module("rensa").RMinHash(num_perm=BANDS * ROWS, seed=1)

    def update(self, words: list[str]) -> None:
        """Add the shingles of a piece; fewer words than a shingle has form one shingle."""
        self.words += len(words)
        count = max(1, len(words) - self._size + 1)
        self._hash.update([" ".join(words[i : i + self._size]) for i in range(count)])

    def signature(self) -> UInt32[np.ndarray, " P"]:
        """Return one value per permutation; the share of equal values estimates the similarity."""
        return np.array(self._hash.digest(), dtype=np.uint32)


def _near_pairs(signatures: UInt32[np.ndarray, "N P"], threshold: float) -> Iterator[tuple[int, int]]:
    """Yield pairs of documents that agree in some band, and in at least ``threshold`` of all values."""
    mixers = np.random.default_rng(0).integers(1, 2**63, ROWS, dtype=np.uint64) | np.uint64(1)
    for band in range(BANDS):
        columns = signatures[:, band * ROWS : (band + 1) * ROWS].astype(np.uint64)
        keys = (columns * mixers).sum(axis=1, dtype=np.uint64)
        order = np.argsort(keys, kind="stable")
        borders = np.concatenate([[0], np.flatnonzero(np.diff(keys[order])) + 1, [len(order)]])
        for at in np.flatnonzero(np.diff(borders) > 1):
            group = order[borders[at] : borders[at + 1]]
            heads = range(len(group) - 1) if len(group) <= COMPARED_WITH_ALL else range(1)
            for head in heads:
                alike = (signatures[group[head + 1 :]] == signatures[group[head]]).mean(axis=1) >= threshold
                yield from ((int(group[head]), int(other)) for other in group[head + 1 :][alike])


def _joined(first: Int[np.ndarray, " N"], pairs: Iterable[tuple[int, int]]) -> Int[np.ndarray, " N"]:
    """Return the first document of each cluster that ``pairs`` connect (union by the smaller index)."""
    parent = first.copy()

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = int(parent[number])
        return number

    for one, other in pairs:
        a, b = root(one), root(other)
        parent[max(a, b)] = min(a, b)
    return np.array([root(number) for number in range(len(parent))], dtype=np.int64)
