"""The split of text into training and validation."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np

from wholegpt.data.permutation import permute
from wholegpt.data.text.documents import DocumentStore
from wholegpt.errors import DataError
from wholegpt.settings.choices import Split
from wholegpt.settings.schema import DataConfig

DOCUMENTS_FOR_SPLIT = 50
"""From this number of documents, whole documents are held out, unless the corpus or the user says otherwise."""
LARGEST_SHARE = 0.5
"""Whole documents are held out if the validation split is at most this share of the text in documents that are no
larger than it.
"""
SPLIT_VERSION = 2
"""Version of the rules in this module; preparation does not continue from another version."""

Side = Literal["train", "validation"]
SIDES: tuple[Side, Side] = ("train", "validation")


@dataclass(frozen=True)
class SplitPlan:
    """The pieces of a store on each side, and the cuts of pieces that are on both."""

    description: str
    train: np.ndarray
    """Indices of pieces, in order."""
    validation: np.ndarray
    cuts: Mapping[int, int] = field(default_factory=dict)
    """For pieces that are on both sides: the number of characters in the training split."""

    def numbers(self, side: Side) -> np.ndarray:
        """Return the indices of the pieces of one side."""
        return self.train if side == "train" else self.validation

    def text(self, store: DocumentStore, side: Side, index: int) -> str:
        """Return the text of piece ``index`` of one side, cut to that side, without its header."""
        number = int(self.numbers(side)[index])
        text = store.text(number)
        if number not in self.cuts:
            return text
        return text[: self.cuts[number]] if side == "train" else text[self.cuts[number] :]

    def headed_text(self, store: DocumentStore, side: Side, index: int) -> str:
        """Return ``text`` after its header, for training and evaluation."""
        return store.header(int(self.numbers(side)[index])) + self.text(store, side, index)

    def begins(self, store: DocumentStore, side: Side) -> np.ndarray:
        """Return whether each piece of a side starts a document; the rest of a cut document counts as one."""
        numbers = self.numbers(side)
        begins = store.pieces["begins"][numbers].copy()
        if side == "validation":
            begins |= np.isin(numbers, list(self.cuts))
        begins[:1] = True
        return begins

    def documents(
        self, store: DocumentStore, side: Side, characters: float = math.inf
    ) -> Iterator[Iterator[str]]:
        """Yield the documents of one side, each in pieces, without headers.

        If the side has more than ``characters`` characters, documents are sampled evenly.
        """
        starts = np.flatnonzero(self.begins(store, side))
        numbers = self.numbers(side)
        share = characters / max(int(store.pieces["characters"][numbers].sum(dtype=np.int64)), 1)
        draws = np.random.default_rng(0).random(len(starts))
        for draw, (first, after) in zip(draws, pairwise([*starts.tolist(), len(numbers)]), strict=True):
            if draw <= max(share, draws.min()):
                yield (self.text(store, side, index) for index in range(first, after))

    def texts(self, store: DocumentStore, side: Side) -> Iterator[str]:
        """Return the texts of one side in order, with their headers."""
        return (self.headed_text(store, side, index) for index in range(len(self.numbers(side))))


def plan_split(
    store: DocumentStore, name: str, usual: Split, config: DataConfig, kept: np.ndarray | None = None
) -> SplitPlan:
    """Return the split, which is the same for the same documents.

    By documents: whole documents, in an order drawn from a fixed seed, are held out until
    ``validation_fraction`` of the bytes is approximated; the others are shuffled within their source. By
    fraction: the last part of the characters of each source is held out, even in the middle of a document.
    ``usual`` is the corpus's default; ``kept`` says for each document whether it is used. Raises
    ``DataError`` for a single document that is to be split by documents.
    """
    of_document = store.pieces["begins"].cumsum() - 1
    everything = np.arange(len(store)) if kept is None else np.flatnonzero(kept[of_document])
    begins, fraction = store.pieces["begins"][everything], config.validation_fraction
    bytes_of_pieces = np.diff(store.pieces["end"].astype(np.int64), prepend=0)[everything]
    sizes = np.add.reduceat(bytes_of_pieces, np.flatnonzero(begins))
    split = config.split if config.split is not Split.automatic else usual
    if split is Split.automatic:
        split = Split.documents if _splits_whole(sizes, fraction) else Split.fraction
    if split is Split.fraction:
        return _split_ends(store, everything, fraction)
    if len(sizes) < 2:
        raise DataError(f"{name}: one document cannot be split by documents; use --data.split fraction")
    held_out = draw_documents(sizes, fraction)
    chosen = held_out[begins.cumsum() - 1]
    share = float(sizes[held_out].sum() / max(sizes.sum(), 1))
    description = (
        f"{held_out.sum():,} of {len(sizes):,} documents, drawn at random, are held out, "
        f"{100 * share:.3g}% of the bytes"
    )
    if not fraction / 2 <= share <= 2 * fraction:
        description += (
            f" (whole documents come no closer to {100 * fraction:.3g}%; --data.split fraction does)"
        )
    return SplitPlan(description, _shuffled(store, everything[~chosen]), everything[chosen])


def _splits_whole(sizes: np.ndarray, fraction: float) -> bool:
    """Return whether documents of these sizes can be held out whole without nearly all small ones."""
    wanted = fraction * int(sizes.sum())
    return len(sizes) >= DOCUMENTS_FOR_SPLIT and wanted <= LARGEST_SHARE * int(sizes[sizes <= wanted].sum())


def draw_documents(sizes: np.ndarray, fraction: float) -> np.ndarray:
    """Return for each document of these bytes whether it is held out; neither side is empty.

    In an order drawn from a fixed seed, each document that is not larger than what is missing is taken. In
    the end the document that comes nearest to ``fraction`` of all bytes is added, if the result is nearer
    than without it.
    """
    held_out = np.zeros(len(sizes), dtype=bool)
    missing, smallest, taken = fraction * int(sizes.sum()), int(sizes.min()), 0
    for document in np.random.default_rng(0).random(len(sizes)).argsort(kind="stable").tolist():
        if missing < smallest or taken == len(sizes) - 1:
            break
        if sizes[document] <= missing:
            held_out[document] = True
            missing, taken = missing - int(sizes[document]), taken + 1
    left = np.flatnonzero(~held_out & (sizes > 0))
    if len(left) > 1:
        nearest = left[np.abs(sizes[left] - missing).argmin()]
        if not sizes[held_out].any() or abs(int(sizes[nearest]) - missing) < missing:
            held_out[nearest] = True
    return held_out


def _split_ends(store: DocumentStore, numbers: np.ndarray, fraction: float) -> SplitPlan:
    """Hold out the last ``fraction`` of the characters of each source."""
    train: list[np.ndarray] = []
    validation: list[np.ndarray] = []
    cuts: dict[int, int] = {}
    sources = _by_source(store, numbers)
    for pieces in sources:
        ends = store.pieces["characters"][pieces].cumsum(dtype=np.int64)
        boundary = int(ends[-1] * (1 - fraction))
        first = int(np.searchsorted(ends, boundary, side="right"))
        cut = boundary - (int(ends[first - 1]) if first else 0)
        if cut:
            cuts[int(pieces[first])] = cut
        train.append(pieces[: first + (cut > 0)])
        validation.append(pieces[first:])
    each = " of each source" if len(sources) > 1 else ""
    description = f"the last {100 * fraction:.3g}% of the characters{each} are held out"
    return SplitPlan(description, np.concatenate(train), np.concatenate(validation), cuts)


def _by_source(store: DocumentStore, numbers: np.ndarray) -> list[np.ndarray]:
    return np.split(numbers, np.flatnonzero(np.diff(store.pieces["source"][numbers])) + 1)


def _shuffled(store: DocumentStore, numbers: np.ndarray) -> np.ndarray:
    """Return the documents of each source in a fixed pseudo-random order; their pieces stay in order."""
    order: list[np.ndarray] = []
    for source in _by_source(store, numbers):
        starts = np.flatnonzero(store.pieces["begins"][source])
        lengths = np.diff(starts, append=len(source))
        drawn = permute(np.arange(len(starts)), len(starts), key=0)
        ends = lengths[drawn].cumsum()
        indices = np.repeat(starts[drawn] - (ends - lengths[drawn]), lengths[drawn]) + np.arange(ends[-1])
        order.append(source[indices])
    return np.concatenate(order)
