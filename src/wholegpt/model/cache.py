"""What a model keeps of the tokens it has read: keys and values, or a sum of fixed size.

Shapes: L layers, B sequences, S cached positions, T new positions, H key-value heads, K head width.
"""

import math
import sys
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wholegpt.errors import ConfigError
from wholegpt.model.layers.masks import is_seen
from wholegpt.settings.choices import Attention, Positions
from wholegpt.settings.schema import ModelConfig

READ_AT_ONCE = 512
"""Most tokens of a text that are read at once where the cache is shorter than the text."""


class KeyValueCache:
    """Keys and values of every layer for up to ``capacity`` positions of each sequence, allocated once.

    Bytes: 2 · L · B · capacity · H · K · (bytes of one number); that of a window has a capacity of W + 511 at most.
    Position p of a sequence stands at p mod capacity: beyond its capacity a model without learned positions goes on,
    and each token takes the place of the oldest.
    """

    def __init__(
        self,
        keys: Float[Tensor, "L B H S K"],
        values: Float[Tensor, "L B H S K"],
        lengths: Int[Tensor, " B"],
        config: ModelConfig,
    ) -> None:
        self.keys, self.values, self.lengths, self._config = keys, values, lengths, config
        self.reach = min(config.attention_window, self.capacity) if windowed(config) else self.capacity
        """Positions that a token still sees, itself included, however long the sequence is."""
        self._layers = list(zip(keys.unbind(0), values.unbind(0), strict=True))
        self._columns: slice | tuple[Tensor, Tensor] = slice(0)
        self._end, self._fresh = 0, True
        self._whole: KeyValueCache | None = None

    @classmethod
    def empty(
        cls, config: ModelConfig, batch_size: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> "KeyValueCache":
        """Room for ``batch_size`` sequences."""
        shape = cls.shape(config, batch_size, capacity)
        keys, values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        return cls(keys, values, torch.zeros(batch_size, dtype=torch.long), config)

    @staticmethod
    def shape(config: ModelConfig, batch_size: int, capacity: int) -> tuple[int, ...]:
        """Of the keys, and of the values."""
        positions = held_positions(config, capacity)
        return config.n_layers, batch_size, config.n_kv_heads, positions, config.d_head

    @classmethod
    def bytes(cls, config: ModelConfig, batch_size: int, capacity: int, dtype: torch.dtype) -> int:
        """Of both."""
        return 2 * math.prod(cls.shape(config, batch_size, capacity)) * dtype.itemsize

    rewinds = True

    @property
    def whole(self) -> "KeyValueCache":
        """The cache whose first sequences these are."""
        return self._whole or self

    @property
    def capacity(self) -> int:
        """Positions that each sequence has memory for."""
        return self.keys.shape[3]

    @property
    def most_at_once(self) -> int:
        """Tokens that can be read together without one of them taking the place of what another still sees."""
        if not windowed(self._config):
            return self.capacity
        return max(1 + self.capacity - self.reach, self.capacity - int(self.lengths.max()))

    def reserve(self, n_tokens: int) -> tuple[Int[Tensor, "*B T"], Bool[Tensor, "*M T S"] | None]:
        """Make ready for T tokens more of every sequence: their positions, and which keys each may see (``None``: all).

        Both are for all sequences alike where those are equally long. Positions that have left the memory are not
        seen. Raises ``ConfigError`` where tokens would take places that others of them still need.
        """
        capacity, device = self.capacity, self.keys.device
        starts = self.lengths.tolist()
        first, last = min(starts), max(starts)
        bounded = bounded_positions(self._config)
        if last + n_tokens > capacity and (bounded or n_tokens > 1 + capacity - self.reach):
            raise ConfigError(f"{last} and {n_tokens} more tokens do not fit a cache of {capacity}")
        self._fresh = last == 0
        self._end = min(last + n_tokens, capacity)
        if len(starts) > 1 and n_tokens == 1 and 2 * self._end > capacity:
            # PyTorch copies what it multiplies in 16 bits unless that lies in one piece.
            self._end = capacity
        new, rows = torch.arange(n_tokens, device=device), torch.arange(len(starts), device=device)[:, None]
        if first == last:
            at = first % capacity
            whole = at + n_tokens <= capacity
            self._columns = slice(at, at + n_tokens) if whole else (rows, ((first + new) % capacity)[None])
            all_seen = n_tokens == 1 and self._end <= first + 1 and self._config.attention is Attention.full
            return first + new, None if all_seen else self._seen(first + new)
        positions = (self.lengths.to(device)[:, None] + new).contiguous()
        self._columns = rows, positions % capacity
        return positions, self._seen(positions).unsqueeze(1)

    def reserve_at_lengths(self) -> tuple[Int[Tensor, "B 1"], Bool[Tensor, "B 1 1 S"]]:
        """``reserve(1)`` in shapes that do not depend on how long the sequences are: all of the memory is attended to.

        For a sequence that has no room left, and so does not go on, the position is the last one.
        """
        lengths = (
            self.lengths.clamp_max(self.capacity - 1) if bounded_positions(self._config) else self.lengths
        )
        positions = lengths[:, None].to(self.keys.device)
        rows = torch.arange(len(lengths), device=positions.device)[:, None]
        self._columns, self._end, self._fresh = (rows, positions % self.capacity), self.capacity, False
        return positions, self._seen(positions).unsqueeze(1)

    def layers(self) -> list[Tensor]:
        """The keys and the values of each layer."""
        return [one for layer in self._layers for one in layer]

    def _seen(self, positions: Int[Tensor, "*B T"]) -> Bool[Tensor, "*B T S"]:
        """Which columns hold a position that each of the new ones sees."""
        columns = torch.arange(self._end, device=positions.device)
        if self._config.attention is Attention.full:
            return columns <= positions[..., None]
        newest = positions[..., -1:, None]
        held = newest - (newest - columns) % self.capacity
        distance = positions[..., None] - held
        return is_seen(distance, self._config) & (held >= 0)

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
        rows = KeyValueCache(self.keys[:, some], self.values[:, some], self.lengths[some], self._config)
        if first == 0:
            rows._whole = self.whole
        return rows

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
        """Forget everything, keeping the memory, which is set to 0 as far as it was used.

        NaN would remain else: attention gives what is not seen a weight of 0, and 0 · NaN is NaN. The position after
        the last one is where a compiled step of other sequences writes.
        """
        used = min(int(self.lengths.max()) + 1, self.capacity)
        for held in (self.keys, self.values):
            held[:, :, :, :used] = 0
        self.lengths.zero_()

    def repeated(self, batch_size: int, capacity: int) -> "KeyValueCache":
        """A cache for ``batch_size`` sequences that all begin with what this one, of a single sequence, holds."""
        rooms: list[Tensor] = []
        length = int(self.lengths[0])
        for held in (self.keys, self.values):
            layers, _, heads, _, width = held.shape
            positions = held_positions(self._config, capacity)
            room = held.new_zeros((layers, batch_size, heads, positions, width))
            room[:, :, :, : min(length, self.capacity)] = held[:, :, :, :length]
            rooms.append(room)
        return KeyValueCache(rooms[0], rooms[1], self.lengths.repeat(batch_size), self._config)

    def can_forget(self, row: int, length: int) -> bool:
        """Whether a sequence can go back to its first ``length`` tokens: all that those after them see is held."""
        return int(self.lengths[row]) - self.capacity <= max(0, length + 1 - self.reach)


class RecurrentCache:
    """One tensor a layer and sequence, however long it is: what attention without a softmax has summed up."""

    rewinds = False

    def __init__(self, states: Float[Tensor, "L B *S"], lengths: Int[Tensor, " B"]) -> None:
        self.states, self.lengths = states, lengths

    @classmethod
    def empty(cls, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> "RecurrentCache":
        """Sums of nothing, for L layers and B sequences, which ``shape`` begins with."""
        return cls(torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape[1], dtype=torch.long))

    @property
    def most_at_once(self) -> int:
        """However many."""
        return sys.maxsize

    def reserve(self, n_tokens: int) -> tuple[Int[Tensor, "*B T"], None]:
        """The positions of T tokens more of every sequence, for all alike where those are equally long."""
        new = torch.arange(n_tokens, device=self.states.device)
        if len(set(self.lengths.tolist())) == 1:
            return int(self.lengths[0]) + new, None
        return self.lengths.to(new.device)[:, None] + new, None

    def advance(self, n_tokens: int) -> None:
        """Count ``n_tokens`` of every sequence as read."""
        self.lengths += n_tokens

    def rows(self, first: int, last: int) -> "RecurrentCache":
        """Sequences ``first`` to ``last`` − 1, in the same memory."""
        return RecurrentCache(self.states[:, first:last], self.lengths[first:last])

    def can_forget(self, row: int, length: int) -> bool:
        """Not one of its tokens: they are in one sum."""
        return length == int(self.lengths[row])

    def copy_row(self, source: int, target: int, length: int | None = None) -> None:
        """Make sequence ``target`` hold what ``source`` does, all of it."""
        assert length is None or self.can_forget(source, length)
        self.states[:, target] = self.states[:, source]
        self.lengths[target] = self.lengths[source]

    def reorder(self, sources: Sequence[int]) -> None:
        """Make sequence i hold what sequence ``sources[i]`` does, all at once; those after the last stay."""
        chosen = list(sources)
        self.states[:, : len(chosen)] = self.states[:, chosen]
        self.lengths[: len(chosen)] = self.lengths[chosen]

    def clear(self) -> None:
        """Forget everything, keeping the memory."""
        self.states.zero_()
        self.lengths.zero_()

    def repeated(self, batch_size: int, capacity: int) -> "RecurrentCache":
        """A cache for ``batch_size`` sequences that all begin with what this one, of a single sequence, holds."""
        repeats = [1, batch_size, *[1] * (self.states.ndim - 2)]
        return RecurrentCache(self.states.repeat(repeats), self.lengths.repeat(batch_size))


ModelCache = KeyValueCache | RecurrentCache


def windowed(config: ModelConfig) -> bool:
    """Whether keys that lie far enough back are seen by no position to come."""
    return config.attention is Attention.sliding_window and not bounded_positions(config)


def bounded_positions(config: ModelConfig) -> bool:
    """Whether there are no more than τ positions: where each is a vector of its own that training has shown."""
    return config.positions in (Positions.learned, Positions.sinusoidal)


def held_positions(config: ModelConfig, capacity: int) -> int:
    """Positions that a cache for so many keeps: no more than the window, and the tokens that are read at once."""
    return min(capacity, config.attention_window + READ_AT_ONCE - 1) if windowed(config) else capacity
