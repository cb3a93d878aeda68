"""Muon: momentum whose matrices are made orthogonal before they are applied (Jordan et al. 2024).

Shapes: N matrices, R rows, C columns.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""a, b, c of ``orthogonalize``: the steepest rise of small singular values that keeps large ones near 1."""
ITERATIONS = 5
UPDATE_SCALE = 0.2
"""Root mean square of the entries of an update before the learning rate, about that of AdamW (Liu et al. 2025)."""


def orthogonalize(matrices: Float[Tensor, "*N R C"]) -> Float[Tensor, "*N R C"]:
    """Return approximately U·Vᵀ for each matrix U·Σ·Vᵀ: the same directions, with singular values of about 1.

    Five Newton–Schulz iterations X ← aX + (bA + cA²)X with A = X·Xᵀ, from X = M/‖M‖_F. Singular values
    end between 0.68 and 1.21, unless they began below about a thousandth of the norm. Computed in the
    matrices' dtype.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + torch.finfo(x.dtype).tiny)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def muon_update(
    matrix: Float[Tensor, "R C"],
    gradient: Float[Tensor, "R C"],
    momentum: Float[Tensor, "R C"],
    learning_rate: float,
    decay: float,
    weight_decay: float,
) -> tuple[Float[Tensor, "R C"], Float[Tensor, "R C"]]:
    """Do one step of Muon for one matrix; the readable twin of the batched step.

    m ← μm + g;  O = orthogonalize(g + μm);  W ← W − η·λ·W − η·0.2·√max(R, C)·O   (Jordan et al. 2024 with
    Liu et al. 2025, section 2.2: the scale makes learning rate and weight decay those of AdamW).

    ``decay`` is μ. Returns the new (W, m).
    """
    momentum = decay * momentum + gradient
    direction = orthogonalize(gradient + decay * momentum)
    step = learning_rate * UPDATE_SCALE * math.sqrt(max(matrix.shape)) * direction
    return matrix - learning_rate * weight_decay * matrix - step, momentum


class Muon(torch.optim.AdamW):
    """An optimizer that applies ``muon_update`` to groups with ``rows``, and PyTorch's fused AdamW to the others.

    ``rows`` gives, for each matrix of the group, the rows of the maps stacked in it (queries, keys and
    values), which are made orthogonal one by one. ``dtype`` is that of this computation; None: that of the matrices.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], dtype: torch.dtype | None, **adamw: Any) -> None:
        super().__init__(groups, **adamw)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Do one step. The gradients of the matrices are overwritten."""
        for group in self.param_groups:
            if "rows" in group:
                self._step_matrices(group)
        super().step()  # which passes over parameters without a gradient

    def _step_matrices(self, group: dict[str, Any]) -> None:
        alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for matrix, rows in zip(group["params"], group["rows"], strict=True):
            if matrix.grad is None:
                continue
            direction = self._direction(matrix, matrix.grad, group["momentum"])
            matrix.grad = None
            for pair in zip(matrix.split(rows), direction.split(rows), strict=True):
                alike[pair[0].shape].append(pair)
        rate = group["lr"]
        for shape, pairs in alike.items():
            stacked = torch.stack([direction.to(self.dtype or direction.dtype) for _, direction in pairs])
            scale = -rate * UPDATE_SCALE * math.sqrt(max(shape))
            for (part, _), orthogonal in zip(pairs, orthogonalize(stacked), strict=True):
                part.mul_(1 - rate * group["weight_decay"]).add_(orthogonal, alpha=scale)

    def _direction(self, matrix: nn.Parameter, gradient: Tensor, decay: float) -> Tensor:
        state = self.state[matrix]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(matrix)
        return gradient.add(state["momentum"].mul_(decay).add_(gradient), alpha=decay)
