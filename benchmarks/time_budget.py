"""Whether `train --minutes` keeps its word: time, memory and loss against the plan; and whether the size was right."""

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
    """One run beside its plan."""

    minutes: float
    seconds: float
    """Wall clock of the whole command."""
    peak_bytes: int
    """The process's largest resident set."""
    product_change: float
    """FLOP/s of a product after the run, by that before it."""
    speeds: list[float]
    """Steps a second in each tenth of the run, by their mean over all of it."""
    result: dict[str, Any]
    """What ``train --json`` printed."""


PROBE_SECONDS = 10.0


def probe() -> float:
    """Products a second, over some seconds, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_products_a_second)


def _products_a_second() -> float:
    left, right = torch.randn(2, 4096, 4096).bfloat16()
    torch.mm(left, right)
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < PROBE_SECONDS:
        torch.mm(left, right)
        done += 1
    return done / (time.perf_counter() - started)


def speeds(metrics: Path) -> list[float]:
    """Steps a second in each tenth of a run, by their mean, from its metrics.jsonl."""
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    logged = [(r["step"], r["train_seconds"]) for r in records if r["kind"] == "train"]
    ends = [logged[round(i * (len(logged) - 1) / 10)] for i in range(11)]
    mean = (ends[-1][0] - ends[0][0]) / (ends[-1][1] - ends[0][1])
    return [(b[0] - a[0]) / (b[1] - a[1]) / mean for a, b in pairwise(ends)]


def run(source: str, minutes: float, seed: int, width: int | None = None) -> Outcome:
    """``wholegpt train SOURCE --minutes M`` in a process of its own; ``width`` allows no other size."""
    program = "import sys; from wholegpt.cli import main; sys.exit(main())"
    if width:
        program = f"import wholegpt.planning.planner as p; p.WIDTHS = ({width},); {program}"
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
    """A line of the table of plans kept."""
    plan, loss = outcome.result["plan"], outcome.result["plan"]["bits_per_byte"]
    got = outcome.result["validation"]["bits_per_byte"]
    model = plan["config"]["model"]
    cells = [
        Path(source).name,
        f"{outcome.minutes:g}",
        f"{model['n_layers']} × {model['d_model']}",
        f"{plan['passes']:.1f}",
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


def kept(sources: list[str], minutes: list[float]) -> None:
    """Plans and what became of them."""
    lines = [
        machine_line() + " One run each.",
        "",
        "| text | minutes | layers × width | passes | planned s | took s | product after / before | "
        "steps/s by tenths of the run | planned GB | took GB | planned bits per byte | got |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | --- | --- |",
    ]
    for source in sources:
        for some in minutes:
            lines.append(row(source, run(source, some, seed=1)))
            print(lines[-1], flush=True)
    publish("Time budget, plans kept", "\n".join(lines))


def sizes(source: str, minutes: float, widths: list[int]) -> None:
    """The planned size against others at the same time, two seeds."""
    lines = [
        machine_line()
        + f" {Path(source).name}, {minutes:g} minutes, bits per byte on the whole held-out text.",
        "",
        "| size | parameters | seed 1 | seed 2 |",
        "| --- | ---: | ---: | ---: |",
    ]
    for width in [None, *widths]:
        outcomes = [run(source, minutes, seed, width) for seed in (1, 2)]
        result = outcomes[0].result
        name = f"{result['plan']['config']['model']['d_model']} wide" + ("" if width else ", as planned")
        figures = [f"{outcome.result['validation']['bits_per_byte']:.4f}" for outcome in outcomes]
        lines.append(f"| {name} | {result['parameters']:,} | {' | '.join(figures)} |")
        print(lines[-1], flush=True)
    publish(f"Time budget, size, {Path(source).name}", "\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="+", help="texts to train on")
    parser.add_argument("--minutes", type=float, nargs="+", default=[2, 5, 10])
    parser.add_argument(
        "--widths", type=int, nargs="+", help="compare these sizes with the planned one instead"
    )
    arguments = parser.parse_args()
    if arguments.widths:
        for source in arguments.sources:
            sizes(source, arguments.minutes[0], arguments.widths)
    else:
        kept(arguments.sources, arguments.minutes)


if __name__ == "__main__":
    main()
