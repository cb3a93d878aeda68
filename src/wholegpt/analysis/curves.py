"""The curves of a run: its log as series, smoothed and thinned for drawing, and the charts of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from wholegpt.analysis.charts import Chart, SecondAxis, Series, line_chart

MOST_POINTS = 400
"""Points of a series that are drawn at most."""
SMOOTHED_SHARE = 1 / 40
"""Half the window of smoothing, as a share of the logged values."""
FEWEST_SMOOTHED = 20
"""Shorter series are not smoothed."""
PER_TOKEN = ("nats_per_token", "nats_per_masked_token")
LOSSES = (*PER_TOKEN, "loss", "preference_loss", "policy_loss")
"""Names of the training loss in the log; for those per token, a uniform guess is ln V."""
COMMON = ("step", "tokens", "tokens_per_second", "train_seconds", "learning_rate", "gradient_norm")
SAME_CURVE = ("perplexity", "bits_per_character", "bits_per_byte", "characters", "bytes")
"""Other units of the loss, and denominators."""
NOT_DRAWN = (*COMMON, *SAME_CURVE, *LOSSES, "peak_memory_bytes")
"""Metrics that get no chart of their own."""
UNIFORM_FROM = 0.5
"""A uniform guess is drawn if some loss exceeds this share of it; otherwise it would only flatten the curves."""


def smoothed(values: Float[np.ndarray, " N"], half_window: int) -> Float[np.ndarray, " N"]:
    """Return means over a moving window, from i − k to i + k.

    k is ``half_window``; at the start, k is at most i, so that a steep beginning is not averaged with what follows, and
    at the end the window is cut off.
    """
    n = len(values)
    index = np.arange(n)
    k = np.minimum(half_window, index)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first, last = index - k, np.minimum(index + k + 1, n)
    return (sums[last] - sums[first]) / (last - first)


def thinned(values: Float[np.ndarray, " N"], most: int = MOST_POINTS) -> Int[np.ndarray, " M"]:
    """Return the indices of at most ``most`` of the ``values``, in order: what a chart draws.

    If there are more, the first, the last, and the smallest and the largest in each of ``most`` // 2 − 1 intervals of
    equal length, so that no peak is lost.
    """
    n = len(values)
    if n <= most:
        return np.arange(n)
    bounds = np.linspace(0, n, most // 2).astype(int)
    extremes = [
        start + at
        for start, end in pairwise(bounds.tolist())
        for at in (int(values[start:end].argmin()), int(values[start:end].argmax()))
    ]
    return np.unique([0, *extremes, n - 1])


class Log:
    """The lines of ``metrics.jsonl``: their metrics by kind and name, and the tokens trained on by each step."""

    def __init__(self, lines: Sequence[dict[str, Any]], end: tuple[int, int] | None = None) -> None:
        """``end`` is the number of steps and of tokens at the end of the run, if known."""
        self.by_kind: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "sample": []}
        self._columns: dict[tuple[str, str], tuple[list[int], list[float]]] = {}
        for line in lines:
            kind, step = line.get("kind"), line["step"]
            if kind not in self.by_kind:
                continue
            self.by_kind[kind].append(line)
            for name, value in line.items():
                if type(value) in (int, float):  # bool is another type
                    steps, values = self._columns.setdefault((kind, name), ([], []))
                    steps.append(step)
                    values.append(value)
        steps, tokens = self.column("train", "tokens")
        if end and (not len(steps) or end[0] > steps[-1]):
            steps, tokens = np.append(steps, end[0]), np.append(tokens, end[1])
        self.steps, self.tokens = np.concatenate([[0.0], steps]), np.concatenate([[0.0], tokens])

    def column(self, kind: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the steps and the values of ``name`` in the lines that have a finite one."""
        found = self._columns.get((kind, name), ([], []))
        steps, values = (np.array(one, dtype=float) for one in found)
        kept = np.isfinite(values)
        return steps[kept], values[kept]

    def names(self, kind: str, known: Sequence[str] = ()) -> list[str]:
        """Return the names of the metrics in lines of this kind, except ``known``."""
        return [name for one, name in self._columns if one == kind and name not in known]

    def loss_name(self) -> str | None:
        """Return the name of the training loss; None if no line has one."""
        return next((name for name in LOSSES if name in self.names("train")), None)


@dataclass(frozen=True)
class Figure:
    """A chart on the page of a run."""

    title: str
    charts: tuple[Chart, ...]
    """One with a linear axis, and one with a logarithmic axis where that is of use."""
    readout: list[dict[str, Any]]
    """The drawn points of each series: name, x, step and y."""
    note: str
    """What was left out when drawing."""


class _Drawing:
    """Series of a log along the tokens."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.series: list[Series] = []
        self.longest = 0

    def add(self, name: str, column: tuple[np.ndarray, np.ndarray], color: int, **how: Any) -> None:
        """Add a curve of the values at steps, thinned."""
        steps, values = column
        self.longest = max(self.longest, len(values))
        kept = thinned(values)
        x = np.interp(steps[kept], self.log.steps, self.log.tokens)
        self.series.append(Series(name, x, values[kept], color, **how))

    def add_smoothed(self, name: str, column: tuple[np.ndarray, np.ndarray], color: int) -> None:
        """Add a curve, faint, with its smoothed values above it if it is long enough."""
        steps, values = column
        if len(values) < FEWEST_SMOOTHED:
            self.add(name, column, color)
            return
        half = max(1, round(SMOOTHED_SHARE * len(values)))
        self.add(name, column, color, style="faint")
        self.add("smoothed", (steps, smoothed(values, half)), color, style="smoothed")

    def chart(self, y_label: str, **how: Any) -> Chart:
        """Draw what was added."""
        second = SecondAxis("optimizer steps", self.log.steps, self.log.tokens)
        return line_chart(
            self.series, x_label="training tokens", y_label=y_label, whole_x=True, second_x=second, **how
        )

    def figure(self, title: str, y_label: str, logarithmic: bool = False, **how: Any) -> Figure:
        """Return the charts of what was added with their data; a second one if ``logarithmic``."""
        charts = [self.chart(y_label, **how)]
        if logarithmic and all((one.y > 0).all() for one in self.series):
            charts.append(self.chart(y_label, **how, logarithmic=True))
        note = ""
        if self.longest > MOST_POINTS:
            note = (
                f"Of {self.longest:,} logged values, the first, the last, and the smallest and the largest in each of "
                f"{MOST_POINTS // 2 - 1} intervals are drawn."
            )
        return Figure(title, tuple(charts), [self._readout(one) for one in self.series], note)

    def _readout(self, series: Series) -> dict[str, Any]:
        steps = np.interp(series.x, self.log.tokens, self.log.steps).round().astype(int)
        values = [float(f"{value:.5g}") for value in series.y.tolist()]
        return {
            "name": series.name,
            "x": np.round(series.x).astype(int).tolist(),
            "step": steps.tolist(),
            "y": values,
        }


def _loss_drawing(log: Log, bound: float | None) -> tuple[_Drawing, str]:
    """Return the curves of the losses in training and validation, and the label of their axis."""
    name = log.loss_name() or LOSSES[0]
    drawing = _Drawing(log)
    train, validation = log.column("train", name), log.column("validation", name)
    values = np.concatenate([train[1], validation[1]])
    if bound and len(values) and values.max() > UNIFORM_FROM * bound:
        ends = log.steps[[0, -1]]
        drawing.add("uniform guess", (ends, np.full(2, bound)), 2, style="dashed")
    if len(train[0]):
        drawing.add_smoothed("training", train, 0)
    if len(validation[0]):
        drawing.add("validation", validation, 1, marker="circle" if len(validation[0]) <= 60 else "")
    return drawing, "loss of the task and of its texts" if name == "loss" else in_words(name)


def loss_chart(
    lines: Sequence[dict[str, Any]], bound: float | None = None, logarithmic: bool = False
) -> Chart:
    """Draw training and validation loss against tokens from the lines of ``metrics.jsonl``.

    ``bound`` is the loss of a uniform guess, ln V. Raises ``ValueError`` if a loss that is not above 0 is to be drawn
    on a ``logarithmic`` axis.
    """
    drawing, label = _loss_drawing(Log(lines), bound)
    return drawing.chart(label, logarithmic=logarithmic)


def figures_of(log: Log, bound: float | None) -> list[Figure]:
    """Return the figures of a run: its losses, figures of its task, learning rate, throughput and gradient norm."""
    if not log.loss_name():
        return []  # an n-gram model takes no steps
    drawing, label = _loss_drawing(log, bound)
    figures = [drawing.figure("Loss", label, logarithmic=True)]
    for further in log.names("validation", NOT_DRAWN):
        drawing = _Drawing(log)
        drawing.add("validation", log.column("validation", further), 1, marker="circle")
        figures.append(drawing.figure(f"Validation: {in_words(further)}", ""))
    rate = _Drawing(log)
    rate.add("learning rate", log.column("train", "learning_rate"), 0)
    figures.append(rate.figure("Learning rate", "", from_zero=True))
    for title, column, label in (
        ("Throughput", "tokens_per_second", "tokens per second"),
        ("Gradient norm", "gradient_norm", "L2, before clipping"),
    ):
        drawing = _Drawing(log)
        drawing.add_smoothed("logged steps", log.column("train", column), 0)
        figures.append(drawing.figure(title, label, from_zero=True))
    for further in log.names("train", NOT_DRAWN):
        drawing = _Drawing(log)
        drawing.add_smoothed("training", log.column("train", further), 0)
        figures.append(drawing.figure(f"Training: {in_words(further)}", ""))
    return [figure for figure in figures if any(one["x"] for one in figure.readout)]


def in_words(name: str) -> str:
    """Return the name of a metric with spaces between its words."""
    return name.replace("_", " ")
