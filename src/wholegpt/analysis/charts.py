"""Line charts as SVG: pure functions of the data, equal bytes for equal data, no scripts, light and dark.

The charts of a run are made in ``wholegpt.analysis.curves``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from jaxtyping import Float

from wholegpt.analysis.scales import Scale, padded_range, tick_labels
from wholegpt.errors import ConfigError
from wholegpt.files import write_text_atomic

WIDTH, HEIGHT = 480, 290
LINE_HEIGHT, CHARACTER = 19, 7.6
"""Height of a line of text and mean width of a character, at the font size of 14."""
TOP, RIGHT, BOTTOM = 6, 16, 42
MARGIN = 10
"""Around a chart that is a document of its own."""
TICKS = 6
LIGHT = {
    "ink": "#1f2937",
    "muted": "#5f6875",
    "line": "#e3e6ea",
    "paper": "#ffffff",
    "panel": "#f5f6f8",
    "c0": "#2563a8",
    "c1": "#c2571a",
    "c2": "#6b7280",
    "c3": "#2e7d4f",
}
DARK = {
    "ink": "#e6e8eb",
    "muted": "#a3abb6",
    "line": "#363c45",
    "paper": "#16191d",
    "panel": "#20242a",
    "c0": "#6cb0f5",
    "c1": "#f29a5c",
    "c2": "#9aa3af",
    "c3": "#6cc792",
}
"""Colors; c0, c1, … are those of series."""


def _rules(colors: dict[str, str]) -> str:
    chart = ".wholegpt-chart"
    series = "".join(
        f"{chart} .{name}{{stroke:{color}}}{chart} .dot.{name}{{fill:{color}}}"
        for name, color in colors.items()
        if name.startswith("c")
    )
    return (
        f"{chart} text{{fill:{colors['ink']}}}{chart} .muted{{fill:{colors['muted']}}}"
        f"{chart} .grid{{stroke:{colors['line']}}}{chart} .axis,{chart} .cursor{{stroke:{colors['muted']}}}"
        f"{chart} .paper{{fill:{colors['paper']}}}{series}"
    )


STYLE = (
    ".wholegpt-chart{font:14px system-ui,sans-serif}"
    ".wholegpt-chart path,.wholegpt-chart line{fill:none;stroke-width:1.6;stroke-linejoin:round}"
    ".wholegpt-chart .grid,.wholegpt-chart .axis,.wholegpt-chart .cursor{stroke-width:1}"
    ".wholegpt-chart .dashed{stroke-dasharray:5 4}.wholegpt-chart .faint{opacity:.45;stroke-width:1}"
    ".wholegpt-chart .second,.wholegpt-chart .cursor{display:none}"
    f"{_rules(LIGHT)}@media (prefers-color-scheme:dark){{{_rules(DARK)}}}"
)
"""The CSS of every chart."""


@dataclass(frozen=True)
class Chart:
    """A chart as SVG. Notebooks show it; ``save`` writes it to a file."""

    label: str
    """A description for screen readers."""
    content: str
    """The elements of the SVG."""
    height: float = HEIGHT
    attributes: str = ""
    """Further attributes of the root element."""

    @property
    def inline(self) -> str:
        """The SVG for a page that has ``STYLE``."""
        return self._svg(self.attributes, 0, "")

    @property
    def svg(self) -> str:
        """The SVG as a document of its own, with colors, background and margin."""
        paper = f'<rect class="paper" x="{-MARGIN}" y="{-MARGIN}" width="100%" height="100%"/>'
        return self._svg(' xmlns="http://www.w3.org/2000/svg"', MARGIN, f"<style>{STYLE}</style>{paper}")

    def save(self, path: str | Path) -> Path:
        """Write the SVG to ``path``. Raises ``ConfigError`` for a name that does not end with .svg."""
        path = Path(path)
        if path.suffix.lower() != ".svg":
            raise ConfigError(f"{path}: charts are saved as SVG; name a file that ends with .svg")
        write_text_atomic(path, self.svg)
        return path

    def _repr_html_(self) -> str:
        return self.svg

    def _svg(self, attributes: str, margin: float, before: str) -> str:
        size = f"{WIDTH + 2 * margin} {number(self.height + 2 * margin)}"
        return (
            f'<svg{attributes} class="wholegpt-chart" viewBox="{-margin} {-margin} {size}" role="img" '
            f'aria-label="{escape(self.label)}">{before}{self.content}</svg>'
        )


@dataclass(frozen=True)
class Series:
    """Points of one curve in the order of x. Points that are not finite are left out."""

    name: str
    x: Float[np.ndarray, " N"]
    y: Float[np.ndarray, " N"]
    color: int = 0
    marker: str = ""
    """circle, cross, or none."""
    style: str = ""
    """Classes of the line: dashed, faint, smoothed."""
    has_line: bool = True
    in_legend: bool = True

    def finite(self) -> tuple[np.ndarray, np.ndarray]:
        """Return x and y of the finite points."""
        kept = np.isfinite(self.x) & np.isfinite(self.y)
        return self.x[kept], self.y[kept]


@dataclass(frozen=True)
class SecondAxis:
    """Another quantity along x, which grows with it: ``values`` at the positions ``x``."""

    label: str
    values: Float[np.ndarray, " N"]
    x: Float[np.ndarray, " N"]


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    logarithmic: bool = False,
    from_zero: bool = False,
    whole_x: bool = False,
    second_x: SecondAxis | None = None,
) -> Chart:
    """Draw ``series`` in one pair of axes. The first series are below the later ones.

    The y axis is ``logarithmic``, or begins at zero if ``from_zero``; ``whole_x`` restricts ticks of x to integers. The
    ticks of ``second_x`` are drawn, too, with the class ``second``, which ``STYLE`` hides. Raises ``ValueError`` for
    values that a logarithmic axis does not have.
    """
    points = [one.finite() for one in series]
    all_x = np.concatenate([x for x, _ in points]) if points else np.empty(0)
    all_y = np.concatenate([y for _, y in points]) if points else np.empty(0)
    titled = LINE_HEIGHT if y_label else 0
    legend, lines = legend_of([one for one in series if one.in_legend and len(series) > 1], TOP + titled)
    top, bottom = TOP + titled + lines * LINE_HEIGHT + 8, HEIGHT - BOTTOM
    vertical = Scale(*padded_range(all_y, logarithmic, from_zero), bottom, top, logarithmic)
    ticks = vertical.ticks(TICKS)
    labels = tick_labels(ticks)
    left = 14 + CHARACTER * max(map(len, labels), default=1)
    low, high = (float(all_x.min()), float(all_x.max())) if all_x.size else (0.0, 1.0)
    horizontal = Scale(low, high if high > low else low + 1, left, WIDTH - RIGHT)
    parts = [
        *(_grid_line(vertical.at(tick), label, left) for tick, label in zip(ticks, labels, strict=True)),
        f'<line class="axis" x1="{number(left)}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>',
        x_axis(horizontal, horizontal.ticks(TICKS, whole_x), None, x_label, bottom, "first"),
        *([_second_axis(horizontal, second_x, bottom)] if second_x else []),
        *([f'<text class="muted" x="0" y="{TOP + 10}">{escape(y_label)}</text>'] if y_label else []),
        *legend,
        *(_curve(one, horizontal(x), vertical(y)) for one, (x, y) in zip(series, points, strict=True)),
        f'<line class="cursor" y1="{top}" y2="{bottom}"/>',
    ]
    data = {"low": horizontal.low, "high": horizontal.high, "left": left, "right": WIDTH - RIGHT}
    attributes = "".join(f' data-{name}="{value:.10g}"' for name, value in data.items())
    return Chart(_description(series, points, x_label, y_label), "".join(parts), attributes=attributes)


def _curve(series: Series, x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"]) -> str:
    """Return line and markers of a series at the coordinates x and y."""
    color, kept = f"c{series.color}", " ".join(filter(None, (f"c{series.color}", series.style)))
    found = ""
    if series.has_line and len(x):
        found += f'<path class="{kept}" d="M{"L".join(map(point, x, y))}"/>'
    if series.marker and len(x):
        found += "".join(marker(series.marker, color, *at) for at in zip(x, y, strict=True))
    return found


def marker(shape: str, color: str, x: float, y: float) -> str:
    """Return a mark at x, y: a ``circle``, a ``cross``, or an open ``diamond``."""
    match shape:
        case "circle":
            return f'<circle class="dot {color}" cx="{number(x)}" cy="{number(y)}" r="2.6"/>'
        case "cross":
            return f'<path class="{color}" d="M{point(x - 4, y - 4)}l8 8m-8 0l8-8"/>'
        case _:
            return f'<path class="{color}" d="M{point(x, y - 5.5)}l5.5 5.5l-5.5 5.5l-5.5-5.5z"/>'


def legend_of(series: Sequence[Series], y: float) -> tuple[list[str], int]:
    """Return the entries of the legend from ``y`` on, and the number of its lines."""
    parts: list[str] = []
    x, lines = 0.0, 1 if series else 0
    for one in series:
        wide = 26 + CHARACTER * len(one.name) + 14
        if x and x + wide > WIDTH:
            x, lines = 0.0, lines + 1
        middle = y + (lines - 1) * LINE_HEIGHT + 6
        ends = np.array([x + 1, x + 19]), np.array([middle, middle], dtype=float)
        parts.append(_curve(Series("", *ends, one.color, "", one.style, one.has_line), *ends))
        if one.marker:
            parts.append(marker(one.marker, f"c{one.color}", x + 10, middle))
        parts.append(f'<text x="{number(x + 25)}" y="{number(middle + 4)}">{escape(one.name)}</text>')
        x += wide
    return parts, lines


def _grid_line(y: float, label: str, left: float) -> str:
    return (
        f'<line class="grid" x1="{number(left)}" x2="{WIDTH - RIGHT}" y1="{number(y)}" y2="{number(y)}"/>'
        f'<text class="muted" text-anchor="end" x="{number(left - 6)}" y="{number(y + 4)}">{label}</text>'
    )


def x_axis(
    scale: Scale, ticks: Sequence[float], at: Sequence[float] | None, label: str, y: float, name: str
) -> str:
    """Return ticks with labels at the positions ``at`` (default: of the ticks themselves), and the axis's label."""
    positions = scale(np.array(ticks if at is None else at, dtype=float))
    parts = [
        f'<line class="axis" x1="{number(x)}" x2="{number(x)}" y1="{y}" y2="{y + 4}"/>'
        f'<text class="muted" text-anchor="middle" x="{number(x)}" y="{y + 17}">{text}</text>'
        for x, text in zip(positions, tick_labels(ticks), strict=True)
    ]
    middle = number((scale.start + scale.end) / 2)
    parts.append(f'<text class="muted" text-anchor="middle" x="{middle}" y="{y + 35}">{escape(label)}</text>')
    return f'<g class="{name}">{"".join(parts)}</g>'


def _second_axis(scale: Scale, second: SecondAxis, y: float) -> str:
    low, high = np.interp([scale.low, scale.high], second.x, second.values)
    ticks = Scale(float(low), float(high), 0, 1).ticks(TICKS, whole=True) if high > low else []
    at = np.interp(ticks, second.values, second.x).tolist()
    return x_axis(scale, ticks, at, second.label, y, "second")


def _description(
    series: Sequence[Series], points: Sequence[tuple[np.ndarray, np.ndarray]], x_label: str, y_label: str
) -> str:
    """Describe each series by its first and last value."""
    ends = [
        f"{one.name} from {y[0]:.4g} to {y[-1]:.4g}"
        for one, (_, y) in zip(series, points, strict=True)
        if len(y)
    ]
    return f"{y_label or 'values'} against {x_label}: {'; '.join(ends) or 'no values'}"


def number(value: float) -> str:
    """Return a coordinate with one decimal, which is a tenth of a pixel."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def point(x: float, y: float) -> str:
    """Return a point of a path."""
    return f"{number(x)} {number(y)}"
