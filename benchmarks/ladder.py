"""Compare all baselines with GPT on tiny Shakespeare: table, chart and samples."""

import argparse
from pathlib import Path

from benchmarks.tables import DOCUMENT, machine_line, publish
from wholegpt.analysis.ladder_page import ladder_chart
from wholegpt.console import Console
from wholegpt.experiments.ladder import compare_baselines
from wholegpt.experiments.results import table_rows

SHOWN = 160
"""Characters of each sample."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="?", default="tinyshakespeare")
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    compared = compare_baselines(
        arguments.source, minutes=arguments.minutes, out=arguments.out, console=Console()
    )
    ladder = compared.to_json()
    header, *rows = table_rows(ladder)
    samples = [
        f"- {one['name']}: `{' '.join(one['result']['sample'][:SHOWN].replace('`', '').split())}`"
        for one in ladder["baselines"]
    ]
    scored = ladder["baselines"][0]["result"]["bytes"]
    what = [
        f"The command is `wholegpt ladder {ladder['corpus']} --minutes {ladder['minutes']:g}`.",
        "",
        f"- **Training.** Each network is trained for {ladder['training_seconds']:.0f} seconds, with the best of two "
        "widths and two learning rates. Each of these trials takes an eighth of the time. N-grams are tried with four "
        "orders.",
        "- **Equal parameters.** In the last column, each network has as many parameters as the last row, and the "
        "better of two learning rates.",
        f"- **Evaluation.** One seed; 95% intervals are over the held-out text of {scored:,} bytes. The trials were "
        "compared on 20,000 tokens of the same text.",
        "",
        "![Bits per byte of each model](ladder.svg)",
    ]
    table = [
        f"| {' | '.join(header)} |",
        f"| --- |{' ---: |' * (len(header) - 1)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    parts = [machine_line(), "", *what, "", *table, "", "Samples of each model:", "", *samples]
    publish("Ladder of baselines", "\n".join(parts))
    ladder_chart(ladder).save(DOCUMENT.with_name("ladder.svg"))


if __name__ == "__main__":
    main()
