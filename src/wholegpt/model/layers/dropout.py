"""Dropout (Srivastava et al. 2014) with fast random numbers on CPUs."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integer type with the same size as a float of so many bytes."""


def dropout(x: Float[Tensor, "*S"], p: float) -> Float[Tensor, "*S"]:
    """Zero each element of ``x`` with probability ``p``, and divide the others by 1 − p to keep the mean.

    On a CPU, PyTorch draws one random number at a time, which takes a third of a training step; there the
    random bits come from ``keep_bits``. Both are seeded by PyTorch's generator.
    """
    if not p:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    dropped = _Dropout.apply(x, p)
    assert isinstance(dropped, Tensor)
    return dropped


def keep_bits(like: Float[Tensor, "*S"], p: float) -> Int[Tensor, "*S"]:
    """Return for each element of ``like`` an integer of its size: 0 with probability ``p``, else all ones.

    ``p`` is exact to 2⁻¹⁵ or better. The bits come from NumPy's SFC64, seeded from PyTorch's generator.
    """
    kind = BITS[like.element_size()]
    seed = int(torch.randint(2**63 - 1, ()))
    words = np.random.SFC64(seed).random_raw(-(-like.numel() * like.element_size() // 8))
    bits = torch.from_numpy(words).view(kind)[: like.numel()].view(like.shape)
    # The shift gives a uniform number from −m to m − 1; the offset makes its sign negative with probability 1
    # − p; the last shift copies that sign to all bits.
    half_range = (torch.iinfo(kind).max + 1) // 2
    moved = bits.bitwise_right_shift_(1).add_(round((2 * p - 1) * half_range))
    return moved.bitwise_right_shift_(8 * like.element_size() - 1)


def masked(x: Float[Tensor, "*S"], bits: Int[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """Return ``x`` where ``bits`` are all ones, and 0 where they are 0."""
    return (x.view(bits.dtype) & bits).view(x.dtype)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "*S"], p: float) -> Float[Tensor, "*S"]:
        bits = keep_bits(x, p)
        ctx.save_for_backward(bits)
        ctx.p = p
        return masked(x, bits).div_(1 - p)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Float[Tensor, "*S"]
    ) -> tuple[Float[Tensor, "*S"], None]:
        (gradient,) = gradients
        (bits,) = ctx.saved_tensors
        p: float = ctx.p
        return masked(gradient, bits).div_(1 - p), None
