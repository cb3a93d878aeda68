"""A planned run adjusts its number of steps to the measured speed, to finish in time."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import make_plans_small, text_of
from wholegpt.checkpoint import CheckpointStore
from wholegpt.console import Console
from wholegpt.planning import adjustment
from wholegpt.planning.adjustment import fitting_steps, worth_adjusting
from wholegpt.planning.scaling import PILOT_STEPS, SHORT_PILOT_WIDTH, Difficulty
from wholegpt.runs import adjust, api
from wholegpt.settings import presets
from wholegpt.settings.schema import Config
from wholegpt.settings.serialization import from_mapping
from wholegpt.training.callbacks import CheckPace
from wholegpt.training.state import TrainingState

QUIET = Console(quiet=True)
PLAN = {"seconds": 140.0, "train_seconds": 102.0, "other_seconds": 10.0, "step_seconds": 0.1, "steps": 1000}
"""28 s before the run, 2 s for the first steps, 1,000 steps of 0.1 s, and 10 s of other work."""


def after(step: int, step_seconds: float, other: float = 0.0) -> TrainingState:
    return TrainingState(step=step, train_seconds=2.0 + step * step_seconds, other_seconds=other)


@pytest.mark.parametrize(
    ("state", "spent", "steps"),
    [
        (after(150, 0.1), 28 + 2 + 15, 1000),  # as planned
        (after(150, 0.1, other=1.5), 28 + 2 + 15 + 1.5, 1000),  # some of the other work is done
        (after(150, 0.12), 28 + 2 + 18, 150 + (140 - 48 - 12) / 0.12),  # everything is 20% slower
        (after(150, 0.05), 28 + 2 + 7.5, 1000 * 2),  # twice as fast: at most twice the steps
        (after(150, 0.5), 28 + 2 + 75, 151 / 0.2),  # too slow: the decay cannot start before the current step
        (after(50, 0.3), 28 + 2 + 15, 50 + (140 - 45 - 30) / 0.3),  # slower, noticed early
        (after(50, 2.0), 28 + 2 + 100, 51 / 0.2),
    ],
)
def test_adjusted_steps_fill_the_remaining_time(state: TrainingState, spent: float, steps: float) -> None:
    assert fitting_steps(PLAN, state, spent, 0.8) == pytest.approx(steps, abs=1.001)


@pytest.mark.parametrize(
    ("state", "spent", "expected"),
    [
        (after(49, 0.5), 28 + 2 + 24.5, False),
        (after(50, 0.1), 28 + 2 + 5, False),  # as planned
        (after(50, 0.105), 28 + 2 + 5.25, False),  # slightly slower: possibly noise
        (after(50, 0.05), 28 + 2 + 2.5, False),  # faster: possibly noise
        (after(50, 0.3), 28 + 2 + 15, True),
        (after(150, 0.1), 28 + 2 + 15, False),
        (after(150, 0.105), 28 + 2 + 15.75, True),
        (after(150, 0.05), 28 + 2 + 7.5, True),
    ],
)
def test_when_the_steps_are_adjusted(state: TrainingState, spent: float, expected: bool) -> None:
    assert worth_adjusting(PLAN, state, spent, 0.8) is expected


def test_late_adjustment_is_possible_after_an_early_one() -> None:
    adjusted = {**PLAN, "adjustment": {"step": 30, "early": True}}
    state, spent = after(150, 0.2), 28 + 2 + 30.0
    assert worth_adjusting(adjusted, state, spent, 0.8)
    assert not worth_adjusting(adjusted, after(50, 0.3), 28 + 2 + 15, 0.8)
    late = {**PLAN, "adjustment": {"step": 100, "early": False}}
    assert not worth_adjusting(late, state, spent, 0.8)


def test_plan_of_few_steps_is_not_extended_for_its_decay() -> None:
    plan = {**PLAN, "steps": 20, "step_seconds": 5.0}
    state = TrainingState(step=3, train_seconds=32.0, other_seconds=0.0)
    assert fitting_steps(plan, state, 100.0, 0.8) == 20
    assert not worth_adjusting(plan, TrainingState(step=1, train_seconds=20.0), 48.0, 0.8)


def test_adjusted_run_equals_a_run_created_with_its_steps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_plans_small(monkeypatch)
    (tmp_path / "text.txt").write_text(text_of(60_000))
    steps: list[tuple[int, int]] = []

    def fitting(plan: dict[str, Any], state: TrainingState, spent: float, decay_fraction: float) -> int:
        steps.append((state.step, plan["steps"]))
        return plan["steps"] + 5

    monkeypatch.setattr(adjust, "fitting_steps", fitting)
    monkeypatch.setattr(adjustment, "WORTH_ADJUSTING", 0.0)
    monkeypatch.setattr(adjustment, "WORTH_ADJUSTING_EARLY", 9.0)
    without = dataclasses.replace(Config().logging, sample_tokens=0)
    config = Config(logging=without)
    run = api.train(tmp_path / "text.txt", config=config, minutes=0.1, out=tmp_path / "run", console=QUIET)
    ((paused, planned),) = steps
    assert paused == max(1, int(0.15 * planned))
    assert run.state.step == run.config.training.steps == planned + 5 and not run.state.stop_reason
    plan = json.loads((run.path / "plan.json").read_text())
    assert plan == run.plan and plan["adjustment"]["step"] == paused
    assert plan["adjustment"]["announced"]["steps"] == planned
    assert plan["steps"] == planned + 5 and plan["tokens"] == (planned + 5) * 2 * 32
    assert from_mapping(plan["config"], Config()) == presets.recipe(str(run.path / "config.yaml"))
    once = api.train(config=run.config, out=tmp_path / "once", console=QUIET)
    weights = [
        (CheckpointStore(path).path(planned + 5) / "model.safetensors").read_bytes()
        for path in (run.path, once.path)
    ]
    assert weights[0] == weights[1]
    assert CheckPace.REASON not in (run.path / "report.html").read_text()


def test_plan_for_too_little_time_has_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_plans_small(monkeypatch)
    (tmp_path / "text.txt").write_text(text_of(60_000))
    plan = api.plan(tmp_path / "text.txt", minutes=0.001, console=QUIET)
    assert plan.config.training.steps == 20
    assert any("too little time for useful training here; give at least" in note for note in plan.notes)
    assert plan.seconds > 0.06 and plan.bits_per_byte.low < plan.bits_per_byte.high


def test_short_pilot_run_is_extrapolated() -> None:
    whole = Difficulty.of_pilot(6.0, 5.0, PILOT_STEPS)
    assert (whole.early, whole.last, whole.uncertainty) == (6.0, 5.0, 0.0)
    half = Difficulty.of_pilot(6.0, 5.0, 100)
    assert half.early == pytest.approx(5 * 1.2**0.76) and half.last == pytest.approx(5 * 1.2**-0.35)
    assert half.uncertainty == pytest.approx(SHORT_PILOT_WIDTH)
    between = Difficulty.of_pilot(6.0, 5.0, 141)
    assert half.last < between.last < 5.0 and between.uncertainty < half.uncertainty
    assert Difficulty.of_pilot(5.0, 5.2, 25).last == 5.2  # a rising loss
    assert 0 < Difficulty.of_pilot(1.72, 0.05, 60).last < 0.05  # a text that is easily predicted


def test_plan_for_an_easily_predicted_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_plans_small(monkeypatch)
    (tmp_path / "text.txt").write_text("the same line again and again\n" * 3000)
    plan = api.plan(tmp_path / "text.txt", minutes=0.2, console=QUIET)
    assert 0 <= plan.bits_per_byte.low <= plan.bits_per_byte.expected <= plan.bits_per_byte.high
