"""A chart of estimates with their intervals, one line for each name."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wholegpt.analysis.charts import (
    BOTTOM,
    CHARACTER,
    LINE_HEIGHT,
    RIGHT,
    TICKS,
    TOP,
    WIDTH,
    Chart,
    Series,
    escape,
    legend_of,
    marker,
    number,
    x_axis,
)
from wholegpt.analysis.scales import Scale

ROW = 30
"""Height of a name."""


@dataclass(frozen=True)
class Estimates:
    """Estimates of one kind: for each name (value, low, high), or None if there is none."""

    name: str
    values: Sequence[tuple[float, float, float] | None]
    color: int
    marker: str
    """circle, cross or diamond."""
    has_labels: bool = False
    """Whether the values are written above their marks."""


def interval_chart(names: Sequence[str], kinds: Sequence[Estimates], x_label: str) -> Chart:
    """Draw the estimates of each name on a line of its own, from the first name down. The axis starts at zero."""
    nowhere = np.empty(0)
    shown = [Series(kind.name, nowhere, nowhere, kind.color, kind.marker, has_line=False) for kind in kinds]
    legend, lines = legend_of(shown, TOP)
    top = TOP + lines * LINE_HEIGHT + 10
    bottom = top + ROW * len(names)
    left = 24 + CHARACTER * max(map(len, names), default=1)
    highest = max((one[2] for kind in kinds for one in kind.values if one), default=1.0)
    scale = Scale(0.0, 1.06 * highest, left, WIDTH - RIGHT)
    ticks = scale.ticks(TICKS)
    parts = [
        *(
            f'<line class="grid" x1="{number(x)}" x2="{number(x)}" y1="{top}" y2="{bottom}"/>'
            for x in map(scale.at, ticks)
        ),
        f'<line class="axis" x1="{number(left)}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>',
        x_axis(scale, ticks, None, x_label, bottom, "first"),
        *legend,
    ]
    for row, name in enumerate(names):
        y = top + ROW * (row + 0.6)
        parts.append(
            f'<text text-anchor="end" x="{number(left - 8)}" y="{number(y + 4)}">{escape(name)}</text>'
        )
        parts += [_estimate(one, kind, scale, y) for kind in kinds if (one := kind.values[row])]
    described = "; ".join(
        f"{name} {one[0]:.4g}" for name, one in zip(names, kinds[0].values, strict=True) if one
    )
    return Chart(f"{x_label}: {described}", "".join(parts), bottom + BOTTOM)


def _estimate(one: tuple[float, float, float], kind: Estimates, scale: Scale, y: float) -> str:
    value, low, high = map(scale.at, one)
    found = f'<path class="c{kind.color}" d="M{number(low)} {number(y)}H{number(high)}"/>'
    found += marker(kind.marker, f"c{kind.color}", value, y)
    if kind.has_labels:
        found += (
            f'<text class="muted" text-anchor="middle" font-size="11" x="{number(value)}" y="{number(y - 6)}">'
            f"{one[0]:.3f}</text>"
        )
    return found
