"""Extending a run: training it for more steps than it was created with."""

import dataclasses
from pathlib import Path
from typing import Any

from wholegpt.checkpoint import CheckpointStore, load_training
from wholegpt.console import Console
from wholegpt.errors import ConfigError
from wholegpt.files import write_json_atomic, write_text_atomic
from wholegpt.runs.folder import read_lineage, recorded_config
from wholegpt.settings.schema import Config
from wholegpt.settings.serialization import to_yaml
from wholegpt.settings.validation import check
from wholegpt.stages.registry import stage_of
from wholegpt.training.schedules import learning_rate
from wholegpt.training.state import TrainingState

EXTENSIONS = "extensions"
"""Entry of ``lineage.json``: the extensions of a run, each with its ``step``, ``steps_before`` and ``steps``."""


def extend_run(path: Path, steps: int | None, minutes: float | None, console: Console) -> None:
    """Change the number of steps of the run at ``path`` to ``steps``, or to as many as ``minutes`` more allow.

    The learning rate follows ``schedule`` over the new number of steps, from the next step on; the warm-up does not
    change. So the run ends with the weights of a run that was created with ``steps`` if the learning rate of the steps
    done does not depend on their number: for a constant schedule, inverse_square_root, and warmup_stable_decay before
    its decay. The extension is recorded in ``lineage.json``.

    Raises ``ConfigError`` if the run has done that many steps, and for a model that is counted.
    """
    config, state = recorded_config(path), last_state(path)
    if not stage_of(config).extendable:
        raise ConfigError(
            f"{path}: {config.model.architecture} models are counted in one step; there is no more to do"
        )
    if steps is None:
        steps = _steps_in(minutes or 0.0, state, path)
    if steps <= state.step:
        raise ConfigError(
            f"training.steps is {steps:,}, and {path} has done {state.step:,} steps; give more than that"
        )
    longer = dataclasses.replace(config, training=dataclasses.replace(config.training, steps=steps))
    check(longer)
    before = config.training.steps
    lineage = read_lineage(path)
    extension = {"step": state.step, "steps_before": before, "steps": steps}
    lineage[EXTENSIONS] = [*lineage.get(EXTENSIONS, []), extension]
    write_json_atomic(path / "lineage.json", lineage)
    write_text_atomic(path / "config.yaml", to_yaml(longer))
    console.note(f"{before:,} steps become {steps:,}; {_rates(config, longer, state.step)}")


def last_state(path: Path) -> TrainingState:
    """Return the counters in the last good checkpoint of the run at ``path``."""
    store = CheckpointStore(path)
    step, _ = store.last_good()
    return TrainingState() if step is None else TrainingState.from_json(load_training(store.path(step)).state)


def extended_at(lineage: dict[str, Any]) -> int | None:
    """Return the step at which a run was extended last; None if it never was."""
    extensions = lineage.get(EXTENSIONS)
    return extensions[-1]["step"] if extensions else None


def _steps_in(minutes: float, state: TrainingState, path: Path) -> int:
    """Return the steps done and those that take ``minutes`` at the average pace of the run so far."""
    if not minutes > 0:
        raise ConfigError(f"minutes is {minutes:g}; expected a number above 0")
    if not state.step:
        raise ConfigError(f"{path}: has done no step, so its pace is not known; give --training.steps")
    seconds = (state.train_seconds + state.other_seconds) / state.step
    return state.step + max(1, int(60 * minutes / seconds))


def _rates(old: Config, new: Config, step: int) -> str:
    """Describe the learning rate before and after an extension at ``step``."""
    kind = new.schedule.kind
    after = learning_rate(step, new.training.steps, new.optimizer, new.schedule)
    last = learning_rate(max(step - 1, 0), old.training.steps, old.optimizer, old.schedule)
    change = f"stays {after:.3g}" if after == last else f"goes from {last:.3g} to {after:.3g}"
    return f"the learning rate {change} ({kind} over {new.training.steps:,} steps)"
