"""Compare time, memory and loss of `train --minutes` with its plan, and the planned size with others."""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.tables import machine_line, publish


@dataclass(frozen=True)
class Outcome:
    """One run and its plan."""

    minutes: float
    seconds: float
    """Wall-clock time of the whole command."""
    peak_bytes: int
    """Largest resident set of the process."""
    product_change: float
    """Product rate (FLOP/s of a matrix product) after the run, relative to that before it."""
    speeds: list[float]
    """Steps per second in each tenth of the run, relative to the mean of the run."""
    result: dict[str, Any]
    """Output of ``train --json``."""


PROBE_SECONDS = 10.0


def probe() -> float:
    """Return matrix products per second, measured in a separate process."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_products_per_second)


def _products_per_second() -> float:
    left, right = torch.randn(2, 4096, 4096).bfloat16()
    torch.mm(left, right)
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < PROBE_SECONDS:
        torch.mm(left, right)
        done += 1
    return done / (time.perf_counter() - started)


def speeds(metrics: Path) -> list[float]:
    """Return steps per second in each tenth of a run relative to the mean, from metrics.jsonl."""
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    logged = [(r["step"], r["train_seconds"]) for r in records if r["kind"] == "train"]
    ends = [logged[round(i * (len(logged) - 1) / 10)] for i in range(11)]
    mean = (ends[-1][0] - ends[0][0]) / (ends[-1][1] - ends[0][1])
    return [(b[0] - a[0]) / (b[1] - a[1]) / mean for a, b in pairwise(ends)]


def run(source: str, minutes: float, seed: int, width: int | None = None) -> Outcome:
    """Run ``wholegpt train SOURCE --minutes M`` in a separate process. ``width`` fixes the size of the model."""
    program = "import sys; from wholegpt.cli import main; sys.exit(main())"
    if width:
        program = f"import wholegpt.planning.choice as p; p.WIDTHS = ({width},); {program}"
    before = probe()
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-c",
            program,
            "train",
            source,
            "--minutes",
            str(minutes),
            "--json",
            "--quiet",
        ]
        command += ["--seed", str(seed), "--out", str(Path(folder) / "run")]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        rates = [] if status else speeds(Path(folder) / "run" / "metrics.jsonl")
        process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return Outcome(minutes, seconds, 1024 * usage.ru_maxrss, probe() / before, rates, json.loads(printed))


def row(source: str, outcome: Outcome) -> str:
    """Return a row of the table of plans."""
    plan, loss = outcome.result["plan"], outcome.result["plan"]["bits_per_byte"]
    got = outcome.result["validation"]["bits_per_byte"]
    model = plan["config"]["model"]
    cells = [
        Path(source).name,
        f"{outcome.minutes:g}",
        f"{model['n_layers']} × {model['d_model']}",
        f"{plan['epochs']:.1f}",
        f"{plan['seconds']:.0f}",
        f"{outcome.seconds:.0f} ({100 * (outcome.seconds / plan['seconds'] - 1):+.1f}%)",
        f"{100 * (outcome.product_change - 1):+.1f}%",
        f"{100 * (min(outcome.speeds) - 1):+.0f}% to {100 * (max(outcome.speeds) - 1):+.0f}%",
        f"{plan['peak_memory_bytes'] / 1e9:.2f}",
        f"{outcome.peak_bytes / 1e9:.2f} ({100 * (plan['peak_memory_bytes'] / outcome.peak_bytes - 1):+.0f}%)",
        f"{loss['expected']:.3f} ({loss['low']:.3f} to {loss['high']:.3f})",
        f"{got:.3f} ({100 * (got / loss['expected'] - 1):+.1f}%)",
    ]
    return f"| {' | '.join(cells)} |"


def plans(sources: list[str], minutes: list[float]) -> None:
    """Publish the table of plans and results."""
    lines = [
        machine_line()
        + ' One run each. Percentages in parentheses compare the run with the plan. "Planned s" is less than the '
        "requested time where the planner expects that more time would hardly lower the loss. "
        '"Product rate" is the change of the rate from before to after the run. "Steps/s" is the range over the '
        "tenths of the run, relative to its mean.",
        "",
        "| Text | Minutes | Layers × width | Epochs | Planned s | Actual s | Product rate, after against before | "
        "Steps/s by tenths of the run | Planned GB | Actual GB | Planned bits per byte | Actual bits per byte |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | --- | --- |",
    ]
    for source in sources:
        for some in minutes:
            lines.append(row(source, run(source, some, seed=1)))
            print(lines[-1], flush=True)
    publish("Time budget, accuracy of plans", "\n".join(lines))


def sizes(source: str, minutes: float, widths: list[int]) -> None:
    """Publish the comparison of the planned size with others in the same time, with two seeds."""
    lines = [
        machine_line()
        + f" {Path(source).name}, {minutes:g} minutes, bits per byte on the whole held-out text.",
        "",
        "| Size | Parameters | Seed 1 | Seed 2 |",
        "| --- | ---: | ---: | ---: |",
    ]
    for width in [None, *widths]:
        outcomes = [run(source, minutes, seed, width) for seed in (1, 2)]
        result = outcomes[0].result
        name = f"width {result['plan']['config']['model']['d_model']}" + ("" if width else ", as planned")
        figures = [f"{outcome.result['validation']['bits_per_byte']:.4f}" for outcome in outcomes]
        lines.append(f"| {name} | {result['parameters']:,} | {' | '.join(figures)} |")
        print(lines[-1], flush=True)
    publish(f"Time budget, size, {Path(source).name}", "\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="+", help="texts to train on")
    parser.add_argument("--minutes", type=float, nargs="+", default=[2, 5, 10])
    parser.add_argument(
        "--widths", type=int, nargs="+", help="compare these widths with the planned one, and nothing else"
    )
    arguments = parser.parse_args()
    if arguments.widths:
        for source in arguments.sources:
            sizes(source, arguments.minutes[0], arguments.widths)
    else:
        plans(arguments.sources, arguments.minutes)


if __name__ == "__main__":
    main()
