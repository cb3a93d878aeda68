"""``ladder.html``: all baselines of the ladder in one table and one chart."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wholegpt.analysis.report import BLUE, GREY, ORANGE, svg_of
from wholegpt.files import write_text_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def write_ladder_page(path: Path, ladder: Mapping[str, Any]) -> None:
    """Write the page for the output of ``wholegpt.experiments.ladder.Ladder.to_json``."""
    import jinja2

    template = resources.files("wholegpt.analysis").joinpath("ladder.html.jinja").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(template)
    chart = svg_of("ladder", lambda axes: draw_ladder(axes, ladder), "bits per byte of the held-out text")
    write_text_atomic(path, page.render(ladder=ladder, chart=chart))


def draw_ladder(axes: "Axes", ladder: Mapping[str, Any]) -> None:
    """Draw a point with its interval for each baseline, from the first down to GPT, and one at equal
    parameters.
    """
    baselines = ladder["baselines"]
    positions = range(len(baselines))
    for name, color, marker, size in (("result", BLUE, "o", 5), ("equal", ORANGE, "D", 7)):
        shown = [
            (position, one[name]) for position, one in zip(positions, baselines, strict=True) if one.get(name)
        ]
        bits = [one["bits_per_byte"] for _, one in shown]
        low, high = zip(*(one["intervals"]["bits_per_byte"] for _, one in shown), strict=True)
        around = np.maximum([np.subtract(bits, low), np.subtract(high, bits)], 0)  # uniform: 0 up to rounding
        label = f"{ladder['minutes']:g} min each" if name == "result" else "the same with equal parameters"
        face = "none" if name == "equal" else color  # both can be at the same position
        at = [position for position, _ in shown]
        axes.errorbar(bits, at, xerr=around, fmt=marker, markersize=size, color=color, mfc=face, label=label)
    for position, one in zip(positions, baselines, strict=True):
        value = one["result"]["bits_per_byte"]
        axes.annotate(
            f"{value:.3f}",
            (value, position),
            (0, 6),
            fontsize=9,
            textcoords="offset points",
            ha="center",
            va="bottom",
            color=GREY,
        )
    axes.set_yticks(list(positions), [one["name"] for one in baselines])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.margins(x=0.12)
    axes.legend(frameon=False, loc="lower right", fontsize=9)
