"""``ladder.html``: all baselines of the ladder in one table and one chart."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wholegpt.analysis.charts import Chart
from wholegpt.analysis.interval_chart import Estimates, interval_chart
from wholegpt.analysis.pages import render_page
from wholegpt.files import write_text_atomic


def write_ladder_page(path: Path, ladder: Mapping[str, Any]) -> None:
    """Write the page for the output of ``wholegpt.experiments.ladder.Ladder.to_json``."""
    write_text_atomic(path, render_page("ladder.html.jinja", ladder=ladder, chart=ladder_chart(ladder)))


def ladder_chart(ladder: Mapping[str, Any]) -> Chart:
    """Draw the bits per byte of each baseline, from the first down to GPT, and those at equal parameters."""
    baselines = ladder["baselines"]
    return interval_chart(
        [one["name"] for one in baselines],
        [
            Estimates(
                f"{ladder['training_seconds']:.0f} s each", _bits(baselines, "result"), 0, "circle", True
            ),
            Estimates("the same with equal parameters", _bits(baselines, "equal"), 1, "diamond"),
        ],
        "bits per byte of the held-out text",
    )


def _bits(baselines: list[dict[str, Any]], kind: str) -> list[tuple[float, float, float] | None]:
    found = [one.get(kind) for one in baselines]
    return [
        (one["bits_per_byte"], *one["intervals"]["bits_per_byte"]) if one is not None else None
        for one in found
    ]
