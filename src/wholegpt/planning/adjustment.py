"""Adjust the number of steps of a planned run to its measured speed."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import msgspec

from wholegpt.planning.choice import pilot_config
from wholegpt.planning.plan import Text
from wholegpt.planning.scaling import (
    Difficulty,
    expected_loss,
    trained_tokens,
)
from wholegpt.settings.schema import Config
from wholegpt.settings.serialization import to_mapping
from wholegpt.training.state import TrainingState

CHECKED_EARLY, CHECKED_AFTER = 0.05, 0.15
"""Shares of the steps after which the speed is compared with the plan."""
FEWEST_EARLY_STEPS = 5
"""Steps below which there is no early comparison."""
WORTH_ADJUSTING, WORTH_ADJUSTING_EARLY = 0.02, 0.1
"""Relative changes of the number of steps below which a run keeps its plan. The early comparison can only reduce the
number of steps, because the speed of a few steps is uncertain.
"""
ANNOUNCED = ("steps", "seconds", "train_seconds", "bits_per_byte")
"""Entries of the original plan that an adjusted plan keeps."""
MOST_STEPS = 2.0
"""Largest number of steps, relative to the plan."""


def worth_adjusting(
    plan: Mapping[str, Any], state: TrainingState, spent: float, decay_fraction: float
) -> bool:
    """Return whether the number of steps should change now. The arguments are those of ``fitting_steps``."""
    early, late = int(CHECKED_EARLY * plan["steps"]), max(1, int(CHECKED_AFTER * plan["steps"]))
    adjustment = plan.get("adjustment")
    if adjustment and (state.step != late or not adjustment["early"]):
        return False
    if state.step != late and not state.step == early >= FEWEST_EARLY_STEPS:
        return False
    change = fitting_steps(plan, state, spent, decay_fraction) / plan["steps"] - 1
    return abs(change) >= WORTH_ADJUSTING if state.step == late else -change >= WORTH_ADJUSTING_EARLY


def fitting_steps(plan: Mapping[str, Any], state: TrainingState, spent: float, decay_fraction: float) -> int:
    """Return the number of steps with which a run ends after ``plan["seconds"]`` seconds.

    ``spent`` of these have passed, in which the run did ``state.step`` steps. The remaining other work (evaluations,
    samples, saving) is assumed to deviate from its planned time by the same factor as the steps. The learning rate of
    the steps that were done must not depend on the total number of steps, so its decay must begin later than
    ``state.step``. The result is therefore at least ``state.step`` / (1 − ``decay_fraction``), or the planned number if
    that is less, and at most ``MOST_STEPS`` times the planned number.
    """
    pace = measured_pace(plan, state)
    left = plan["seconds"] - spent - _other_seconds_left(plan, state)
    least = min(math.ceil((state.step + 1) / (1 - decay_fraction)), plan["steps"])
    return min(max(state.step + int(left / pace), least), int(MOST_STEPS * plan["steps"]))


def measured_pace(plan: Mapping[str, Any], state: TrainingState) -> float:
    """Return the seconds of a step so far, without the additional time of the first steps that was planned."""
    return max(state.train_seconds - _start_seconds(plan), state.train_seconds / 2) / state.step


def _other_seconds_left(plan: Mapping[str, Any], state: TrainingState) -> float:
    slower = measured_pace(plan, state) / plan["step_seconds"]
    return max(0.0, slower * plan["other_seconds"] - state.other_seconds)


def _start_seconds(plan: Mapping[str, Any]) -> float:
    return plan["train_seconds"] - plan["steps"] * plan["step_seconds"]


def adjusted_plan(
    plan: Mapping[str, Any], config: Config, steps: int, state: TrainingState, spent: float, text: Text
) -> tuple[dict[str, Any], Config]:
    """Return the plan and the config of a run that takes ``steps`` instead of the planned steps.

    Evaluations and samples keep their number, which does not affect the weights. The plan has new times and a new
    expected loss, and an ``adjustment``: after which step, whether that was the early comparison, and what was
    ``announced`` before the run.
    """
    change = steps / plan["steps"]
    changed = dataclasses.replace(
        config,
        training=dataclasses.replace(config.training, steps=steps),
        evaluation=dataclasses.replace(config.evaluation, every=math.ceil(change * config.evaluation.every)),
        logging=dataclasses.replace(
            config.logging, sample_every=math.ceil(change * config.logging.sample_every)
        ),
    )
    difficulty = msgspec.convert(plan["difficulty"], Difficulty)
    loss = expected_loss(changed, text.train_tokens, pilot_config(config, text), difficulty)
    tokens = trained_tokens(changed)
    pace = measured_pace(plan, state)
    return {
        **plan,
        "steps": steps,
        "tokens": tokens,
        "epochs": tokens / text.train_tokens,
        "seconds": spent + (steps - state.step) * pace + _other_seconds_left(plan, state),
        "step_seconds": pace,
        "train_seconds": _start_seconds(plan) + steps * pace,
        "bits_per_byte": dataclasses.asdict(loss.times(1 / (math.log(2) * text.bytes_per_token))),
        "config": to_mapping(changed),
        "adjustment": {
            "step": state.step,
            "early": state.step < int(CHECKED_AFTER * plan["steps"]),
            "announced": dict(announced(plan)),
        },
    }, changed


def announced(plan: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the steps, times and loss of a plan as they were before the run."""
    return plan.get("adjustment", {}).get("announced") or {
        name: plan[name] for name in ANNOUNCED if name in plan
    }
