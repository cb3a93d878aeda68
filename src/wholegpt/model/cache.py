"""The key–value cache: what attention keeps of the tokens it has read.

Shapes: L layers, B sequences, S cached positions, T new positions, H key-value heads, K head width.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wholegpt.config import ModelConfig, Positions
from wholegpt.errors import ConfigError


class KeyValueCache:
    """Keys and values of every layer for up to ``capacity`` positions of each sequence, allocated once.

    Bytes: 2 · L · B · capacity · H · K · (bytes of one number). Position p of a sequence stands at p mod capacity:
    beyond its capacity a model with rotary positions goes on, and each token takes the place of the oldest.
    """

    def __init__(
        self,
        keys: Float[Tensor, "L B H S K"],
        values: Float[Tensor, "L B H S K"],
        lengths: Int[Tensor, " B"],
        bounded: bool,
    ) -> None:
        self.keys, self.values, self.lengths = keys, values, lengths
        self.bounded = bounded
        """Whether a sequence ends where its memory does."""
        self._layers = list(zip(keys.unbind(0), values.unbind(0), strict=True))
        self._columns: slice | tuple[Tensor, Tensor] = slice(0)
        self._end, self._fresh = 0, True

    @classmethod
    def empty(
        cls, config: ModelConfig, batch_size: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> "KeyValueCache":
        """Room for ``batch_size`` sequences."""
        shape = (config.n_layers, batch_size, config.n_kv_heads, capacity, config.d_head)
        keys, values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        lengths = torch.zeros(batch_size, dtype=torch.long)
        return cls(keys, values, lengths, config.positions is Positions.learned)

    @property
    def capacity(self) -> int:
        """Positions that each sequence has memory for."""
        return self.keys.shape[3]

    def reserve(self, n_tokens: int) -> tuple[Int[Tensor, "*B T"], Bool[Tensor, "*M T S"] | None]:
        """Make ready for T tokens more of every sequence: their positions, and which keys each may see (``None``: all).

        Both are for all sequences alike where those are equally long. Positions that have left the memory are not
        seen. Raises ``ConfigError`` where tokens would take places that others of them still need.
        """
        capacity, device = self.capacity, self.keys.device
        starts = self.lengths.tolist()
        first, last = min(starts), max(starts)
        if last + n_tokens > capacity and (self.bounded or n_tokens > 1):
            raise ConfigError(f"{last} and {n_tokens} more tokens do not fit a cache of {capacity}")
        self._fresh = last == 0
        self._end = min(last + n_tokens, capacity)
        if len(starts) > 1 and n_tokens == 1 and 2 * self._end > capacity:
            # PyTorch copies what it multiplies in 16 bits unless that lies in one piece.
            self._end = capacity
        new = torch.arange(n_tokens, device=device)
        if first == last:
            at = first % capacity
            self._columns = slice(at, at + n_tokens)
            all_seen = n_tokens == 1 and self._end <= first + 1
            seen = torch.arange(self._end, device=device) <= (first + new)[:, None]
            return first + new, None if all_seen else seen
        positions = (self.lengths.to(device)[:, None] + new).contiguous()
        rows = torch.arange(len(starts), device=device)[:, None]
        self._columns = rows, positions % capacity
        visible = torch.arange(self._end, device=device) <= positions[:, :, None]
        return positions, visible.unsqueeze(1)

    def extend(
        self, layer: int, keys: Float[Tensor, "B H T K"], values: Float[Tensor, "B H T K"]
    ) -> tuple[Float[Tensor, "B H S K"], Float[Tensor, "B H S K"]]:
        """Store one layer's new keys and values where ``reserve`` said; return all of that layer's so far."""
        stored = self._layers[layer]
        for room, new in zip(stored, (keys, values), strict=True):
            if isinstance(self._columns, slice):
                room[:, :, self._columns] = new
            else:
                rows, columns = self._columns
                room[rows, :, columns] = new.transpose(1, 2).to(room.dtype)
        if self._fresh:
            return keys, values
        return stored[0][:, :, : self._end], stored[1][:, :, : self._end]

    def advance(self, n_tokens: int) -> None:
        """Count ``n_tokens`` of every sequence as read, once every layer has stored them."""
        self.lengths += n_tokens

    def rows(self, first: int, last: int) -> "KeyValueCache":
        """Sequences ``first`` to ``last`` − 1, in the same memory."""
        some = slice(first, last)
        return KeyValueCache(self.keys[:, some], self.values[:, some], self.lengths[some], self.bounded)

    def copy_row(self, source: int, target: int, length: int | None = None) -> None:
        """Make sequence ``target`` hold what ``source`` does, or its first ``length`` positions."""
        length = int(self.lengths[source]) if length is None else length
        for held in (self.keys, self.values):
            held[:, target, :, :length] = held[:, source, :, :length]
        self.lengths[target] = length

    def reorder(self, sources: Sequence[int]) -> None:
        """Make sequence i hold what sequence ``sources[i]`` does, all at once; those after the last stay."""
        longest = min(int(self.lengths.max()), self.capacity)
        chosen = list(sources)
        for held in (self.keys, self.values):
            held[:, : len(chosen), :, :longest] = held[:, chosen, :, :longest]
        self.lengths[: len(chosen)] = self.lengths[chosen]

    def clear(self) -> None:
        """Forget everything, keeping the memory."""
        self.lengths.zero_()

    def repeated(self, batch_size: int, capacity: int) -> "KeyValueCache":
        """A cache for ``batch_size`` sequences that all begin with what this one, of a single sequence, holds."""
        rooms: list[Tensor] = []
        length = int(self.lengths[0])
        for held in (self.keys, self.values):
            layers, _, heads, _, width = held.shape
            room = held.new_zeros((layers, batch_size, heads, capacity, width))
            room[:, :, :, :length] = held[:, :, :, :length]
            rooms.append(room)
        return KeyValueCache(rooms[0], rooms[1], self.lengths.repeat(batch_size), self.bounded)
