"""How a token's place in the sequence enters the model.

Shapes: B batch, T positions, D model width, H heads, K head width.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class LearnedPositions(nn.Embedding):
    """W_p[t]: one learned vector per position, added to the token embedding (E3; GPT-1, GPT-2)."""


class RotaryPositions(nn.Module):
    """Rotation of queries and keys by an angle that grows with the position (Su et al. 2021).

    Pair i of a head's numbers, (x_i, x_{i+K/2}), turns by t · base^(−2i/K), so that a query–key
    product depends on the distance between the two positions only.
    """

    cosines: Tensor
    sines: Tensor

    def __init__(self, context_length: int, d_head: int, base: float) -> None:
        super().__init__()
        frequencies = base ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
        angles = torch.outer(torch.arange(context_length, dtype=torch.float64), frequencies)
        angles = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cosines", angles.cos().float(), persistent=False)
        self.register_buffer("sines", angles.sin().float(), persistent=False)

    def forward(
        self, heads: Float[Tensor, "B H T K"], positions: Int[Tensor, " T"]
    ) -> Float[Tensor, "B H T K"]:
        """``heads`` turned to ``positions``."""
        cosines = self.cosines[positions].to(heads.dtype)
        sines = self.sines[positions].to(heads.dtype)
        first, second = heads.chunk(2, dim=-1)
        return heads * cosines + torch.cat((-second, first), dim=-1) * sines
