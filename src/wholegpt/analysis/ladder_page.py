"""``ladder.html``: all rungs of the ladder in one table and one chart."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wholegpt.analysis.report import BLUE, GREY, ORANGE, svg_of
from wholegpt.files import write_text_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def write_ladder_page(path: Path, ladder: Mapping[str, Any]) -> None:
    """Write the page of what ``wholegpt.ladder.Ladder.to_json`` gives."""
    import jinja2

    template = resources.files("wholegpt.analysis").joinpath("ladder.html.jinja").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(template)
    chart = svg_of("ladder", lambda axes: draw_ladder(axes, ladder), "bits per byte of the held-out text")
    write_text_atomic(path, page.render(ladder=ladder, chart=chart))


def draw_ladder(axes: "Axes", ladder: Mapping[str, Any]) -> None:
    """A point for each rung, from the first down to GPT, and one for a model with as many parameters."""
    rungs = ladder["rungs"]
    places = range(len(rungs))
    for name, color, marker, size in (("result", BLUE, "o", 7), ("equal", ORANGE, "D", 5)):
        shown = [
            (one[name]["bits_per_byte"], place)
            for place, one in zip(places, rungs, strict=True)
            if one.get(name)
        ]
        label = f"{ladder['minutes']:g} min each" if name == "result" else "the same with equal parameters"
        axes.plot(
            *zip(*shown, strict=True), linestyle="", marker=marker, markersize=size, color=color, label=label
        )
    for place, one in zip(places, rungs, strict=True):
        value = one["result"]["bits_per_byte"]
        rightmost = max(value, one["equal"]["bits_per_byte"] if one.get("equal") else 0)
        axes.annotate(
            f"{value:.3f}", (rightmost, place), (8, 0), textcoords="offset points", va="center", color=GREY
        )
    axes.set_yticks(list(places), [one["name"] for one in rungs])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.margins(x=0.12)
    axes.legend(frameon=False)
