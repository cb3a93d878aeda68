"""Curves of a training log: smoothing and thinning against closed forms, and the figures of each kind of run."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wholegpt.analysis.curves import MOST_POINTS, Figure, Log, figures_of, loss_chart, smoothed, thinned


def log_of(steps: int, validation: dict[str, float] | None = None, **train: float) -> list[dict[str, Any]]:
    """Return a log of steps with 64 tokens each, with an evaluation at every second step."""
    fixed = {"learning_rate": 0.1, "gradient_norm": 1.0, "tokens_per_second": 5.0, "peak_memory_bytes": 10}
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        lines.append(
            {
                "kind": "train",
                "step": step,
                "tokens": 64 * step,
                **fixed,
                **(train or {"nats_per_token": 3 / step}),
            }
        )
        if validation and step % 2 == 0:
            lines.append({"kind": "validation", "step": step, **validation})
    return lines


def names(figure: Figure) -> list[str]:
    return [one["name"] for one in figure.readout]


def test_smoothing() -> None:
    line = np.arange(10.0)
    assert smoothed(line, 2)[:8].tolist() == line[:8].tolist(), "a line stays a line from its first value"
    assert smoothed(line, 2)[8:].tolist() == [7.5, 8], "at the end the window is cut off"
    assert smoothed(np.full(7, 3.0), 3).tolist() == [3.0] * 7
    peak = np.zeros(11)
    peak[5] = 5
    assert smoothed(peak, 2).tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0]


@given(st.lists(st.floats(-1e6, 1e6), max_size=300), st.integers(6, 40))
def test_thinning_keeps_ends_and_peaks(values: list[float], most: int) -> None:
    some = np.array(values)
    kept = thinned(some, most)
    assert len(kept) <= max(most, 0) and sorted(set(kept.tolist())) == kept.tolist()
    if values:
        assert kept[0] == 0 and kept[-1] == len(values) - 1
        assert some[kept].max() == some.max() and some[kept].min() == some.min()
    if len(values) <= most:
        assert kept.tolist() == list(range(len(values)))


def test_thinning_in_closed_form() -> None:
    values = np.zeros(1000)
    values[[3, 500, 997]] = 1, -1, 2
    assert {0, 3, 500, 997, 999} <= {*thinned(values, 12).tolist()}
    assert len(thinned(np.arange(1e5))) <= MOST_POINTS


def test_evaluations_are_plotted_at_the_training_tokens() -> None:
    """The ``tokens`` of an evaluation are those it scored; the training tokens of unlogged steps are interpolated."""
    lines = [
        {"kind": "validation", "step": 0, "nats_per_token": 4.0, "tokens": 7},
        {"kind": "train", "step": 10, "nats_per_token": 3.0, "tokens": 1000},
        {"kind": "train", "step": 20, "nats_per_token": 2.0, "tokens": 3000},
        {"kind": "validation", "step": 15, "nats_per_token": 3.0, "tokens": 7},
        {"kind": "validation", "step": 24, "nats_per_token": 2.5, "tokens": 7},
    ]
    (loss, *_) = figures_of(Log(lines, (24, 3800)), None)
    train, validation = loss.readout
    assert train == {"name": "training", "x": [1000, 3000], "step": [10, 20], "y": [3.0, 2.0]}
    assert validation == {
        "name": "validation",
        "x": [0, 2000, 3800],
        "step": [0, 15, 24],
        "y": [4.0, 3.0, 2.5],
    }


def test_figures_of_pretraining() -> None:
    other_units = {
        "perplexity": 2.0,
        "bits_per_byte": 1.0,
        "bits_per_character": 1.0,
        "tokens": 5,
        "bytes": 5,
    }
    figures = figures_of(Log(log_of(50, {"nats_per_token": 2.0, **other_units, "characters": 5})), 4.0)
    assert [one.title for one in figures] == ["Loss", "Learning rate", "Throughput", "Gradient norm"]
    assert names(figures[0]) == ["uniform guess", "training", "smoothed", "validation"]
    assert len(figures[0].charts) == 2 and all(len(one.charts) == 1 for one in figures[1:])


def test_further_figures_of_tasks_and_objectives() -> None:
    lines = log_of(6, {"accuracy": 0.5, "nats_per_example": 0.7}, loss=-0.5, reference_kl=0.1)
    figures = figures_of(Log(lines), None)
    titles = ["Loss", "Validation: accuracy", "Validation: nats per example", "Learning rate", "Throughput"]
    assert [one.title for one in figures] == [*titles, "Gradient norm", "Training: reference kl"]
    assert names(figures[0]) == ["training"] and len(figures[0].charts) == 1, (
        "no logarithm of negative losses"
    )
    masked = figures_of(
        Log(log_of(6, {"nats_per_masked_token": 2.0, "accuracy": 0.5}, nats_per_masked_token=3.0)), None
    )
    assert names(masked[0]) == ["training", "validation"] and masked[1].title == "Validation: accuracy"


def test_distant_uniform_loss_is_not_drawn() -> None:
    assert "uniform guess" in names(figures_of(Log(log_of(5)), 5.9)[0])
    assert "uniform guess" not in names(figures_of(Log(log_of(5)), 6.1)[0])


def test_missing_and_invalid_values_are_skipped() -> None:
    lines = log_of(3)
    lines[1]["nats_per_token"] = None
    lines[2] |= {"gradient_norm": "1", "tokens_per_second": float("nan"), "learning_rate": True}
    figures = {one.title: one.readout[0] for one in figures_of(Log(lines), None)}
    assert figures["Loss"]["step"] == [1, 3]
    assert all(figures[name]["step"] == [1, 2] for name in ("Gradient norm", "Throughput", "Learning rate"))


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [{"kind": "train", "step": 1, "nats_per_token": None}],
        [{"step": 1}],
        [{"kind": "train", "step": 1, "loss": math.nan}],
    ],
)
def test_log_without_losses_has_no_figures(lines: list[dict[str, Any]]) -> None:
    assert figures_of(Log(lines), 4.0) == []
    assert "no values" in loss_chart(lines).svg


def test_note_about_thinning() -> None:
    (loss, rate, *_) = figures_of(Log(log_of(1000)), None)
    assert loss.note == rate.note
    assert loss.note == (
        "Of 1,000 logged values, the first, the last, and the smallest and the largest in each of 199 intervals are "
        "drawn."
    )
    assert figures_of(Log(log_of(MOST_POINTS)), None)[0].note == ""


def test_loss_chart_of_a_run() -> None:
    chart = loss_chart(log_of(30, {"nats_per_token": 2.0}), bound=4.0)
    assert chart._repr_html_() == loss_chart(log_of(30, {"nats_per_token": 2.0}), bound=4.0).svg
    assert chart.label.startswith(
        "nats per token against training tokens: uniform guess from 4 to 4; training from 3 to"
    )
    assert loss_chart(log_of(30), logarithmic=True) != loss_chart(log_of(30))
