"""The sentence that summarizes how a run went, for each case."""

from dataclasses import replace

import pytest

from wholegpt.analysis.outcome import Course, describe_course
from wholegpt.training.stage import Criterion

LOSS = Criterion("nats_per_token", higher_is_better=False, label="validation loss")
ACCURACY = Criterion("accuracy", higher_is_better=True, label="validation accuracy")


def course_of(
    validation: list[float], train: list[float], criterion: Criterion = LOSS, first: int = 1
) -> Course:
    """Return evaluations every 100 steps, from ``first`` · 100, and linear training losses every 10 steps."""
    points = [((first + i) * 100, value) for i, value in enumerate(validation)]
    sign = -1 if criterion.higher_is_better else 1
    best = min(points, key=lambda one: sign * one[1])[0] if points else None
    steps = points[-1][0] if points else 100
    logged = range(10, steps + 1, 10) if train else ()
    losses = [(step, train[0] + (train[-1] - train[0]) * step / steps) for step in logged]
    return Course(losses, points, criterion, best, steps, steps, "all steps are done")


def test_overfits() -> None:
    course = course_of([3, 2, 2.01, 2.1, 2.2], [4, 1])
    assert describe_course(course) == (
        "Overfits after step 300; the best weights are from step 200, and at the end the validation loss is 10.0% "
        "higher, while the training loss is 61.6% lower."
    )
    assert course.train_loss(200) == pytest.approx(4 - 3 * 180 / 500)


def test_overfits_at_once() -> None:
    sentence = describe_course(course_of([2, 2.5], [4, 1]))
    assert sentence.startswith("Overfits after step 100; the best weights are from that step, and at the end")


def test_gets_worse_without_overfitting() -> None:
    course = course_of([3, 2, 2.5], [1, 4])
    assert describe_course(course) == (
        "Gets worse after step 200; the best weights are from that step, and at the end the validation loss is 25.0% "
        "higher, while the training loss is 34.5% higher."
    )
    unknown = describe_course(course_of([3, 2, 2.5], []))
    assert unknown.endswith(
        "the best weights are from that step, and at the end the validation loss is 25.0% higher."
    )


def test_still_improving() -> None:
    sentence = "Still improving at the end: the validation loss is 10.0% lower than after step 300."
    assert describe_course(course_of([4, 3, 2.5, 2.25], [4, 2])) == sentence
    early = replace(course_of([4, 3, 2.5, 2.25], [4, 2]), planned_steps=1000, stop_reason="the time is over")
    assert (
        describe_course(early) == f"{sentence[:-1]}; it stopped after 400 of 1,000 steps: the time is over."
    )


def test_leveled_off() -> None:
    assert describe_course(course_of([4, 2, 1.991, 1.985], [4, 2])) == (
        "Leveled off: since step 300 the validation loss changed by at most 1%."
    )
    assert describe_course(course_of([4, 2, 1.98, 1.99], [4, 2])).endswith(
        "at most 1%; the best weights are from step 300."
    )


def test_stopped_by_patience() -> None:
    course = replace(
        course_of([2, 2.5], [4, 1]),
        planned_steps=900,
        stop_reason="no better validation loss in 1 evaluations",
    )
    assert describe_course(course).endswith(
        "lower; it stopped after 200 of 900 steps: no better validation loss in 1 evaluations."
    )


def test_no_evaluation_and_a_single_evaluation() -> None:
    assert describe_course(course_of([], [4, 2])) == (
        "There was no evaluation during training, so whether the model overfits is not known."
    )
    assert (
        describe_course(course_of([2], [4, 2]))
        == "There was one evaluation, after step 100, which shows no trend."
    )


def test_parent_that_was_better_or_equally_good() -> None:
    assert describe_course(course_of([2, 3], [4, 1], first=0)) == (
        "Training made the model worse: the validation loss is 50.0% higher at the end than before the first step."
    )
    assert describe_course(course_of([2, 1.99], [4, 1], first=0)) == (
        "Training changed little: the validation loss stays within 1% of that before the first step."
    )
    assert describe_course(course_of([4, 3, 2.5], [4, 1], first=0)).startswith("Still improving")


def test_tolerance_of_accuracies_depends_on_the_number_of_examples() -> None:
    course = course_of([0.5, 0.6, 0.56], [4, 1], ACCURACY)
    assert describe_course(course) == (
        "Overfits after step 200; the best weights are from that step, and at the end the validation accuracy is "
        "0.040 lower, while the training loss is 47.6% lower."
    )
    few = replace(course, examples=100)
    assert few.tolerance == 0.05 and replace(course, examples=10_000).tolerance == 0.01
    assert describe_course(few) == (
        "Leveled off: since step 200 the validation accuracy changed by at most 0.05; the best weights are from step "
        "200."
    )
    assert describe_course(course_of([0.5, 0.6, 0.7], [4, 1], ACCURACY)) == (
        "Still improving at the end: the validation accuracy is 0.100 higher than after step 200."
    )


def test_losses_of_zero() -> None:
    assert describe_course(course_of([0.0, 0.0, 0.5], [4, 1])).startswith("Overfits after step 200")
    assert describe_course(course_of([0.0, 0.0], [0.0, 0.0])).startswith("Leveled off")
