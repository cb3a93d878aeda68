"""Caches of the processed tokens: keys and values, or a state of fixed size.

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

PREFILL_CHUNK = 512
"""Largest number of tokens that prefill processes at once if the cache is shorter than the text."""


class KeyValueCache:
    """The KV cache: keys and values of every layer for ``capacity`` positions of each sequence, allocated
    once.

    Bytes: 2 · L · B · capacity · H · K · (bytes per element). With a sliding window the capacity is at most W
    + 511. Position p of a sequence is stored at column p mod capacity: beyond its capacity, a model without
    learned positions continues, and each token replaces the oldest one.
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
        """How many positions a token sees, itself included, in a sequence of any length."""
        self._layers = list(zip(keys.unbind(0), values.unbind(0), strict=True))
        self._columns: slice | tuple[Tensor, Tensor] = slice(0)
        self._end, self._fresh = 0, True
        self._whole: KeyValueCache | None = None

    @classmethod
    def empty(
        cls, config: ModelConfig, batch_size: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> "KeyValueCache":
        """Allocate a cache for ``batch_size`` sequences."""
        shape = cls.shape(config, batch_size, capacity)
        keys, values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        return cls(keys, values, torch.zeros(batch_size, dtype=torch.long), config)

    @staticmethod
    def shape(config: ModelConfig, batch_size: int, capacity: int) -> tuple[int, ...]:
        """Return the shape of the keys, which is also that of the values."""
        positions = held_positions(config, capacity)
        return config.n_layers, batch_size, config.n_kv_heads, positions, config.d_head

    @classmethod
    def bytes(cls, config: ModelConfig, batch_size: int, capacity: int, dtype: torch.dtype) -> int:
        """Return the bytes of keys and values."""
        return 2 * math.prod(cls.shape(config, batch_size, capacity)) * dtype.itemsize

    can_rewind = True

    @property
    def whole(self) -> "KeyValueCache":
        """Return the cache whose first sequences these are."""
        return self._whole or self

    @property
    def capacity(self) -> int:
        """Return how many positions each sequence has memory for."""
        return self.keys.shape[3]

    @property
    def padded_capacity(self) -> int:
        """Return the capacity: padding that replaces no earlier position can be cut."""
        return self.capacity

    @property
    def most_at_once(self) -> int:
        """Return how many tokens fit at once such that none replaces a position that another one still sees."""
        if not windowed(self._config):
            return self.capacity
        return max(1 + self.capacity - self.reach, self.capacity - int(self.lengths.max()))

    def reserve(self, n_tokens: int) -> tuple[Int[Tensor, "*B T"], Bool[Tensor, "*M T S"] | None]:
        """Reserve T more positions in every sequence.

        Returns the positions, and which keys each one may see (``None``: all). Both have no batch dimension
        if all sequences are equally long. Positions that have been replaced are not visible. Raises
        ``ConfigError`` if new tokens would replace positions that other new tokens still need.
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
            # PyTorch copies 16-bit operands of a product unless they are contiguous.
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
        """Reserve one position per sequence, with shapes that do not depend on the lengths of the sequences.

        All of the memory is attended to. A full sequence, which does not continue, gets the last position.
        """
        lengths = (
            self.lengths.clamp_max(self.capacity - 1) if bounded_positions(self._config) else self.lengths
        )
        positions = lengths[:, None].to(self.keys.device)
        rows = torch.arange(len(lengths), device=positions.device)[:, None]
        self._columns, self._end, self._fresh = (rows, positions % self.capacity), self.capacity, False
        return positions, self._seen(positions).unsqueeze(1)

    def layers(self) -> list[Tensor]:
        """Return the keys and the values of each layer."""
        return [one for layer in self._layers for one in layer]

    def _seen(self, positions: Int[Tensor, "*B T"]) -> Bool[Tensor, "*B T S"]:
        """Return which columns hold a position that each new position sees."""
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
        """Store one layer's new keys and values at the reserved columns; return all of that layer's so far."""
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
        """Add ``n_tokens`` to the length of every sequence, after every layer has stored them."""
        self.lengths += n_tokens

    def rows(self, first: int, last: int) -> "KeyValueCache":
        """Return sequences ``first`` to ``last`` − 1 as a view of the same memory."""
        some = slice(first, last)
        rows = KeyValueCache(self.keys[:, some], self.values[:, some], self.lengths[some], self._config)
        if first == 0:
            rows._whole = self.whole
        return rows

    def copy_row(self, source: int, target: int, length: int | None = None) -> None:
        """Copy sequence ``source`` to ``target``, or only its first ``length`` positions."""
        length = int(self.lengths[source]) if length is None else length
        for held in (self.keys, self.values):
            held[:, target, :, :length] = held[:, source, :, :length]
        self.lengths[target] = length

    def reorder(self, sources: Sequence[int]) -> None:
        """Replace sequence i by sequence ``sources[i]``, all at once; later sequences stay."""
        longest = min(int(self.lengths.max()), self.capacity)
        chosen = list(sources)
        for held in (self.keys, self.values):
            held[:, : len(chosen), :, :longest] = held[:, chosen, :, :longest]
        self.lengths[: len(chosen)] = self.lengths[chosen]

    def clear(self) -> None:
        """Remove all tokens but keep the memory, with its used part set to 0.

        Otherwise NaN could remain: attention gives invisible positions a weight of 0, and 0 · NaN is NaN. The
        position after the last one is where a compiled step for other sequences writes.
        """
        used = min(int(self.lengths.max()) + 1, self.capacity)
        for held in (self.keys, self.values):
            held[:, :, :, :used] = 0
        self.lengths.zero_()

    def repeated(self, batch_size: int, capacity: int) -> "KeyValueCache":
        """Return a cache for ``batch_size`` copies of the single sequence of this one."""
        rooms: list[Tensor] = []
        length = int(self.lengths[0])
        for held in (self.keys, self.values):
            layers, _, heads, _, width = held.shape
            positions = held_positions(self._config, capacity)
            room = held.new_zeros((layers, batch_size, heads, positions, width))
            room[:, :, :, : min(length, self.capacity)] = held[:, :, :, :length]
            rooms.append(room)
        return KeyValueCache(rooms[0], rooms[1], self.lengths.repeat(batch_size), self._config)

    def can_rewind_to(self, row: int, length: int) -> bool:
        """Return whether sequence ``row`` can be cut to ``length`` tokens: all positions that later tokens
        see are stored.
        """
        return int(self.lengths[row]) - self.capacity <= max(0, length + 1 - self.reach)


class RecurrentCache:
    """A cache of one state per layer and sequence, of constant size: for attention without softmax and
    recurrent layers.
    """

    can_rewind = False
    padded_capacity = 0

    def __init__(self, states: Float[Tensor, "L B *S"], lengths: Int[Tensor, " B"]) -> None:
        self.states, self.lengths = states, lengths

    @classmethod
    def empty(cls, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> "RecurrentCache":
        """Allocate states of 0. ``shape`` starts with L layers and B sequences."""
        return cls(torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape[1], dtype=torch.long))

    @property
    def most_at_once(self) -> int:
        """Return ``sys.maxsize``: any number of tokens fits."""
        return sys.maxsize

    def reserve(self, n_tokens: int) -> tuple[Int[Tensor, "*B T"], None]:
        """Return the positions of T more tokens; without batch dimension if all sequences are equally long."""
        new = torch.arange(n_tokens, device=self.states.device)
        if len(set(self.lengths.tolist())) == 1:
            return int(self.lengths[0]) + new, None
        return self.lengths.to(new.device)[:, None] + new, None

    def advance(self, n_tokens: int) -> None:
        """Add ``n_tokens`` to the length of every sequence."""
        self.lengths += n_tokens

    def rows(self, first: int, last: int) -> "RecurrentCache":
        """Return sequences ``first`` to ``last`` − 1 as a view of the same memory."""
        return RecurrentCache(self.states[:, first:last], self.lengths[first:last])

    def can_rewind_to(self, row: int, length: int) -> bool:
        """Return whether ``length`` is the whole sequence: the state cannot be cut."""
        return length == int(self.lengths[row])

    def copy_row(self, source: int, target: int, length: int | None = None) -> None:
        """Copy all of sequence ``source`` to ``target``."""
        assert length is None or self.can_rewind_to(source, length)
        self.states[:, target] = self.states[:, source]
        self.lengths[target] = self.lengths[source]

    def reorder(self, sources: Sequence[int]) -> None:
        """Replace sequence i by sequence ``sources[i]``, all at once; later sequences stay."""
        chosen = list(sources)
        self.states[:, : len(chosen)] = self.states[:, chosen]
        self.lengths[: len(chosen)] = self.lengths[chosen]

    def clear(self) -> None:
        """Remove all tokens but keep the memory."""
        self.states.zero_()
        self.lengths.zero_()

    def repeated(self, batch_size: int, capacity: int) -> "RecurrentCache":
        """Return a cache for ``batch_size`` copies of the single sequence of this one."""
        repeats = [1, batch_size, *[1] * (self.states.ndim - 2)]
        return RecurrentCache(self.states.repeat(repeats), self.lengths.repeat(batch_size))


ModelCache = KeyValueCache | RecurrentCache


def windowed(config: ModelConfig) -> bool:
    """Return whether keys that are far enough back are invisible to all later positions."""
    return config.attention is Attention.sliding_window and not bounded_positions(config)


def bounded_positions(config: ModelConfig) -> bool:
    """Return whether the model is limited to τ positions: each one has a vector that training has seen."""
    return config.positions in (Positions.learned, Positions.sinusoidal)


def held_positions(config: ModelConfig, capacity: int) -> int:
    """Return how many positions a cache of ``capacity`` stores; at most a window and one prefill chunk."""
    return min(capacity, config.attention_window + PREFILL_CHUNK - 1) if windowed(config) else capacity
