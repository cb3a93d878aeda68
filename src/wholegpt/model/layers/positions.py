"""Position information: learned, sinusoidal and rotary.

Shapes: B batch, T positions, D model width, H heads, K head width.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from wholegpt.settings.choices import Positions, RotaryScaling
from wholegpt.settings.schema import ModelConfig

SINUSOIDAL_BASE = 10_000.0


class LearnedPositions(nn.Embedding):
    """W_p[t]: one learned vector per position, added to the token embedding (E3; GPT-1, GPT-2)."""


class SinusoidalPositions(nn.Module):
    """Sines and cosines of t · 10,000^(−2i/D), added to the token embedding (Vaswani et al. 2017, section
    3.5).

    Elements 2i and 2i + 1 of the vector of position t are the sine and the cosine.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model

    def forward(self, positions: Int[Tensor, "*P T"]) -> Float[Tensor, "*P T D"]:
        """Return the vector of each position."""
        pairs = torch.arange(0, self.d_model, 2, device=positions.device, dtype=torch.float64)
        angles = positions[..., None] * SINUSOIDAL_BASE ** (-pairs / self.d_model)
        return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[..., : self.d_model]


@dataclass(frozen=True)
class Rotation:
    """The cosines and sines of the rotation at given positions, repeated for both halves of a head."""

    cosines: Float[Tensor, "*P T K"]
    sines: Float[Tensor, "*P T K"]
    """Negated in the first half."""


def rotary_frequencies(
    config: ModelConfig, dtype: torch.dtype, device: torch.device | None = None
) -> Float[Tensor, " pairs"]:
    """Return the angle θ_i, in radians per position, by which each of the K/2 pairs of a head turns.

    Unscaled, θ_i = base^(−2i/K). ``config.rotary_scaling`` lowers these frequencies by the factor f:

    - ``linear``: θ_i / f (position interpolation, Chen et al. 2023);
    - ``llama3``: θ_i · ((1 − r)/f + r) with r = (n − low) / (high − low), limited to [0, 1]. n = τ₀·θ_i/2π is the
      number of periods in the original context of τ₀ tokens (Meta's code of Llama 3.1).
    """
    pairs = torch.arange(0, config.d_head, 2, device=device, dtype=dtype)
    frequencies = config.rotary_base ** (-pairs / config.d_head)
    match config.rotary_scaling:
        case RotaryScaling.none:
            return frequencies
        case RotaryScaling.linear:
            return frequencies / config.rotary_factor
        case RotaryScaling.llama3:
            low, high = config.rotary_low_freq_factor, config.rotary_high_freq_factor
            periods = config.rotary_original_context * frequencies / (2 * math.pi)
            kept = ((periods - low) / (high - low)).clamp(0, 1)
            return frequencies * ((1 - kept) / config.rotary_factor + kept)


class RotaryPositions(nn.Module):
    """Rotation of queries and keys by an angle that grows with the position (Su et al. 2021).

    The pair (x_i, x_{i+K/2}) of a head's vector turns by t · θ_i (``rotary_frequencies``), so that a query–key
    product depends only on the distance between the two positions.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, positions: Int[Tensor, "*P T"], dtype: torch.dtype) -> Rotation:
        """Return the rotation of each position, computed in ``dtype``; all layers share it."""
        angles = positions.to(dtype)[..., None] * rotary_frequencies(self.config, dtype, positions.device)
        sines = angles.sin()
        return Rotation(torch.cat((angles, angles), dim=-1).cos(), torch.cat((-sines, sines), dim=-1))


def restarted_positions(documents: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Return the position of each token in its document, from 0. ``documents`` holds the document index of
    each token.
    """
    positions = torch.arange(documents.shape[1], device=documents.device)
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return positions - (positions * starts).cummax(dim=1).values


def rotate(heads: Float[Tensor, "B H T K"], rotation: Rotation) -> Float[Tensor, "B H T K"]:
    """Return ``heads`` turned by ``rotation``, in their own dtype."""
    exchanged = heads.roll(heads.shape[-1] // 2, dims=-1)
    cosines, sines = rotation.cosines.to(heads.dtype), rotation.sines.to(heads.dtype)
    return torch.addcmul(heads * cosines, exchanged, sines)


def make_positions(config: ModelConfig) -> tuple[nn.Module | None, RotaryPositions | None]:
    """Return the position embedding and the rotary positions that ``config.positions`` names, or ``None`` for
    each.
    """
    match config.positions:
        case Positions.learned:
            return LearnedPositions(config.context_length, config.d_model), None
        case Positions.sinusoidal:
            return SinusoidalPositions(config.d_model), None
        case Positions.rotary:
            return None, RotaryPositions(config)
        case Positions.none:
            return None, None
