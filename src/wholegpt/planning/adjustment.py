"""Adjusting the steps of a planned run to the speed at which it really runs."""

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

CHECKED_AFTER = 0.15
"""Share of the steps after which the speed is compared with the plan."""
WORTH_ADJUSTING = 0.02
"""Relative change of the number of steps below which a run keeps its plan."""
MOST_STEPS = 2.0
"""Largest number of steps, relative to the plan."""


def checked_step(plan: Mapping[str, Any]) -> int:
    """Return the step after which a run that follows ``plan`` is compared with it."""
    return max(1, int(CHECKED_AFTER * plan["steps"]))


def fitting_steps(plan: Mapping[str, Any], state: TrainingState, spent: float, decay_fraction: float) -> int:
    """Return the number of steps with which a run ends after ``plan["seconds"]`` seconds.

    ``spent`` of these have passed, in which the run did ``state.step`` steps. The other work after them (evaluations,
    samples, saving) is assumed to be as much slower or faster than planned as the steps. The learning rate of the steps
    that were done must not depend on the number of all steps, so its decay must begin later than ``state.step``; the
    result is at least ``state.step`` / (1 − ``decay_fraction``), and at most ``MOST_STEPS`` times the planned number.
    """
    pace = measured_pace(plan, state)
    left = plan["seconds"] - spent - _other_seconds_left(plan, state)
    least = math.ceil((state.step + 1) / (1 - decay_fraction))
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
    expected loss, and an ``adjustment``: after which step, and the number of steps before it.
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
        "adjustment": {"step": state.step, "steps_before": plan["steps"]},
    }, changed
