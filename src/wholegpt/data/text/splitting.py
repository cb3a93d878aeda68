"""Which text is held out for validation."""

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
"""Documents from which on whole ones are held out, unless the corpus or the user says otherwise."""
LARGEST_SHARE = 0.5
"""Of the text in documents no larger than what is to be held out: the most that is held out in whole documents."""
SPLIT_VERSION = 2
"""Of the rules in this module: what was split by other ones is not gone on with."""

Side = Literal["train", "validation"]
SIDES: tuple[Side, Side] = ("train", "validation")


@dataclass(frozen=True)
class SplitPlan:
    """Which pieces of a store are on which side, and where pieces that are on both are cut."""

    description: str
    train: np.ndarray
    """Numbers of pieces, in order."""
    validation: np.ndarray
    cuts: Mapping[int, int] = field(default_factory=dict)
    """Of pieces that are on both sides: the characters that are on the first."""

    def numbers(self, side: Side) -> np.ndarray:
        """The pieces of one side."""
        return self.train if side == "train" else self.validation

    def text(self, store: DocumentStore, side: Side, place: int) -> str:
        """The text of the piece at ``place`` on one side, as much of it as is there, without its header."""
        number = int(self.numbers(side)[place])
        text = store.text(number)
        if number not in self.cuts:
            return text
        return text[: self.cuts[number]] if side == "train" else text[self.cuts[number] :]

    def headed_text(self, store: DocumentStore, side: Side, place: int) -> str:
        """``text`` after its header: what a model is trained and measured on."""
        return store.header(int(self.numbers(side)[place])) + self.text(store, side, place)

    def begins(self, store: DocumentStore, side: Side) -> np.ndarray:
        """Of each piece of a side, whether a document begins with it; what is left of one that was cut is one."""
        numbers = self.numbers(side)
        begins = store.pieces["begins"][numbers].copy()
        if side == "validation":
            begins |= np.isin(numbers, list(self.cuts))
        begins[:1] = True
        return begins

    def documents(
        self, store: DocumentStore, side: Side, characters: float = math.inf
    ) -> Iterator[Iterator[str]]:
        """The documents of one side, each in pieces, without headers.

        Of more than so many ``characters`` some, drawn evenly.
        """
        starts = np.flatnonzero(self.begins(store, side))
        numbers = self.numbers(side)
        share = characters / max(int(store.pieces["characters"][numbers].sum(dtype=np.int64)), 1)
        draws = np.random.default_rng(0).random(len(starts))
        for draw, (first, after) in zip(draws, pairwise([*starts.tolist(), len(numbers)]), strict=True):
            if draw <= max(share, draws.min()):
                yield (self.text(store, side, place) for place in range(first, after))

    def texts(self, store: DocumentStore, side: Side) -> Iterator[str]:
        """The texts of one side in order, with their headers."""
        return (self.headed_text(store, side, place) for place in range(len(self.numbers(side))))


def plan_split(
    store: DocumentStore, name: str, usual: Split, config: DataConfig, kept: np.ndarray | None = None
) -> SplitPlan:
    """Decide what is held out; the same documents always give the same split.

    By documents: whole ones in an order drawn from a fixed seed, as many as come nearest to ``validation_fraction`` of
    the bytes; the others are shuffled within their source. By fraction: the last part of the characters of each source,
    even in the middle of a document. ``usual`` is the corpus's own way; ``kept`` says which documents are used at all,
    one truth value each. Raises ``DataError`` for one document that is to be split by documents.
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
            f" (whole documents come no nearer to {100 * fraction:.3g}%; --data.split fraction does)"
        )
    return SplitPlan(description, _shuffled(store, everything[~chosen]), everything[chosen])


def _splits_whole(sizes: np.ndarray, fraction: float) -> bool:
    """Whether documents of so many bytes can be divided whole, without holding out nearly all that are small."""
    wanted = fraction * int(sizes.sum())
    return len(sizes) >= DOCUMENTS_FOR_SPLIT and wanted <= LARGEST_SHARE * int(sizes[sizes <= wanted].sum())


def draw_documents(sizes: np.ndarray, fraction: float) -> np.ndarray:
    """Which documents, of so many bytes each, are held out: a truth value each, some of either.

    In an order drawn from a fixed seed, each that is no larger than what is missing is taken; in the end one more, the
    one that comes nearest to ``fraction`` of all bytes, where that is nearer than without it.
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
    """The last ``fraction`` of the characters of each source is held out."""
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
    """The documents of each source in an order as good as random, always the same; their pieces stay in order."""
    order: list[np.ndarray] = []
    for source in _by_source(store, numbers):
        starts = np.flatnonzero(store.pieces["begins"][source])
        lengths = np.diff(starts, append=len(source))
        drawn = permute(np.arange(len(starts)), len(starts), key=0)
        ends = lengths[drawn].cumsum()
        places = np.repeat(starts[drawn] - (ends - lengths[drawn]), lengths[drawn]) + np.arange(ends[-1])
        order.append(source[places])
    return np.concatenate(order)
