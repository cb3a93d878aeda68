"""The key–value cache: what attention keeps of the tokens it has read.

Shapes: B batch, S cached positions, T new positions, H key-value heads, K head width.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from wholegpt.config import ModelConfig


class KeyValueCache:
    """Keys and values of every layer for up to ``context_length`` positions, allocated once.

    Bytes: 2 · L · B · τ · H_kv · K · (bytes of one number).
    """

    def __init__(
        self, config: ModelConfig, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.n_layers, batch_size, config.n_kv_heads, config.context_length, config.d_head)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0

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
