"""The training step of this checkout beside another's, step by step in turn: whether a change made it slower."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.tables import machine_line, publish
from wholegpt.metrics import bootstrap

HERE = Path(__file__).parents[1]
MODELS = {"characters": 4, "modern-tiny": 8}
"""Windows in a step of each."""
WORKER = """
import dataclasses, sys, time, torch
from benchmarks.training_step import CHARACTERS, ours
from wholegpt.settings import presets
name, rows = sys.argv[1], int(sys.argv[2])
tiny = dataclasses.replace(presets.preset("modern-tiny"), vocab_size=2048, context_length=128)
torch.manual_seed(0)
step = ours(CHARACTERS if name == "characters" else tiny, rows).make_step()
for _ in range(3):
    step()
print("ready", flush=True)
for _ in sys.stdin:
    started = time.perf_counter()
    step()
    print(time.perf_counter() - started, flush=True)
"""


def start(checkout: Path, name: str) -> subprocess.Popen[str]:
    """A process that takes a step of that checkout's code for each line that it gets."""
    command = [sys.executable, "-c", WORKER, name, str(MODELS[name])]
    environment = {**os.environ, "PYTHONPATH": f"{checkout / 'src'}:{checkout}"}
    worker = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=checkout, env=environment
    )
    assert worker.stdout and worker.stdout.readline() == "ready\n"
    return worker


def seconds(worker: subprocess.Popen[str]) -> float:
    """Of one step."""
    assert worker.stdin and worker.stdout
    worker.stdin.write("step\n")
    worker.stdin.flush()
    return float(worker.stdout.readline())


def compared(other: Path, name: str, pairs: int, steps: int) -> str:
    """A row: seconds of both, and their ratio; which of the two is started first, and steps first, goes by turns.

    The steps of a process are alike, by where its memory happens to lie, more than those of two: so the interval is
    over pairs of processes, each of which counts as its median.
    """
    found = np.empty((pairs, steps, 2))
    for pair in range(pairs):
        first, second = (0, 1) if pair % 2 else (1, 0)
        workers = {side: start((HERE, other)[side], name) for side in (first, second)}
        for number in range(steps):
            for side in (first, second) if number % 2 else (second, first):
                found[pair, number, side] = seconds(workers[side])
        for worker in workers.values():
            worker.communicate()
    logs = np.median(np.log(found[..., 0] / found[..., 1]), axis=1)
    ratio = bootstrap(pairs, lambda chosen: float(np.exp(logs[chosen].mean())))
    here, there = (float(np.median(found[..., side])) for side in (0, 1))
    return f"| {name} | {here:.3f} | {there:.3f} | {ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f}) |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path, help="another checkout of this project")
    parser.add_argument("--model", choices=MODELS, action="append", help="all of them unless given")
    parser.add_argument("--pairs", type=int, default=12, help="of processes, one of each checkout")
    parser.add_argument("--steps", type=int, default=20, help="of each process")
    arguments = parser.parse_args()
    other: Path = arguments.other.resolve()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=other, capture_output=True, text=True, check=True
    ).stdout.strip()
    rows = [compared(other, name, arguments.pairs, arguments.steps) for name in arguments.model or MODELS]
    what = (
        f"{machine_line()} {arguments.pairs} pairs of processes, {arguments.steps} steps of each in turn; here against "
        f"commit {commit}; intervals are over the pairs."
    )
    header = ["| model | seconds a step here | there | here ÷ there (95%) |", "| --- | ---: | ---: | --- |"]
    publish("Training step, before and after", "\n".join([what, "", *header, *rows]))


if __name__ == "__main__":
    main()
