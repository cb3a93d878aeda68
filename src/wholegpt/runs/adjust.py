"""Keeping a run to its time: after some steps, their number is adjusted to the speed of the machine."""

from pathlib import Path

from wholegpt.console import Console, clock
from wholegpt.files import read_json, write_json_atomic, write_text_atomic
from wholegpt.planning import Budget, Text
from wholegpt.planning.adjustment import adjusted_plan, fitting_steps
from wholegpt.runs.folder import PLAN, recorded_config, run_data
from wholegpt.settings.serialization import to_yaml
from wholegpt.training.state import TrainingState

WORTH_SAYING = 0.05
"""Relative excess of the time above which the reason is given."""


def adjust_run(path: Path, state: TrainingState, budget: Budget, console: Console) -> None:
    """Change the number of steps of the planned run at ``path`` so that it ends when its plan says.

    The run has stopped after ``state.step`` steps, before its learning rate decays. So it ends with the weights of a
    run that was created with the new number of steps.
    """
    plan, config = read_json(path / PLAN), recorded_config(path)
    spent = budget.spent()
    steps = fitting_steps(plan, state, spent, config.schedule.decay_fraction)
    adjusted, changed = adjusted_plan(plan, config, steps, state, spent, Text.of(run_data(path)))
    write_text_atomic(path / "config.yaml", to_yaml(changed))
    write_json_atomic(path / PLAN, adjusted)
    slower = adjusted["step_seconds"] / plan["step_seconds"] - 1
    late = adjusted["seconds"] > (1 + WORTH_SAYING) * plan["seconds"]
    reason = ", because in a shorter run the learning rate would already be decaying" if late else ""
    console.note(
        f"a step takes {abs(slower):.0%} {'more' if slower > 0 else 'less'} time than planned; the run takes {steps:,} "
        f"steps instead of {plan['steps']:,} and ends after about {clock(adjusted['seconds'])}{reason}; expected loss: "
        f"{adjusted['bits_per_byte']['expected']:.3f} bits per byte"
    )
