"""The language modeling loss (E8). Shapes: B batch, T positions, D width, V vocabulary, N = B·T, C of them."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from wholegpt.runtime import at_least_float32, compute_dtype

IGNORED = -100
"""A target that is not scored."""

LOGITS_AT_ONCE = 2**27
"""Maximum logits in memory in ``linear_cross_entropy``: 256 MB in bfloat16."""
CPU_SOFTMAX_LOGITS, SOFTMAX_LOGITS = 2**20, 2**24
"""Maximum logits in float32 at once: 4 MB on a CPU, to fit its caches; elsewhere 64 MB, for fewer kernel
launches.
"""
ROWS_AT_ONCE = 8192
"""Maximum positions at once: the weight's gradient sums over them, in 16 bits if the products are."""
VOCABULARY_BLOCK = 8192
"""Rows of the weight whose gradient is one product; oneDNN is a quarter slower with 50,257 rows."""


def negative_log_likelihood(
    logits: Float[Tensor, "B T V"], targets: Int[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Compute −ln p(target) at each position, in nats, in float32; 0 where the target is ``IGNORED``.

    E8 is the sum of these over an optimizer step, divided by the number of targets in that step.
    """
    precise = at_least_float32(logits)
    losses = F.cross_entropy(precise.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view_as(targets)


def linear_cross_entropy(
    hidden: Float[Tensor, "B T D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, "B T"],
    importance: Float[Tensor, "B T"] | None = None,
) -> Float[Tensor, " "]:
    """Compute the sum of ``negative_log_likelihood(hidden·weightᵀ, targets)`` without storing B·T·V logits.

    Each target is weighted by its ``importance`` (default 1).

    A block of positions is processed at a time: the logits, the loss, and immediately its gradient,
    softmax(logits) − onehot(target), which replaces the logits and is multiplied into the gradients of
    ``hidden`` and ``weight``. The products run in autocast's dtype if it is enabled.
    """
    flat = None if importance is None else importance.flatten()
    total = _LinearCrossEntropy.apply(hidden.flatten(0, 1), weight, targets.flatten(), flat)
    assert isinstance(total, Tensor)
    return total


def token_log_probabilities(
    hidden: Float[Tensor, "B T D"], weight: Float[Tensor, "V D"], targets: Int[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Return ln p(target) at each position, in nats, without storing B·T·V logits; 0 where ``IGNORED``.

    It equals −``negative_log_likelihood(hidden·weightᵀ, targets)`` and accepts any upstream gradient. With g
    = ∂L/∂ln p, ∂L/∂logits = g·(onehot(target) − softmax(logits)). The backward pass computes the logits
    again, a block of positions at a time; ``linear_cross_entropy``, which is the sum, computes them once. The
    products run in autocast's dtype.
    """
    flat = _TokenLogProbabilities.apply(hidden.flatten(0, 1), weight, targets.flatten())
    assert isinstance(flat, Tensor)
    return flat.view_as(targets)


class _TokenLogProbabilities(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Float[Tensor, "N D"], weight: Float[Tensor, "V D"], targets: Int[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        ctx.dtype = compute_dtype(hidden)
        precise = torch.promote_types(hidden.dtype, torch.float32)
        normalizers, found = (
            hidden.new_empty(len(hidden), dtype=precise),
            hidden.new_empty(len(hidden), dtype=precise),
        )
        with torch.autocast(hidden.device.type, enabled=False):
            weight_ = weight.to(ctx.dtype)
            for part in _row_slices(len(hidden), len(weight)):
                logits = hidden[part].to(ctx.dtype) @ weight_.t()
                goal = targets[part].clamp_min(0).unsqueeze(1)
                for some in _softmax_slices(logits):
                    rows = slice(part.start + some.start, part.start + some.stop)
                    normalizers[rows] = torch.logsumexp(logits[some].to(precise), dim=1)
                    found[rows] = logits[some].gather(1, goal[some])[:, 0] - normalizers[rows]
        ctx.save_for_backward(hidden, weight, targets, normalizers)
        return found.masked_fill_(targets == IGNORED, 0)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Float[Tensor, " N"]
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "V D"], None]:
        hidden, weight, targets, normalizers = ctx.saved_tensors
        gradient = gradients[0].to(normalizers.dtype).masked_fill(targets == IGNORED, 0).unsqueeze(1)
        of_hidden, of_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        weight_ = weight.to(ctx.dtype)
        for part in _row_slices(len(hidden), len(weight)):
            rows = hidden[part].to(ctx.dtype)
            logits = rows @ weight_.t()
            goal = targets[part].clamp_min(0).unsqueeze(1)
            for some in _softmax_slices(logits):
                upstream = gradient[part][some]
                of_logits = (
                    (logits[some].to(upstream.dtype) - normalizers[part][some, None]).exp_().mul_(-upstream)
                )
                logits[some] = of_logits.scatter_add_(1, goal[some], upstream).to(logits.dtype)
            of_hidden[part] = logits @ weight_
            _add_product(of_weight, logits, rows)
        return of_hidden, of_weight, None


def _row_slices(rows: int, vocab_size: int) -> list[slice]:
    """Return the blocks of positions whose logits are in memory at once."""
    at_once = max(1, min(ROWS_AT_ONCE, LOGITS_AT_ONCE // vocab_size))
    return [slice(start, min(start + at_once, rows)) for start in range(0, rows, at_once)]


def _softmax_slices(logits: Float[Tensor, "C V"]) -> list[slice]:
    """Return the rows of logits that are in float32 at once."""
    limit = CPU_SOFTMAX_LOGITS if logits.device.type == "cpu" else SOFTMAX_LOGITS
    at_once = max(1, limit // logits.shape[1])
    return [slice(start, min(start + at_once, len(logits))) for start in range(0, len(logits), at_once)]


def _add_product(
    of_weight: Float[Tensor, "V D"], of_logits: Float[Tensor, "C V"], rows: Float[Tensor, "C D"]
) -> None:
    """Add of_logitsᵀ·rows, a block of the vocabulary at a time."""
    for block, of_block in zip(
        of_logits.split(VOCABULARY_BLOCK, dim=1), of_weight.split(VOCABULARY_BLOCK), strict=True
    ):
        of_block += block.t() @ rows


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "N D"],
        weight: Float[Tensor, "V D"],
        targets: Int[Tensor, " N"],
        importance: Float[Tensor, " N"] | None,
    ) -> Float[Tensor, " "]:
        dtype = compute_dtype(hidden)
        hidden_, weight_ = hidden.to(dtype), weight.to(dtype)
        of_hidden, of_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        with torch.autocast(hidden.device.type, enabled=False):
            for part in _row_slices(len(hidden), len(weight)):
                some = hidden_[part]
                logits = some @ weight_.t()
                counts = None if importance is None else importance[part]
                total += _replace_by_gradient(logits, targets[part], counts)
                of_hidden[part] = logits @ weight_
                _add_product(of_weight, logits, some)
        ctx.save_for_backward(of_hidden, of_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Float[Tensor, " "]
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "V D"], None, None]:
        (gradient,) = gradients
        of_hidden, of_weight = ctx.saved_tensors
        return of_hidden.mul_(gradient), of_weight.mul_(gradient), None, None


def _replace_by_gradient(
    logits: Float[Tensor, "C V"], targets: Int[Tensor, " C"], importance: Float[Tensor, " C"] | None
) -> Float[Tensor, " "]:
    """Return the summed loss of ``logits``, and replace them by its gradient, softmax − onehot; 0 where
    ``IGNORED``.
    """
    precise = torch.promote_types(logits.dtype, torch.float32)
    total = logits.new_zeros((), dtype=precise)
    for part in _softmax_slices(logits):
        some, goal = logits[part], targets[part]
        scored = (goal != IGNORED).unsqueeze(1)
        goal = goal.unsqueeze(1).where(scored, 0)
        largest, at_goal = some.amax(1, keepdim=True), some.gather(1, goal)
        probabilities = torch.softmax(some, dim=1, dtype=precise)
        # ln Σ exp(logits) from the largest logit: its probability, at least 1/V, cannot underflow.
        normalizer = largest - probabilities.amax(1, keepdim=True).log()
        nats = (normalizer - at_goal).where(scored, 0)
        probabilities.scatter_add_(1, goal, torch.full_like(goal, -1, dtype=precise))
        if importance is not None:
            counts = importance[part].unsqueeze(1).to(precise)
            nats, probabilities = nats * counts, probabilities.mul_(counts)
        total += nats.sum()
        some.copy_(probabilities if bool(scored.all()) else probabilities.where(scored, 0))
    return total
