"""Schedules against closed forms, optimizers against their plain twins, the loss and loss scaling."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import tiny_model
from wholegpt.data import Batch
from wholegpt.losses import IGNORED, negative_log_likelihood
from wholegpt.model import Transformer
from wholegpt.settings.choices import OptimizerKind, ScheduleKind
from wholegpt.settings.schema import Config, OptimizerConfig, ScheduleConfig
from wholegpt.settings.serialization import from_mapping
from wholegpt.settings.validation import complete_schedule
from wholegpt.training.loop import train_step
from wholegpt.training.muon import muon_update, orthogonalize
from wholegpt.training.objectives import Terms
from wholegpt.training.optimizers import (
    adamw_update,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    set_learning_rate,
)
from wholegpt.training.schedules import decay_steps, inverse_square_root, learning_rate
from wholegpt.training.state import LossScale, TrainingState

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


FALLING = sorted({*ScheduleKind} - {ScheduleKind.constant})


@given(
    st.sampled_from(FALLING),
    st.integers(3, 3000),
    st.integers(0, 3000),
    st.floats(0.01, 1),
    st.floats(0, 0.9),
)
def test_every_run_reaches_the_peak_and_the_final_rate(
    kind: ScheduleKind, steps: int, warmup: int, decay_fraction: float, final: float
) -> None:
    """For any warm-up: the rate after the last step is the final one."""
    asked = ScheduleConfig(kind, warmup, final, decay_fraction)
    schedule = complete_schedule(asked, steps)
    rates = [learning_rate(step, steps, PEAK, schedule) for step in range(steps + 1)]
    assert max(rates) == pytest.approx(0.5)
    assert rates[-2] < 0.5
    if kind is not ScheduleKind.inverse_square_root:
        assert rates[-1] == pytest.approx(0.5 * final)
    falls = [earlier - later for earlier, later in pairwise(rates[schedule.warmup_steps :])]
    if kind is ScheduleKind.warmup_stable_decay:  # linear decay from the peak, without a jump
        assert max(falls) == pytest.approx(
            0.5 * (1 - final) / decay_steps(steps, schedule.warmup_steps, decay_fraction)
        )


def test_default_warmup_is_at_most_a_tenth_of_the_run() -> None:
    def warmup(steps: int, given: int = 0) -> int:
        return complete_schedule(ScheduleConfig(warmup_steps=given), steps).warmup_steps

    assert [warmup(steps) for steps in (1, 9, 17, 50, 199, 200, 10**6)] == [0, 0, 1, 5, 19, 20, 20]
    assert (warmup(100, 40), warmup(41, 40), warmup(3, 1)) == (40, 4, 1)
    assert [warmup(steps, 40) for steps in (1, 17, 40, 41, 42)] == [0, 1, 4, 4, 40]


@pytest.mark.parametrize("kind", list(ScheduleKind))
def test_warmup_is_linear_to_the_peak(kind: ScheduleKind) -> None:
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
    config = OptimizerConfig(
        kind=OptimizerKind.adamw, learning_rate=1e-2, weight_decay=0.3, beta1=0.8, beta2=0.9
    )
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


def test_weight_decay_applies_to_matrices_only() -> None:
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


@pytest.mark.parametrize("kind", list(OptimizerKind))
def test_optimizer_state_round_trips(kind: OptimizerKind) -> None:
    torch.manual_seed(0)
    model = Transformer(tiny_model())
    optimizer = make_optimizer(model, OptimizerConfig(kind=kind))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    again = make_optimizer(model, OptimizerConfig(kind=kind))
    load_optimizer_tensors(again, model, optimizer_tensors(optimizer, model))
    first, second = optimizer_tensors(optimizer, model), optimizer_tensors(again, model)
    by_muon = len(list(model.block_matrices())) if kind is OptimizerKind.muon else 0
    assert first.keys() == second.keys() and len(first) == 3 * len(list(model.parameters())) - 2 * by_muon
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


def test_orthogonalize_keeps_directions_and_evens_out_singular_values() -> None:
    """Against the singular value decomposition: U·S·Vᵀ becomes U·S′·Vᵀ with S′ near 1."""
    torch.manual_seed(0)
    for shape in ((12, 30), (30, 12), (2, 16, 16)):
        left, _, right = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
        values = torch.linspace(0.01, 1, min(shape[-2:]), dtype=torch.float64)
        found = left.mT @ orthogonalize(left * values @ right) @ right.mT
        diagonal = found.diagonal(dim1=-2, dim2=-1)
        assert (found - torch.diag_embed(diagonal)).abs().max() < 1e-10
        assert diagonal.min() > 0.65 and diagonal.max() < 1.22


def test_muon_equals_its_plain_twin_and_leaves_the_rest_to_adamw() -> None:
    torch.manual_seed(0)
    config = OptimizerConfig(kind=OptimizerKind.muon, learning_rate=1e-2, weight_decay=0.3, momentum=0.9)
    model = Transformer(tiny_model()).double()
    optimizer = make_optimizer(model, config, torch.float64)
    rows = {name: r for p, r in model.block_matrices() for name, q in model.named_parameters() if p is q}
    assert len(rows) == 2 * 5 and rows["blocks.1.attention.query_key_value.weight"] == [16, 8, 8]
    twins = {
        n: (p.detach().clone(), torch.zeros_like(p), torch.zeros_like(p)) for n, p in model.named_parameters()
    }
    for step in range(1, 5):
        rate = 1e-2 / step
        set_learning_rate(optimizer, rate)
        for name, parameter in model.named_parameters():
            parameter.grad = gradient = torch.randn_like(parameter)
            value, momentum, square = twins[name]
            if name in rows:
                parts = [
                    muon_update(w, g, m, rate, config.momentum, config.weight_decay)
                    for w, g, m in zip(
                        *(t.split(rows[name]) for t in (value, gradient, momentum)), strict=True
                    )
                ]
                twins[name] = (torch.cat([w for w, _ in parts]), torch.cat([m for _, m in parts]), square)
            else:
                decay = config.weight_decay if parameter.ndim >= 2 else 0.0
                settings = dataclasses.replace(config, weight_decay=decay)
                twins[name] = adamw_update(value, gradient, momentum, square, step, rate, settings)
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), twins[name][0], rtol=1e-10, atol=1e-12)


def test_loss_scale_halves_on_overflow_and_doubles_after_1000_good_steps() -> None:
    scale = LossScale().after(overflowed=True)
    assert scale == LossScale(2.0**15)
    for _ in range(999):
        scale = scale.after(overflowed=False)
    assert scale == LossScale(2.0**15, 999)
    assert scale.after(overflowed=False) == LossScale(2.0**16)


class Overflowing:
    """An objective whose gradient overflows float16 at a loss scale of 4 or more."""

    unit = "nats_per_token"

    def count(self, batch: Batch) -> int:
        return 1

    def __call__(self, model: torch.nn.Module, batch: Batch) -> Terms:
        weight = next(model.parameters())
        total = (weight.half() * 20_000).float().sum()
        return Terms(total, {self.unit: (total.detach(), 1)})


class OneBatch:
    def batch(self, step: int) -> Batch:
        return Batch(torch.zeros(1, 12, dtype=torch.long), torch.zeros(1, 12, dtype=torch.long))


def test_overflowing_float16_step_is_skipped_and_the_loss_scale_is_reduced() -> None:
    config = from_mapping(
        {
            "optimizer": {"kind": "adamw", "learning_rate": 0.01},
            "precision": {"dtype": "float16"},
            "runtime": {"device": "cpu"},
            "training": {"gradient_clip": 0},
        },
        Config(),
    )
    model = Transformer(tiny_model())
    optimizer = make_optimizer(model, config.optimizer)
    state = TrainingState(loss_scale=LossScale(8.0))
    before = next(model.parameters()).detach().clone()
    skipped = train_step(model, optimizer, Overflowing(), OneBatch(), config, state)
    assert skipped.gradient_norm is None and torch.equal(next(model.parameters()), before)
    assert state.loss_scale == LossScale(4.0)
    state.loss_scale = LossScale(2.0)
    done = train_step(model, optimizer, Overflowing(), OneBatch(), config, state)
    assert done.gradient_norm == pytest.approx(20_000 * before.numel() ** 0.5, rel=1e-3)
    assert not torch.equal(next(model.parameters()), before)
