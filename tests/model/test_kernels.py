"""Optimized kernels against their plain twins: values, gradients, memory."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from wholegpt.losses import (
    IGNORED,
    language_modeling,
    linear_cross_entropy,
    negative_log_likelihood,
    token_log_probabilities,
)
from wholegpt.model.layers import blocked_attention, linear
from wholegpt.model.layers.attention import attention
from wholegpt.model.layers.blocked_attention import blocked_causal_attention
from wholegpt.model.layers.dropout import dropout, keep_bits, masked
from wholegpt.model.layers.norms import RMSNorm
from wholegpt.runtime import compute_in
from wholegpt.settings.choices import Dtype

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Largest difference from the plain twin in float64, for operands of size about 1."""


def leaves(*tensors: Tensor, dtype: torch.dtype) -> list[Tensor]:
    return [tensor.detach().to(dtype).clone().requires_grad_() for tensor in tensors]


def assert_close(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    for a, b in zip(found, expected, strict=True):
        scale = max(1.0, b.abs().max().item())
        assert (a.double() - b).abs().max().item() <= TOLERANCES[dtype] * scale


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("length", [1, 7, 16, 21, 40])
def test_blocked_attention_equals_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, length: int
) -> None:
    """Values and gradients, for lengths below, at and above the block, and heads split over several tiles."""
    monkeypatch.setattr(blocked_attention, "SHORTEST_BLOCK", 16)
    monkeypatch.setattr(blocked_attention, "SCORES_AT_ONCE", 600)
    torch.manual_seed(0)
    operands = torch.randn(3, 2, 3, length, 8).to(dtype)
    gradient = torch.randn(2, 3, length, 8).to(dtype)
    fast = leaves(*operands, dtype=dtype)
    mixed = blocked_causal_attention(fast[0], fast[1], fast[2])
    mixed.backward(gradient)
    plain = leaves(*operands, dtype=torch.float64)
    expected = attention(plain[0], plain[1], plain[2], torch.ones(length, length, dtype=torch.bool).tril())
    expected.backward(gradient.double())
    grads = [[x.grad for x in side if x.grad is not None] for side in (fast, plain)]
    assert_close([mixed, *grads[0]], [expected, *grads[1]], dtype)


def test_blocked_attention_uses_one_dropout_mask_forward_and_backward() -> None:
    """With a fixed seed the result is a smooth function of its inputs, so finite differences apply."""
    q, k, v = leaves(*torch.randn(3, 1, 2, 5, 4), dtype=torch.float64)

    def dropped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        torch.manual_seed(3)
        return blocked_causal_attention(q, k, v, 0.4)

    assert torch.autograd.gradcheck(dropped, (q, k, v), eps=1e-6, atol=1e-7)
    torch.manual_seed(4)
    many = torch.ones(64, 8, 32, 4, dtype=torch.float64)
    mean = blocked_causal_attention(many, many, many, 0.4).mean().item()
    assert mean == pytest.approx(1, abs=0.01)  # weights sum to 1 on average


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_rms_norm_equals_its_formula(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, gradient = torch.randn(2, 4, 3, 5, 16).to(dtype).transpose(2, 3).unbind(0)
    gain = 1 + 0.3 * torch.randn(16)
    norm = RMSNorm(16, 1e-6).to(torch.float64 if dtype is torch.float64 else torch.float32)
    norm.weight.data.copy_(gain)
    (fast,) = leaves(x, dtype=dtype)
    found = norm(fast)
    found.backward(gradient)
    plain, weight = leaves(x, gain, dtype=torch.float64)
    expected = plain / (plain.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    expected.backward(gradient.double())
    assert found.dtype == dtype and fast.grad is not None and norm.weight.grad is not None
    assert plain.grad is not None and weight.grad is not None
    assert_close([found, fast.grad, norm.weight.grad], [expected, plain.grad, weight.grad], dtype)


@pytest.mark.parametrize("inputs,outputs", [(12, 20), (20, 12)])
@pytest.mark.parametrize("biased", [True, False])
def test_linear_through_onednn_equals_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, inputs: int, outputs: int, biased: bool
) -> None:
    monkeypatch.setattr(linear, "mkl_is_slow", lambda: True)
    monkeypatch.setattr(linear, "ROWS_AT_ONCE", 7)
    torch.manual_seed(0)
    layer = linear.Linear(inputs, outputs, bias=biased)
    x, gradient = torch.randn(3, 5, inputs, requires_grad=True), torch.randn(3, 5, outputs)
    found = layer(x)
    found.backward(gradient)
    plain = leaves(x.detach(), *(p.detach() for p in layer.parameters()), dtype=torch.float64)
    expected = F.linear(*plain)
    expected.backward(gradient.double())
    grads = [[t.grad for t in side if t.grad is not None] for side in ([x, *layer.parameters()], plain)]
    assert len(grads[0]) == 2 + biased
    assert_close([found, *grads[0]], [expected, *grads[1]], torch.float32)


@pytest.mark.parametrize("at_once,rounding", [(2**27, 2**20), (40, 25), (1, 1)])
def test_linear_cross_entropy_equals_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, at_once: int, rounding: int
) -> None:
    monkeypatch.setattr(language_modeling, "LOGITS_AT_ONCE", at_once)
    monkeypatch.setattr(language_modeling, "CPU_SOFTMAX_LOGITS", rounding)
    monkeypatch.setattr(language_modeling, "VOCABULARY_BLOCK", 4)
    torch.manual_seed(0)
    hidden, weight = leaves(torch.randn(3, 5, 4), torch.randn(11, 4), dtype=torch.float64)
    targets = torch.randint(11, (3, 5))
    targets[1, 2] = targets[2, 4] = IGNORED
    found = linear_cross_entropy(hidden, weight, targets)
    (3 * found).backward()
    plain = leaves(hidden.detach(), weight.detach(), dtype=torch.float64)
    expected = negative_log_likelihood(plain[0] @ plain[1].t(), targets).sum()
    (3 * expected).backward()
    grads = [[t.grad for t in side if t.grad is not None] for side in ((hidden, weight), plain)]
    assert_close([found, *grads[0]], [expected, *grads[1]], torch.float64)


@pytest.mark.parametrize("at_once,rounding", [(2**27, 2**20), (40, 25), (1, 1)])
def test_token_log_probabilities_equal_the_plain_ones(
    monkeypatch: pytest.MonkeyPatch, at_once: int, rounding: int
) -> None:
    """With upstream gradients of different values and signs at each position."""
    monkeypatch.setattr(language_modeling, "LOGITS_AT_ONCE", at_once)
    monkeypatch.setattr(language_modeling, "CPU_SOFTMAX_LOGITS", rounding)
    monkeypatch.setattr(language_modeling, "VOCABULARY_BLOCK", 4)
    torch.manual_seed(0)
    hidden, weight = leaves(torch.randn(3, 5, 4), torch.randn(11, 4), dtype=torch.float64)
    targets, upstream = torch.randint(11, (3, 5)), torch.randn(3, 5, dtype=torch.float64)
    targets[1, 2] = targets[2, 4] = IGNORED
    found = token_log_probabilities(hidden, weight, targets)
    found.backward(upstream)
    plain = leaves(hidden.detach(), weight.detach(), dtype=torch.float64)
    expected = -negative_log_likelihood(plain[0] @ plain[1].t(), targets)
    expected.backward(upstream)
    assert not found[1, 2] and not found[2, 4]
    grads = [[t.grad for t in side if t.grad is not None] for side in ((hidden, weight), plain)]
    assert_close([found, *grads[0]], [expected, *grads[1]], torch.float64)


@pytest.mark.parametrize("dtype,tolerance", [(Dtype.bfloat16, 0.02), (Dtype.float16, 0.003)])
def test_token_log_probabilities_in_low_precision(dtype: Dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    hidden, weight = leaves(torch.randn(4, 8, 16), torch.randn(50, 16), dtype=torch.float32)
    targets, upstream = torch.randint(50, (4, 8)), torch.randn(4, 8)
    with compute_in(dtype, torch.device("cpu")):
        found = token_log_probabilities(hidden, weight, targets)
    found.backward(upstream)
    plain = leaves(hidden.detach(), weight.detach(), dtype=torch.float64)
    expected = -negative_log_likelihood(plain[0] @ plain[1].t(), targets)
    expected.backward(upstream.double())
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
    for fast, twin in zip((hidden, weight), plain, strict=True):
        assert fast.grad is not None and fast.grad.dtype == torch.float32 and twin.grad is not None
        assert (fast.grad - twin.grad).abs().max() <= tolerance * twin.grad.abs().max()


def test_token_log_probabilities_never_materialize_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor, forward or backward, has as many elements as the full logits."""
    monkeypatch.setattr(language_modeling, "LOGITS_AT_ONCE", 2000)
    hidden, weight = leaves(torch.randn(4, 25, 4), torch.randn(500, 4), dtype=torch.float32)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            made = func(*args, **(kwargs or {}))
            largest = max(largest, made.numel() if isinstance(made, torch.Tensor) else 0)
            return made

    with Watch():
        token_log_probabilities(hidden, weight, torch.randint(500, (4, 25))).sum().backward()
    assert largest == 2000 < 4 * 25 * 500


@pytest.mark.parametrize("dtype,tolerance", [(Dtype.bfloat16, 0.02), (Dtype.float16, 0.003)])
def test_linear_cross_entropy_in_low_precision(
    monkeypatch: pytest.MonkeyPatch, dtype: Dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(language_modeling, "ROWS_AT_ONCE", 7)
    hidden, weight = leaves(torch.randn(4, 8, 16), torch.randn(50, 16), dtype=torch.float32)
    targets = torch.randint(50, (4, 8))
    with compute_in(dtype, torch.device("cpu")):
        found = linear_cross_entropy(hidden, weight, targets)
    found.backward()
    expected = negative_log_likelihood(hidden.detach() @ weight.detach().t(), targets).sum()
    assert found.item() == pytest.approx(expected.item(), rel=tolerance)
    plain = leaves(hidden, weight, dtype=torch.float64)
    negative_log_likelihood(plain[0] @ plain[1].t(), targets).sum().backward()
    for fast, twin in zip((hidden, weight), plain, strict=True):
        assert fast.grad is not None and fast.grad.dtype == torch.float32 and twin.grad is not None
        assert (fast.grad - twin.grad).abs().max() <= tolerance * twin.grad.abs().max()


def test_linear_cross_entropy_is_finite_for_extreme_logits() -> None:
    """The target is 10,000 nats below the best logit: its probability underflows to 0, but its loss is finite."""
    hidden, weight = torch.tensor([[[100.0]]]), torch.tensor([[100.0], [0.0]])
    nats = linear_cross_entropy(hidden, weight, torch.tensor([[1]]))
    assert nats.item() == pytest.approx(10_000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
def test_dropout_drops_its_share_and_keeps_the_mean(dtype: torch.dtype, p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(300, 1001, dtype=dtype, requires_grad=True)
    found = dropout(x, p)
    found.sum().backward()
    assert x.grad is not None
    n = x.numel()
    share = (found == 0).sum().item() / n
    assert share == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / n))
    assert torch.equal(x.grad == 0, found == 0)
    kept = found[found != 0].double()
    assert (kept - 1 / (1 - p)).abs().max().item() < 0.01 / (1 - p)
    again = dropout(x, p)
    assert not torch.equal(again, found)
    torch.manual_seed(0)
    assert torch.equal(dropout(x, p), found)


def test_dropped_elements_are_independent() -> None:
    """Of four elements that share a 64-bit word, each pair is dropped together as often as expected by chance."""
    torch.manual_seed(0)
    kept = (keep_bits(torch.empty(200_000, 4, dtype=torch.bfloat16), 0.3) != 0).double().numpy()
    correlation = np.corrcoef(kept.T) - np.eye(4)
    assert np.abs(correlation).max() < 5 / math.sqrt(200_000)


def test_masked_is_exact() -> None:
    x = torch.tensor([1.5, -2.25, float("inf"), float("nan")])
    bits = torch.tensor([-1, 0, 0, 0], dtype=torch.int32)
    assert masked(x, bits).tolist() == [1.5, 0, 0, 0]
