"""Preference losses against their formulas in NumPy, and their invariants."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wholegpt.losses import bradley_terry, dpo_loss, ipo_loss, kto_loss, orpo_loss, simpo_loss

LENGTHS = st.integers(1, 50)
LOG_PROBABILITIES = st.floats(-30, -1e-3)
RATIOS = st.floats(-20, 20)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def tensors(*values: list[float]) -> list[torch.Tensor]:
    return [torch.tensor(one, dtype=torch.float64) for one in values]


def assert_equal(found: torch.Tensor, expected: Any) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10, atol=1e-12)


@given(st.lists(st.tuples(RATIOS, RATIOS, st.floats(-3, 3)), min_size=1), st.floats(0, 1))
def test_bradley_terry(rows: list[tuple[float, float, float]], centering: float) -> None:
    chosen, rejected, margins = np.array(rows).T
    expected = -np.log(sigmoid(chosen - rejected - margins)) + centering * (chosen + rejected) ** 2
    one, other, margin = tensors(chosen, rejected, margins)
    assert_equal(bradley_terry(one, other, margin, centering), expected)
    shifted = bradley_terry(one + 5, other + 5, margin)
    assert_equal(shifted, -np.log(sigmoid(chosen - rejected - margins)))


@given(st.lists(st.tuples(RATIOS, RATIOS, LENGTHS, LENGTHS), min_size=1), st.floats(0.01, 2))
def test_dpo_and_ipo(rows: list[tuple[float, float, int, int]], beta: float) -> None:
    chosen, rejected, n_chosen, n_rejected = np.array(rows, dtype=float).T
    assert_equal(
        dpo_loss(*tensors(chosen, rejected), beta=beta), -np.log(sigmoid(beta * chosen - beta * rejected))
    )
    expected = (chosen / n_chosen - rejected / n_rejected - 0.5 / beta) ** 2
    lengths = torch.tensor([row[2:] for row in rows]).T
    assert_equal(ipo_loss(*tensors(chosen, rejected), *lengths, beta=beta), expected)


def test_dpo_loss_of_the_reference_model_is_ln_2() -> None:
    ratios = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    losses = dpo_loss(ratios, torch.zeros(3, dtype=torch.float64), beta=0.1)
    assert losses.tolist() == pytest.approx([math.log(2)] * 3, rel=1e-15)
    losses.sum().backward()
    assert ratios.grad is not None and ratios.grad.tolist() == pytest.approx([-0.05] * 3)


@given(st.lists(st.tuples(RATIOS, st.booleans()), min_size=1), st.floats(0, 5), st.floats(0.01, 2))
def test_kto(rows: list[tuple[float, bool]], divergence: float, beta: float) -> None:
    ratios, desirable = np.array(rows, dtype=float).T
    wanted, unwanted = 1 - sigmoid(beta * (ratios - divergence)), 1 - sigmoid(beta * (divergence - ratios))
    given, wanted_ones = tensors(ratios, desirable)
    expected = np.where(desirable == 1, 1.5 * wanted, 0.5 * unwanted)
    assert_equal(kto_loss(given, wanted_ones, divergence, beta, 1.5, 0.5), expected)


@given(
    st.lists(st.tuples(LOG_PROBABILITIES, LOG_PROBABILITIES, LENGTHS, LENGTHS), min_size=1),
    st.floats(0.1, 3),
    st.floats(0, 2),
)
def test_orpo_and_simpo(rows: list[tuple[float, float, int, int]], weight: float, margin: float) -> None:
    chosen, rejected, n_chosen, n_rejected = np.array(rows, dtype=float).T
    given = [*tensors(chosen, rejected), *torch.tensor([row[2:] for row in rows]).T]
    mean_chosen, mean_rejected = chosen / n_chosen, rejected / n_rejected
    odds = [np.exp(one) / -np.expm1(one) for one in (mean_chosen, mean_rejected)]
    assert_equal(
        orpo_loss(*given, weight=weight), -mean_chosen - weight * np.log(sigmoid(np.log(odds[0] / odds[1])))
    )
    difference = weight * (mean_chosen - mean_rejected) - margin
    assert_equal(simpo_loss(*given, beta=weight, margin=margin), -np.log(sigmoid(difference)))


def test_orpo_loss_of_an_answer_with_probability_1_is_finite() -> None:
    certain = torch.zeros(1, requires_grad=True)
    loss = orpo_loss(certain, torch.zeros(1), torch.tensor([1]), torch.tensor([1]), weight=0.1)
    loss.sum().backward()
    assert loss.isfinite().all() and certain.grad is not None and certain.grad.isfinite().all()


def test_gradients_of_large_differences_are_finite() -> None:
    """Where σ is 0 or 1 in floating point, its logarithm and gradient are still correct."""
    for difference, expected in ((-1e4, -1.0), (1e4, 0.0)):
        chosen = torch.tensor([difference], requires_grad=True)
        loss = bradley_terry(chosen, torch.zeros(1))
        loss.sum().backward()
        assert loss.item() == pytest.approx(max(-difference, 0))
        assert chosen.grad is not None and chosen.grad.item() == expected
