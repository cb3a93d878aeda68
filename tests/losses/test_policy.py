"""Reinforcement learning losses against their definitions and against enumeration of all completions."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wholegpt.losses import (
    clipped_policy_loss,
    clipped_value_loss,
    generalized_advantages,
    group_advantages,
    kl_divergence,
    kl_estimate_1,
    kl_estimate_2,
    kl_estimate_3,
    token_weights,
    whitened,
)
from wholegpt.settings.choices import AdvantageScale, PolicyNormalization

VOCABULARY, LENGTH = 3, 2


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def masks(lengths: list[int]) -> Tensor:
    return torch.tensor([[float(t < n) for t in range(max(lengths))] for n in lengths], dtype=torch.float64)


def test_clipped_policy_loss_by_hand() -> None:
    ratios = [0.5, 0.9, 1.0, 1.1, 1.3, 2.0]
    new = torch.tensor([ratios, ratios], dtype=torch.float64).log()
    advantages = torch.tensor([[2.0] * 6, [-2.0] * 6], dtype=torch.float64)
    losses = clipped_policy_loss(new, torch.zeros_like(new), advantages, clip=0.2)
    np.testing.assert_allclose(losses[0], [-1, -1.8, -2, -2.2, -2.4, -2.4], rtol=1e-12)
    np.testing.assert_allclose(losses[1], [1.6, 1.8, 2, 2.2, 2.6, 4], rtol=1e-12)
    higher = clipped_policy_loss(new, torch.zeros_like(new), advantages, clip=0.2, clip_higher=0.28)
    np.testing.assert_allclose(higher[0], [-1, -1.8, -2, -2.2, -2.56, -2.56], rtol=1e-12)


def test_loss_at_ratio_1_is_the_policy_gradient() -> None:
    """At ratio 1, the loss is −Â and its gradient −Â·∇ln π: nothing is clipped."""
    new, advantages = normal(4, 3).requires_grad_(), normal(4, 3, seed=1)
    losses = clipped_policy_loss(new, new.detach(), advantages)
    assert losses.equal(-advantages)
    losses.sum().backward()
    assert new.grad is not None and new.grad.equal(-advantages)


def test_clipped_value_loss_by_hand() -> None:
    values, old = torch.tensor([[1.1, 1.5, 0.2]]), torch.tensor([[1.0, 1.0, 1.0]])
    found = clipped_value_loss(values, old, torch.tensor([[2.0, 2.0, 1.0]]), clip=0.2)
    np.testing.assert_allclose(found, [[0.405, 0.32, 0.32]], rtol=1e-5)


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4), st.floats(0, 1), st.floats(0, 1), st.integers(0, 99)
)
def test_advantages_equal_their_definition(
    lengths: list[int], discount: float, trace: float, seed: int
) -> None:
    """The sum over all later errors by two loops; padding has no effect and no advantage."""
    mask = masks(lengths)
    rewards, values = normal(*mask.shape, seed=seed), normal(*mask.shape, seed=seed + 1)
    found = generalized_advantages(rewards, values, mask, discount, trace)
    for row, length in enumerate(lengths):
        v = [*values[row, :length].tolist(), 0.0]
        errors = [rewards[row, t].item() + discount * v[t + 1] - v[t] for t in range(length)]
        expected = [
            sum((discount * trace) ** (k - t) * errors[k] for k in range(t, length)) for t in range(length)
        ]
        np.testing.assert_allclose(found[row, :length], expected, rtol=1e-10, atol=1e-12)
        assert not found[row, length:].any()


def test_advantages_with_trace_1_are_returns_minus_values() -> None:
    rewards, values = normal(2, 5), normal(2, 5, seed=1)
    returns = rewards.flip(1).cumsum(1).flip(1)
    found = generalized_advantages(rewards, values, torch.ones(2, 5, dtype=torch.float64), 1.0, 1.0)
    torch.testing.assert_close(found, returns - values)


@given(st.lists(st.integers(1, 6), min_size=2, max_size=5), st.integers(0, 99))
def test_whitened(lengths: list[int], seed: int) -> None:
    mask = masks([*lengths, 7])
    found = whitened(normal(*mask.shape, seed=seed), mask)
    scored = found[mask == 1]
    assert abs(scored.mean().item()) < 1e-12 and scored.var(unbiased=False).item() == pytest.approx(1)
    assert not found[mask == 0].any()


@pytest.mark.parametrize("scale", AdvantageScale)
def test_group_advantages(scale: AdvantageScale) -> None:
    rewards = normal(5, 4)
    rewards[0] = 0.7
    found = group_advantages(rewards, scale)
    expected = rewards.numpy() - rewards.numpy().mean(axis=1, keepdims=True)
    if scale is AdvantageScale.group:
        expected = expected / (rewards.numpy().std(axis=1, ddof=1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(found.sum(1), 0, atol=1e-12)
    np.testing.assert_allclose(found[0], 0, atol=1e-10)


def test_weights_by_hand() -> None:
    losses, mask = normal(3, 4), masks([4, 1, 2])

    def mean(normalization: PolicyNormalization, longest: int = 8) -> float:
        weights, count = token_weights(mask, normalization, longest)
        return float((weights * losses).sum()) / count

    rows = [losses[0], losses[1, :1], losses[2, :2]]
    assert mean(PolicyNormalization.token) == pytest.approx(float(torch.cat(rows).mean()))
    assert mean(PolicyNormalization.sequence) == pytest.approx(sum(float(row.mean()) for row in rows) / 3)
    assert mean(PolicyNormalization.constant) == pytest.approx(float(torch.cat(rows).sum()) / 8 / 3)


@pytest.mark.parametrize("normalization", PolicyNormalization)
def test_weights_do_not_depend_on_padding_and_add_up(normalization: PolicyNormalization) -> None:
    mask = masks([4, 1, 2])
    whole, count = token_weights(mask, normalization, 8)
    padded, same = token_weights(torch.nn.functional.pad(mask, (0, 5)), normalization, 8)
    assert padded[:, :4].equal(whole) and not padded[:, 4:].any() and same == count
    parts = [token_weights(mask[some], normalization, 8) for some in (slice(0, 1), slice(1, 3))]
    assert torch.cat([weights for weights, _ in parts]).equal(whole)
    assert sum(number for _, number in parts) == count


# --- Divergences, by enumeration ---------------------------------------------------------------------


def distributions() -> tuple[Tensor, Tensor]:
    """Return the logits of two distributions over ten outcomes; the first requires gradients."""
    return normal(10).requires_grad_(), normal(10, seed=1)


def expectation(probabilities: Tensor, values: Tensor) -> Tensor:
    """Return the mean over samples of a fixed distribution."""
    return (probabilities.detach() * values).sum()


def test_estimates_of_the_divergence() -> None:
    """Exact expectations: k1 and k3 equal KL(π‖π_ref), k2 has its gradient, and the gradient of k1 is 0."""
    logits, reference = distributions()
    log_p, log_q = logits.log_softmax(0)[None], reference.log_softmax(0)[None]
    exact = kl_divergence(logits[None], reference[None])[0]
    means = [
        expectation(log_p.exp(), estimate(log_p, log_q))
        for estimate in (kl_estimate_1, kl_estimate_2, kl_estimate_3)
    ]
    assert means[0].item() == pytest.approx(exact.item()) == means[2].item()
    assert abs(means[1].item() / exact.item() - 1) > 0.01
    reverse = kl_divergence(reference[None], logits[None])[0]
    gradients = [torch.autograd.grad(one, logits, retain_graph=True)[0] for one in (*means, exact, reverse)]
    assert gradients[0].abs().max() < 1e-14
    torch.testing.assert_close(gradients[1], gradients[3])
    torch.testing.assert_close(gradients[2], gradients[4])


def test_estimates_from_samples() -> None:
    logits, reference = distributions()
    log_p, log_q = logits.detach().log_softmax(0), reference.log_softmax(0)
    drawn = torch.multinomial(log_p.exp(), 100_000, True, generator=torch.Generator().manual_seed(1))[None]
    exact = kl_divergence(logits[None], reference[None]).item()
    for estimate in (kl_estimate_1, kl_estimate_3):
        values = estimate(log_p[drawn], log_q[drawn])
        error = values.std().item() / math.sqrt(values.numel())
        assert abs(values.mean().item() - exact) < 4 * error < 0.05 * exact


# --- The policy gradient, by enumeration -------------------------------------------------------------


def log_probabilities(parameters: Tensor, completions: Tensor) -> Tensor:
    """Return ln π of the tokens of completions: the second token depends on the first, shape (N, 2)."""
    first = parameters[0].log_softmax(0)[completions[:, 0]]
    second = parameters[1:].log_softmax(1)[completions[:, 0], completions[:, 1]]
    return torch.stack([first, second], dim=1)


def rewards_of(completions: Tensor) -> Tensor:
    return torch.tensor([[0.3, -1.0, 2.0], [1.0, 0.0, -0.5], [0.1, 0.7, -2.0]], dtype=torch.float64)[
        completions[:, 0], completions[:, 1]
    ]


def estimated_gradients(parameters: Tensor, completions: Tensor, **options: Any) -> Tensor:
    """Return the gradient of each group's loss at ratio 1, shape (G, parameters)."""
    groups, size, _ = completions.shape
    rewards = rewards_of(completions.flatten(0, 1)).view(groups, size)
    advantages = group_advantages(rewards, AdvantageScale.none).flatten()[:, None].expand(-1, LENGTH)
    of_groups = parameters.detach().repeat(groups, 1, 1).requires_grad_()
    new = torch.vmap(log_probabilities)(of_groups, completions).flatten(0, 1)
    total = clipped_policy_loss(new, new.detach(), advantages).sum() / (size - 1)
    return torch.autograd.grad(total, of_groups)[0].flatten(1)


def test_estimated_gradient_equals_the_enumerated_one() -> None:
    """Over all completions of length two; the error falls with the square root of the sample size.

    A group's mean includes the completion's own reward, which shrinks the gradient by (K − 1)/K; hence the
    division by K − 1.
    """
    parameters = normal(1 + VOCABULARY, VOCABULARY).requires_grad_()
    everything = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))
    probabilities = log_probabilities(parameters, everything).sum(1).exp()
    (exact,) = torch.autograd.grad(-(probabilities * rewards_of(everything)).sum(), parameters)
    generator, size = torch.Generator().manual_seed(2), 4
    errors: list[float] = []
    for groups in (250, 4000):
        drawn = torch.multinomial(probabilities.detach(), groups * size, True, generator=generator)
        found = estimated_gradients(parameters, everything[drawn].view(groups, size, LENGTH))
        errors_of_mean = found.std(0) / math.sqrt(groups)
        deviations = (found.mean(0) - exact.flatten()) / errors_of_mean
        assert deviations.abs().max() < 4
        errors.append(float(errors_of_mean.norm()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize("value", [1000.1, 57.3, 5.3, -0.1])
@pytest.mark.parametrize("size", [3, 6, 7, 8])
def test_equal_rewards_have_zero_advantage(value: float, size: int) -> None:
    """Exactly 0, even if their mean in float32 differs from the value."""
    assert (group_advantages(torch.full((2, size), value)) == 0).all()
