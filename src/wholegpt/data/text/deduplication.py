"""The same document twice, or nearly: copies by a hash of the normalised text, near ones by MinHash.

Memory: some dozens of bytes a document for copies, 0.5 kB more for near ones.
"""

import hashlib
import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt32, UInt64

from wholegpt.data.text.words import words_of

BANDS, ROWS = 42, 3
"""Of a signature: documents are compared where all numbers of a band agree (Leskovec et al. 2020, section 3.4)."""
COMPARED_WITH_ALL = 50
"""Of a larger group, each is compared with the first only."""
DIGEST_BYTES = 16


@dataclass(frozen=True)
class Duplicates:
    """Which documents are alike."""

    first: Int[np.ndarray, " N"]
    """Of each document, the first that is alike; itself where there is none before."""
    exact: int
    """Documents that are copies of an earlier one but for case and white space."""
    near: int
    """Further ones that are nearly the same as an earlier one."""
    similarity: Float[np.ndarray, " N"]
    """Estimated Jaccard similarity of each to its first; 1 for copies."""

    @property
    def kept(self) -> Bool[np.ndarray, " N"]:
        """The first of all that are alike."""
        return self.first == np.arange(len(self.first))

    def clusters(self, excerpt: Callable[[int], str]) -> Iterator[dict[str, Any]]:
        """Of documents that are alike: which is kept, and which are copies of it, as plain values."""
        left_out = np.flatnonzero(~self.kept)
        ordered = left_out[np.argsort(self.first[left_out], kind="stable")]
        for copies in np.split(ordered, np.flatnonzero(np.diff(self.first[ordered])) + 1):
            if len(copies):
                kept = int(self.first[copies[0]])
                members = [
                    {"document": int(i), "similarity": float(self.similarity[i]), "excerpt": excerpt(int(i))}
                    for i in copies
                ]
                yield {"kept": {"document": kept, "excerpt": excerpt(kept)}, "left_out": members}


def find_duplicates(
    documents: Iterable[Iterable[str]], near: bool, threshold: float = 0.45, words: int = 3
) -> Duplicates:
    """Compare documents, each given in pieces, which are read once.

    Copies have the same words in the same order but for case. Near ones are those whose sets of runs of so many
    ``words`` have an estimated Jaccard similarity |A ∩ B| / |A ∪ B| of at least ``threshold`` (with three words it is
    0.57 where one in ten differs); what is alike to a document that is alike to a third is alike to that, too.
    """
    digests, signatures = bytearray(), bytearray()
    wordless: list[int] = []
    for number, pieces in enumerate(documents):
        digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        sketch = _Sketch(words) if near else None
        for place, piece in enumerate(pieces):
            plain = " ".join(piece.split()).lower()
            digest.update(
                (" " + plain if place and plain else plain).encode()
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
        # What has no words is like nothing but its copies.
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
    """Of each row, the number of the first that is the same."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: of equal rows the first comes first
    ordered = digests[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    firsts = np.empty(len(order), dtype=np.int64)
    firsts[order] = order[new][np.cumsum(new) - 1]
    return firsts


class _Sketch:
    """The MinHash signature of a document's shingles (Broder 1997)."""

    def __init__(self, words: int) -> None:
        self._run = words
        self.words = 0
        """How many words there were."""
        self._hash = importlib.import_module("rensa").RMinHash(num_perm=BANDS * ROWS, seed=1)

    def update(self, words: list[str]) -> None:
        """Add the shingles of a piece; fewer words than a shingle has are one."""
        self.words += len(words)
        count = max(1, len(words) - self._run + 1)
        self._hash.update([" ".join(words[i : i + self._run]) for i in range(count)])

    def signature(self) -> UInt32[np.ndarray, " P"]:
        """One number for each permutation; the share of equal ones estimates the similarity."""
        return np.array(self._hash.digest(), dtype=np.uint32)


def _near_pairs(signatures: UInt32[np.ndarray, "N P"], threshold: float) -> Iterator[tuple[int, int]]:
    """Pairs of documents that agree in some band, and in at least ``threshold`` of all numbers."""
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
    """The first document of each cluster that ``pairs`` connect (union by the smaller number)."""
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
