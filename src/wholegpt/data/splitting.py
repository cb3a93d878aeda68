"""Which text is held out for validation."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from wholegpt.config import DataConfig, Split
from wholegpt.data.documents import DocumentStore
from wholegpt.errors import DataError

DOCUMENTS_FOR_SPLIT = 50
"""Documents from which on whole ones are held out, unless the corpus or the user says otherwise."""

Side = Literal["train", "validation"]
SIDES: tuple[Side, Side] = ("train", "validation")


@dataclass(frozen=True)
class SplitPlan:
    """Which pieces of a store are on which side, and where the piece between the sides is cut."""

    description: str
    train: np.ndarray
    """Numbers of pieces, in order."""
    validation: np.ndarray
    cut: int = 0
    """Where a piece is on both sides: its characters that are on the first."""

    def numbers(self, side: Side) -> np.ndarray:
        """The pieces of one side."""
        return self.train if side == "train" else self.validation

    def text(self, store: DocumentStore, side: Side, place: int) -> str:
        """The text of the piece at ``place`` on one side, as much of it as is there."""
        numbers = self.numbers(side)
        text = store.text(int(numbers[place]))
        if not self.cut:
            return text
        if side == "train":
            return text[: self.cut] if place == len(numbers) - 1 else text
        return text[self.cut :] if place == 0 else text

    def documents(self, store: DocumentStore, side: Side) -> Iterator[Iterator[str]]:
        """The documents of one side, each in pieces."""
        numbers = self.numbers(side)
        begins = store.pieces["begins"][numbers].copy()
        begins[:1] = True  # what is left of a document that was cut
        for first, after in pairwise([*np.flatnonzero(begins).tolist(), len(numbers)]):
            yield (self.text(store, side, place) for place in range(first, after))

    def texts(self, store: DocumentStore, side: Side) -> Iterator[str]:
        """The texts of one side in order."""
        return (self.text(store, side, place) for place in range(len(self.numbers(side))))


def plan_split(
    store: DocumentStore, name: str, usual: Split, config: DataConfig, kept: np.ndarray | None = None
) -> SplitPlan:
    """Decide what is held out; the same documents always give the same split.

    By documents: each with probability ``validation_fraction``, from a fixed seed. By fraction: the last part of the
    characters, even in the middle of a document. ``usual`` is the corpus's own way; ``kept`` says which documents are
    used at all, one truth value each. Raises ``DataError`` for one
    document that is to be split by documents.
    """
    of_document = store.pieces["begins"].cumsum() - 1
    everything = np.arange(len(store)) if kept is None else np.flatnonzero(kept[of_document])
    begins = store.pieces["begins"][everything]
    documents = int(begins.sum())
    split = config.split if config.split is not Split.automatic else usual
    if split is Split.automatic:
        split = Split.documents if documents >= DOCUMENTS_FOR_SPLIT else Split.fraction
    if split is Split.fraction:
        ends = store.pieces["characters"][everything].cumsum(dtype=np.int64)
        boundary = int(ends[-1] * (1 - config.validation_fraction))
        first = int(np.searchsorted(ends, boundary, side="right"))
        cut = boundary - (int(ends[first - 1]) if first else 0)
        description = f"the last {config.validation_fraction:.0%} of the characters are held out"
        return SplitPlan(description, everything[: first + (cut > 0)], everything[first:], cut)
    if documents < 2:
        raise DataError(f"{name}: one document cannot be split by documents; use --data.split fraction")
    draws = np.random.default_rng(0).random(documents)
    held_out = draws < max(config.validation_fraction, float(draws.min()) + 1e-12)
    held_out[draws.argmax()] = False
    chosen = held_out[begins.cumsum() - 1]
    description = f"{held_out.sum():,} of {documents:,} documents, drawn at random, are held out"
    return SplitPlan(description, everything[~chosen], everything[chosen])
