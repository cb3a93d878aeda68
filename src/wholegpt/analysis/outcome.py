"""How a training run went, in a sentence computed from its log."""

from collections.abc import Sequence
from dataclasses import dataclass

from wholegpt.training.stage import Criterion

RELATIVE_TOLERANCE = 0.01
"""Losses that differ by a smaller share are called equal."""
ABSOLUTE_TOLERANCE = 0.01
"""Accuracies and correlations that differ by less are called equal."""
LAST_PART = 0.25
"""Share of the steps over which improvement at the end is measured."""
AVERAGED_PART = 0.1
"""Share of the steps before a step over which the training loss is averaged."""


@dataclass(frozen=True)
class Course:
    """What the log of a run says about its course."""

    train: Sequence[tuple[int, float]]
    """Step and training loss."""
    validation: Sequence[tuple[int, float]]
    """Step and the metric of the criterion."""
    criterion: Criterion
    best_step: int | None
    """The step of the best weights."""
    steps: int
    """Steps done."""
    planned_steps: int
    stop_reason: str
    """Why the run stopped before its last step."""
    examples: int | None = None
    """Number of held-out examples, if the figure is a mean over examples."""

    @property
    def tolerance(self) -> float:
        """The difference up to which two figures count as equal.

        1% for losses. For accuracies and correlations of n examples 0.01, or 1/(2·√n) if that is larger: the largest
        standard error of a proportion.
        """
        if not self.criterion.higher_is_better:
            return RELATIVE_TOLERANCE
        return max(ABSOLUTE_TOLERANCE, 0.5 / self.examples**0.5 if self.examples else 0.0)

    def worse_by(self, one: float, other: float) -> float:
        """Return by how much the figure ``one`` is worse than ``other``: as a share of it for losses."""
        if self.criterion.higher_is_better:
            return other - one
        return (one - other) / abs(other) if other else one - other

    def train_loss(self, step: int) -> float | None:
        """Return the mean of the training losses logged in the tenth of the run before ``step``, with ``step``."""
        first = step - AVERAGED_PART * self.steps
        before = [loss for at, loss in self.train if at <= step]
        near = [loss for at, loss in self.train if first < at <= step] or before[-1:]
        return sum(near) / len(near) if near else None


def describe_course(course: Course) -> str:
    """Return one sentence: whether the run overfits, is still improving, or has leveled off.

    With the tolerance t of ``Course.tolerance``, b the best figure, and e that of the last evaluation:

    - *made the model worse*: b is that of the model before the first step, and e is worse by more than t.
    - *changed little*: b and e are within t of the figure of the model before the first step.
    - *overfits after step N*: e is worse than b by more than t, and the training loss at the end is below that at the
      step of b. N is the last step whose figure is within t of b.
    - *gets worse after step N*: the same, but the training loss did not fall.
    - *still improving*: b is better by more than t than the figure at three quarters of the evaluated steps.
    - *leveled off*: none of these.
    - With fewer than two evaluations, the sentence says only that there is no trend to see.
    """
    sentence = _course(course)
    if course.steps < course.planned_steps:
        done = f"{course.steps:,} of {course.planned_steps:,} steps"
        sentence += f"; it stopped after {done}: {course.stop_reason}"
    return f"{sentence}."


def _course(course: Course) -> str:
    label, points = course.criterion.label, course.validation
    if not points:
        return "There was no evaluation during training, so whether the model overfits is not known"
    if len(points) == 1:
        return f"There was one evaluation, after step {points[0][0]:,}, which shows no trend"
    sign = -1 if course.criterion.higher_is_better else 1
    figures = dict(points)
    best_step = (
        course.best_step if course.best_step in figures else min(points, key=lambda one: sign * one[1])[0]
    )
    best, (last_step, last) = figures[best_step], points[-1]
    lost = course.worse_by(last, best)
    if lost > course.tolerance:
        return _got_worse(course, best_step, lost)
    limit = f"{course.tolerance:.0%}" if sign > 0 else f"{course.tolerance:.2g}"
    first_step, first = points[0]
    if first_step == 0 and abs(course.worse_by(first, best)) <= course.tolerance:
        return f"Training changed little: the {label} stays within {limit} of that before the first step"
    before = max((step for step in figures if step <= (1 - LAST_PART) * last_step), default=points[0][0])
    gained = -course.worse_by(best, figures[before])
    from_best = "" if best_step == last_step else f"; the best weights are from step {best_step:,}"
    if gained > course.tolerance and best_step > before:
        change = _change(course, -gained)
        return f"Still improving at the end: the {label} is {change} than after step {before:,}{from_best}"
    return f"Leveled off: since step {before:,} the {label} changed by at most {limit}{from_best}"


def _got_worse(course: Course, best_step: int, lost: float) -> str:
    label, figures = course.criterion.label, dict(course.validation)
    worse = _change(course, lost)
    if best_step == 0:
        return f"Training made the model worse: the {label} is {worse} at the end than before the first step"
    best = figures[best_step]
    turn = max(step for step, value in figures.items() if course.worse_by(value, best) <= course.tolerance)
    then, now = course.train_loss(best_step), course.train_loss(course.steps)
    fell = then is not None and now is not None and now < then
    found = f"{'Overfits' if fell else 'Gets worse'} after step {turn:,}; the best weights are from "
    found += f"{'that step' if turn == best_step else f'step {best_step:,}'}, and at the end the {label} is {worse}"
    if then is None or now is None or not then:
        return found
    share = abs(now / then - 1)
    return f"{found}, while the training loss is {share:.1%} {'lower' if fell else 'higher'}"


def _change(course: Course, worse_by: float) -> str:
    """Return a difference of figures in words: a share of losses, a number of accuracies and correlations."""
    higher = (worse_by > 0) != course.criterion.higher_is_better
    size = abs(worse_by)
    amount = f"{size:.3f}" if course.criterion.higher_is_better else f"{size:.1%}"
    return f"{amount} {'higher' if higher else 'lower'}"
