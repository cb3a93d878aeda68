"""Schedules against closed forms, the optimiser against its plain twin."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import tiny_model
from wholegpt.config import OptimizerConfig, ScheduleConfig, ScheduleKind
from wholegpt.losses import IGNORED, negative_log_likelihood
from wholegpt.model import Transformer
from wholegpt.training.optimizers import (
    adamw_update,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    set_learning_rate,
)
from wholegpt.training.schedules import inverse_square_root, learning_rate

PEAK = OptimizerConfig(learning_rate=0.5)


def curve(kind: ScheduleKind, steps: int = 100, **settings: float) -> list[float]:
    schedule = ScheduleConfig(kind=kind, warmup_steps=10, final_fraction=0.1, **settings)
    return [learning_rate(step, steps, PEAK, schedule) for step in range(steps)]


@given(st.sampled_from(list(ScheduleKind)), st.integers(1, 300), st.integers(0, 50))
def test_every_schedule_stays_between_zero_and_its_peak(kind: ScheduleKind, steps: int, warmup: int) -> None:
    schedule = ScheduleConfig(kind=kind, warmup_steps=warmup)
    rates = [learning_rate(step, steps, PEAK, schedule) for step in range(steps)]
    assert all(0 < rate <= 0.5 * (1 + 1e-12) for rate in rates)
    after = rates[max(warmup - 1, 0) :]
    assert after == sorted(after, reverse=True)


@pytest.mark.parametrize("kind", list(ScheduleKind))
def test_warm_up_is_linear_to_the_peak(kind: ScheduleKind) -> None:
    assert curve(kind)[:10] == pytest.approx([0.05 * (i + 1) for i in range(10)])


def test_cosine_is_half_way_down_at_half_time() -> None:
    rates = curve(ScheduleKind.cosine, steps=110)
    assert rates[10] == pytest.approx(0.5)
    assert rates[60] == pytest.approx((0.5 + 0.05) / 2)
    assert rates[109] == pytest.approx(0.05 + 0.45 * (1 + math.cos(math.pi * 0.99)) / 2)


def test_inverse_square_root_is_the_papers() -> None:
    """E10: d^−0.5·min(t^−0.5, t·w^−1.5) of Vaswani et al., divided by its value at t = w."""
    w = 10
    for t in range(1, 200):
        paper = min(t**-0.5, t * w**-1.5)
        assert inverse_square_root(t, w, 1.0) == pytest.approx(paper / w**-0.5)
    assert curve(ScheduleKind.inverse_square_root)[39] == pytest.approx(0.5 * math.sqrt(10 / 40))


def test_warmup_stable_decay() -> None:
    rates = curve(ScheduleKind.warmup_stable_decay, decay_fraction=0.2)
    assert rates[10:81] == [0.5] * 71
    assert rates[90] == pytest.approx((0.5 + 0.05) / 2)
    assert rates[99] == pytest.approx(0.05 + 0.45 / 20)


def test_fused_adamw_equals_its_plain_twin() -> None:
    torch.manual_seed(0)
    config = OptimizerConfig(learning_rate=1e-2, weight_decay=0.3, beta1=0.8, beta2=0.9)
    model = Transformer(tiny_model()).double()
    optimizer = make_optimizer(model, config)
    twins = {
        n: (p.detach().clone(), torch.zeros_like(p), torch.zeros_like(p)) for n, p in model.named_parameters()
    }
    for step in range(1, 6):
        rate = 1e-2 / step
        set_learning_rate(optimizer, rate)
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            decay = config.weight_decay if parameter.ndim >= 2 else 0.0
            settings = dataclasses.replace(config, weight_decay=decay)
            value, mean, square = twins[name]
            twins[name] = adamw_update(value, parameter.grad, mean, square, step, rate, settings)
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), twins[name][0], rtol=1e-12, atol=1e-14)


def test_matrices_decay_and_vectors_do_not() -> None:
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5)
    model = Transformer(tiny_model())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, config)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = before[name] * (0.95 if parameter.ndim >= 2 else 1.0)
        torch.testing.assert_close(parameter.detach(), expected)


def test_optimizer_state_there_and_back() -> None:
    torch.manual_seed(0)
    model = Transformer(tiny_model())
    optimizer = make_optimizer(model, OptimizerConfig())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    again = make_optimizer(model, OptimizerConfig())
    load_optimizer_tensors(again, optimizer_tensors(optimizer))
    first, second = optimizer_tensors(optimizer), optimizer_tensors(again)
    assert first.keys() == second.keys() and len(first) == 3 * len(list(model.parameters()))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_negative_log_likelihood_by_hand() -> None:
    logits = torch.tensor([[[0.0, math.log(3.0)], [5.0, 5.0], [1.0, 2.0]]])
    nats = negative_log_likelihood(logits, torch.tensor([[1, 0, IGNORED]]))
    assert nats.tolist()[0] == pytest.approx([-math.log(0.75), math.log(2), 0.0])


def test_low_precision_logits_are_scored_in_float32() -> None:
    logits = torch.randn(1, 3, 50, dtype=torch.bfloat16)
    nats = negative_log_likelihood(logits, torch.tensor([[1, 2, 3]]))
    assert nats.dtype == torch.float32
    torch.testing.assert_close(nats, negative_log_likelihood(logits.float(), torch.tensor([[1, 2, 3]])))
