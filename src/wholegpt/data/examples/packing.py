"""Pack several conversations into one window, without attention between them.

Shapes: B rows, T positions.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

import torch

from wholegpt.data.chat.template import EncodedConversation
from wholegpt.data.permutation import endless_order
from wholegpt.data.text.loader import Batch
from wholegpt.losses import IGNORED

PADDING = 0


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Group items of these ``lengths``, none above ``room``, by best fit, longest first.

    Each item goes into the row with the least space left that fits it (Johnson 1973: at most 11/9 of the
    fewest rows, plus a constant).
    """
    rows: list[list[int]] = []
    left: list[tuple[int, int]] = []  # the free space of each row and its index, in ascending order
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        best = bisect_left(left, (lengths[index], -1))
        if best < len(left):
            space, row = left.pop(best)
        else:
            space, row = room, len(rows)
            rows.append([])
        rows[row].append(index)
        insort(left, (space - lengths[index], row))
    return rows


def batches_of(sizes: Sequence[int], most: int) -> Iterator[list[int]]:
    """Yield batches of items of similar size, in ascending order; each is padded to at most ``most`` in
    total.
    """
    chunk: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: sizes[i]):
        if chunk and (len(chunk) + 1) * sizes[index] > most:
            yield chunk
            chunk = []
        chunk.append(index)
    yield from [chunk] if chunk else []


def collate_conversations(rows: Sequence[Sequence[EncodedConversation]]) -> Batch:
    """Collate rows of conversations, which do not see each other; only answers are targets."""
    longest = max(sum(len(one.token_ids) - 1 for one in row) for row in rows)
    inputs = torch.full((len(rows), longest), PADDING)
    targets = torch.full((len(rows), longest), IGNORED)
    documents = torch.zeros(len(rows), longest, dtype=torch.long)
    for number, row in enumerate(rows):
        start = 0
        for document, one in enumerate(row, 1):
            token_ids = torch.tensor(one.token_ids)
            here = slice(start, start + len(token_ids) - 1)
            inputs[number, here] = token_ids[:-1]
            targets[number, here] = token_ids[1:].masked_fill(~torch.tensor(one.scored[1:]), IGNORED)
            documents[number, here] = document
            start = here.stop
    return Batch(inputs, targets, documents)


class ConversationLoader:
    """Yields packed rows, in a new order in every epoch; each batch is a function of (seed, step)."""

    def __init__(
        self, conversations: Sequence[EncodedConversation], length: int, batch_size: int, seed: int
    ) -> None:
        lengths = [len(one.token_ids) - 1 for one in conversations]
        self.rows = [[conversations[i] for i in row] for row in pack(lengths, length)]
        self.batch_size, self.seed = batch_size, seed

    def batch(self, step: int) -> Batch:
        """Return the rows of optimizer step ``step`` (from 0)."""
        chosen = endless_order(step * self.batch_size, self.batch_size, len(self.rows), self.seed)
        return collate_conversations([self.rows[i] for i in chosen])
