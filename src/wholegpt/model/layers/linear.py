"""Linear layers (E6). Shapes: B batch dimensions, I inputs, O outputs, N rows."""

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wholegpt.runtime import compute_dtype

ROWS_AT_ONCE = 1024
"""Rows per product when the gradient of a weight is summed; more rows do not fit the CPU's caches."""


class Linear(nn.Linear):
    """x·Wᵀ + b, computed with oneDNN on processors for which MKL is slow."""

    stacked_rows: list[int] | None = None
    """Number of rows of each map stacked in the weight; ``None`` if it is a single map."""

    def forward(self, input: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:  # noqa: A002 (PyTorch's name)
        """Return the layer's output for each row."""
        x = input
        single = compute_dtype(x) is torch.float32 and x.device.type == "cpu"
        if single and not torch.compiler.is_compiling() and mkl_is_slow():
            compute = _OneDNNLinear.apply if torch.is_grad_enabled() else _product
            product = compute(x.flatten(0, -2), self.weight, self.bias)
            assert isinstance(product, Tensor)
            return product.view(*x.shape[:-1], self.out_features)
        return F.linear(x, self.weight, self.bias)


@cache
def mkl_is_slow() -> bool:
    """Return whether float32 products should use oneDNN: on x86 processors that are not made by Intel.

    There MKL runs at half the speed of oneDNN or less. The result depends only on the processor, which a run
    records and a resumed run must match.
    """
    information = Path("/proc/cpuinfo")
    return (
        platform.machine() == "x86_64"
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and information.exists()
        and "GenuineIntel" not in information.read_text()
    )


def _product(left: Float[Tensor, "N I"], right: Float[Tensor, "O I"], bias: Tensor | None = None) -> Tensor:
    """Compute left·rightᵀ (+ bias) with oneDNN; either may be a transposed view."""
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "N I"],
        weight: Float[Tensor, "O I"],
        bias: Float[Tensor, " O"] | None,
    ) -> Float[Tensor, "N O"]:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Float[Tensor, "N O"]
    ) -> tuple[Float[Tensor, "N I"], Float[Tensor, "O I"], Float[Tensor, " O"] | None]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        biased: bool = ctx.biased
        # oneDNN is faster if the smaller dimension forms the rows of the result.
        wide = weight.shape[1] < weight.shape[0]
        of_weight = torch.zeros_like(weight.t() if wide else weight)
        for rows, of_rows in zip(x.split(ROWS_AT_ONCE), gradient.split(ROWS_AT_ONCE), strict=True):
            first, second = (rows, of_rows) if wide else (of_rows, rows)
            of_weight += _product(first.t(), second.t())
        of_x = _product(gradient, weight.t())
        return of_x, of_weight.t() if wide else of_weight, gradient.sum(0) if biased else None
