"""The ladder to GPT on Tiny Shakespeare: table, chart and samples."""

import argparse
from pathlib import Path

from benchmarks.tables import DOCUMENT, machine_line, publish
from wholegpt.analysis.ladder_page import draw_ladder
from wholegpt.analysis.report import svg_of
from wholegpt.console import Console
from wholegpt.experiments.ladder import climb, table_rows
from wholegpt.files import write_text_atomic

SHOWN = 160
"""Characters of each sample."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="?", default="tinyshakespeare")
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    climbed = climb(arguments.source, minutes=arguments.minutes, out=arguments.out, console=Console())
    ladder = climbed.to_json()
    header, *rows = table_rows(ladder)
    samples = [
        f"- {one['name']}: `{' '.join(one['result']['sample'][:SHOWN].replace('`', '').split())}`"
        for one in ladder["rungs"]
    ]
    what = (
        f"`wholegpt ladder {ladder['corpus']} --minutes {ladder['minutes']:g}`: so many minutes of training for each "
        "network, with the best of two widths and two learning rates (an eighth of the time for each; four orders of "
        "n-grams); in the last column with as many parameters as the last, with the better of the two rates. One seed; "
        f"intervals (95%) are of the held-out text, {ladder['rungs'][0]['result']['bytes']:,} bytes, on 20,000 tokens "
        "of which the trials were compared, too.\n\n![bits per byte of each rung](ladder.svg)"
    )
    table = [
        f"| {' | '.join(header)} |",
        f"| --- |{' ---: |' * (len(header) - 1)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    publish(
        "The ladder", "\n".join([machine_line(), "", what, "", *table, "", "What each writes:", "", *samples])
    )
    chart = svg_of("ladder", lambda axes: draw_ladder(axes, ladder), "bits per byte of the held-out text")
    write_text_atomic(DOCUMENT.with_name("ladder.svg"), chart)


if __name__ == "__main__":
    main()
