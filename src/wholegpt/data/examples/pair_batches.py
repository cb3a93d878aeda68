"""Batches of preference pairs, each a function of (seed, step). Shapes: B pairs, N pairs of a split, T positions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wholegpt.data.chat.template import ChatTemplate, EncodedConversation, Message
from wholegpt.data.examples.packing import PADDING
from wholegpt.data.examples.preferences import PreferencePair
from wholegpt.data.permutation import endless_order
from wholegpt.errors import DataError
from wholegpt.losses import IGNORED
from wholegpt.tokenizers import Tokenizer


@dataclass(frozen=True)
class EncodedPair:
    """A pair as token ids; only the answers are scored."""

    pair: PreferencePair
    sides: tuple[EncodedConversation, EncodedConversation]
    """The prompt with the chosen answer, and with the rejected one."""
    cut: bool
    """Whether a part of an answer is beyond the window."""


def encode_pairs(
    pairs: Sequence[PreferencePair], template: ChatTemplate, tokenizer: Tokenizer, length: int
) -> list[EncodedPair]:
    """Encode pairs, cut to at most ``length`` + 1 tokens. Pairs whose prompt leaves no room for an answer are left out.

    Raises ``DataError`` if none is left.
    """
    encoded: list[EncodedPair] = []
    for pair in pairs:
        asked = len(template.encode(pair.prompt, tokenizer, generation_prompt=True).token_ids)
        if asked > length:
            continue
        wholes = [
            template.encode((*pair.prompt, Message("assistant", answer)), tokenizer)
            for answer in (pair.chosen, pair.rejected)
        ]
        chosen, rejected = (
            EncodedConversation(
                one.token_ids[: length + 1],
                [counts and i >= asked for i, counts in enumerate(one.scored[: length + 1])],
            )
            for one in wholes
        )
        cut = any(len(one.token_ids) > length + 1 for one in wholes)
        encoded.append(EncodedPair(pair, (chosen, rejected), cut))
    if not encoded:
        raise DataError(
            f"none of {len(pairs):,} pairs has a prompt that leaves room for an answer in {length:,} tokens; shorten "
            "the prompts, or raise that limit (--windows.length, or the model's context)"
        )
    return encoded


@dataclass(frozen=True)
class PairBatch:
    """A batch of pairs, padded at the end to the longest side; the chosen side is the first."""

    token_ids: Int[Tensor, "B 2 T"]
    targets: Int[Tensor, "B 2 T"]
    """The next token where it belongs to the answer, ``IGNORED`` elsewhere."""
    reference: Float[Tensor, "B 2"]
    """ln π_ref of both answers, in nats."""
    divergence: float = 0.0
    """The estimate z of KTO for the whole step, in nats per completion."""

    def __len__(self) -> int:
        return len(self.token_ids)

    def rows(self, start: int, end: int) -> "PairBatch":
        """Return pairs ``start`` to ``end`` − 1: a micro-batch."""
        return PairBatch(*(tensor[start:end] for tensor in self.tensors), divergence=self.divergence)

    def to(self, device: torch.device) -> "PairBatch":
        """Return the batch on ``device``."""
        return PairBatch(*(tensor.to(device) for tensor in self.tensors), divergence=self.divergence)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return all tensors, each with one row per pair."""
        return self.token_ids, self.targets, self.reference


def collate_pairs(pairs: Sequence[EncodedPair]) -> PairBatch:
    """Collate pairs of different lengths."""
    longest = max(len(side.token_ids) for pair in pairs for side in pair.sides) - 1
    token_ids = torch.full((len(pairs), 2, longest), PADDING)
    targets = torch.full((len(pairs), 2, longest), IGNORED)
    for row, pair in enumerate(pairs):
        for column, side in enumerate(pair.sides):
            ids, scored = torch.tensor(side.token_ids), torch.tensor(side.scored[1:])
            token_ids[row, column, : len(ids) - 1] = ids[:-1]
            targets[row, column, : len(ids) - 1] = ids[1:].masked_fill(~scored, IGNORED)
    reference = torch.tensor([one.pair.reference for one in pairs], dtype=torch.float32)
    return PairBatch(token_ids, targets, reference)


class PairLoader:
    """Yields batches of pairs, in a new order in every epoch; each batch is a function of (seed, step)."""

    def __init__(self, pairs: Sequence[EncodedPair], batch_size: int, seed: int) -> None:
        self.pairs, self.batch_size, self.seed = pairs, batch_size, seed

    def indices(self, step: int) -> list[int]:
        """Return the indices of the pairs of optimizer step ``step`` (from 0)."""
        return endless_order(step * self.batch_size, self.batch_size, len(self.pairs), self.seed)

    def batch(self, step: int) -> PairBatch:
        """Return the pairs of optimizer step ``step`` (from 0)."""
        return collate_pairs([self.pairs[i] for i in self.indices(step)])


def with_references(pairs: Sequence[EncodedPair], references: Float[Tensor, "N 2"]) -> list[PreferencePair]:
    """Return the pairs with their reference log-probabilities."""
    return [
        replace(one.pair, reference=(chosen, rejected))
        for one, (chosen, rejected) in zip(pairs, references.tolist(), strict=True)
    ]
