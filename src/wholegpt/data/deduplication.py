"""The same document twice, or nearly: copies by a hash of the normalised text, near ones by MinHash.

Memory: 16 bytes a document for copies, 0.5 kB more for near ones.
"""

import hashlib
import importlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, UInt32

SHINGLE_WORDS = 3
"""Words in a row that are compared: a word changed changes three of them."""
BANDS, ROWS = 42, 3
"""Of a signature: documents are compared where all numbers of a band agree (Leskovec et al. 2020, section 3.4)."""
COMPARED_WITH_ALL = 50
"""Of a larger group, each is compared with the first only."""
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Duplicates:
    """Which documents are alike."""

    first: Int[np.ndarray, " N"]
    """Of each document, the first that is alike; itself where there is none before."""
    exact: int
    """Documents that are copies of an earlier one but for case and white space."""
    near: int
    """Further ones that are nearly the same as an earlier one."""

    @property
    def kept(self) -> Bool[np.ndarray, " N"]:
        """The first of all that are alike."""
        return self.first == np.arange(len(self.first))


def find_duplicates(documents: Iterable[Iterable[str]], near: bool, threshold: float = 0.45) -> Duplicates:
    """Compare documents, each given in pieces, which are read once.

    Copies have the same words in the same order but for case. Near ones are those whose sets of ``SHINGLE_WORDS`` words
    in a row have an estimated Jaccard similarity |A ∩ B| / |A ∪ B| of at least ``threshold`` (it is 0.57 where one word
    in ten differs); what is alike to a document that is alike to a third is alike to that, too.
    """
    seen: dict[bytes, int] = {}
    first: list[int] = []
    signatures = bytearray()
    for number, pieces in enumerate(documents):
        digest = hashlib.blake2b(digest_size=16)
        sketch = _Sketch() if near else None
        for piece in pieces:
            words = _WORD.findall(piece.lower())
            digest.update(" ".join(piece.split()).lower().encode())
            if sketch:
                sketch.update(words)
        first.append(seen.setdefault(digest.digest(), number))
        if sketch:
            signatures += sketch.signature().tobytes()
    firsts = np.array(first, dtype=np.int64)
    exact = int((firsts != np.arange(len(firsts))).sum())
    if near and len(firsts):
        matrix = np.frombuffer(signatures, dtype=np.uint32).reshape(len(firsts), BANDS * ROWS)
        firsts = _joined(firsts, _near_pairs(matrix, threshold))
    everything = int((firsts != np.arange(len(firsts))).sum())
    return Duplicates(firsts, exact, everything - exact)


class _Sketch:
    """The MinHash signature of a document's shingles (Broder 1997)."""

    def __init__(self) -> None:
        self._hash = importlib.import_module("rensa").RMinHash(num_perm=BANDS * ROWS, seed=1)

    def update(self, words: list[str]) -> None:
        """Add the shingles of a piece; fewer words than a shingle has are one."""
        count = max(1, len(words) - SHINGLE_WORDS + 1)
        self._hash.update([" ".join(words[i : i + SHINGLE_WORDS]) for i in range(count)])

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
        borders = np.flatnonzero(np.diff(keys[order])) + 1
        for group in np.split(order, borders):
            if len(group) == 1:
                continue
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
