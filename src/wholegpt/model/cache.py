"""The key–value cache: what attention keeps of the tokens it has read.

Shapes: L layers, B batch, S cached positions, T new positions, H key-value heads, K head width.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from wholegpt.config import ModelConfig


class KeyValueCache:
    """Keys and values of every layer for up to ``capacity`` positions, allocated once.

    Bytes: 2 · L · B · capacity · H_kv · K · (bytes of one number).
    """

    def __init__(self, keys: Float[Tensor, "L B H S K"], values: Float[Tensor, "L B H S K"]) -> None:
        self.keys, self.values = keys, values
        self.length = 0

    @classmethod
    def empty(
        cls, config: ModelConfig, batch_size: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> "KeyValueCache":
        """Room for ``batch_size`` sequences."""
        shape = (config.n_layers, batch_size, config.n_kv_heads, capacity, config.d_head)
        return cls(*(torch.zeros(shape, device=device, dtype=dtype) for _ in range(2)))

    def extend(
        self, layer: int, keys: Float[Tensor, "B H T K"], values: Float[Tensor, "B H T K"]
    ) -> tuple[Float[Tensor, "B H S K"], Float[Tensor, "B H S K"]]:
        """Store one layer's new keys and values; return all of that layer's so far."""
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, n_tokens: int) -> None:
        """Count ``n_tokens`` as read, once every layer has stored them."""
        self.length += n_tokens

    def clear(self) -> None:
        """Forget everything, keeping the memory."""
        self.length = 0

    def repeated(self, batch_size: int, capacity: int) -> "KeyValueCache":
        """A cache for ``batch_size`` sequences that all begin with what this one, of a single sequence, holds."""
        rooms: list[Tensor] = []
        for held in (self.keys, self.values):
            layers, _, heads, _, width = held.shape
            room = held.new_zeros((layers, batch_size, heads, capacity, width))
            room[:, :, :, : self.length] = held[:, :, :, : self.length]
            rooms.append(room)
        copy = KeyValueCache(*rooms)
        copy.length = self.length
        return copy
