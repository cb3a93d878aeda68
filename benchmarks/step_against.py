"""Compare training steps and decoding of this checkout with those of another one, in turn."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.tables import machine_line, publish
from wholegpt.metrics import bootstrap

HERE = Path(__file__).parents[1]
TRAINING = {"characters": 4, "modern-tiny": 8}
"""Batch size of each model whose training step is measured."""
DECODING = {"decoding, 1 text": 1, "decoding, 16 texts": 16}
"""Texts that modern-tiny generates at once; a step is 20 tokens of each."""
WORKER = """
import dataclasses, itertools, sys, time, torch
from wholegpt.generation import Engine
from wholegpt.model import Transformer
from wholegpt.settings import presets
from wholegpt.settings.schema import GenerationConfig
from wholegpt.tokenizers import byte_tokenizer
from benchmarks.training_step import CHARACTERS, ours

def decoding(texts):
    tokenizer = byte_tokenizer()
    model = Transformer(dataclasses.replace(tiny, vocab_size=tokenizer.vocab_size, context_length=1024)).eval()
    engine, seeds, running = Engine(model, tokenizer, torch.device("cpu"), texts), itertools.count(), []

    def step():
        for _ in range(20):
            running[:] = [request for request in running if not request.finish_reason]
            while len(running) < texts:
                running.append(engine.submit([1, 2, 3], GenerationConfig(max_tokens=500, seed=next(seeds))))
            engine.step()

    return step

name, rows = sys.argv[1], int(sys.argv[2])
tiny = dataclasses.replace(presets.preset("modern-tiny"), vocab_size=2048, context_length=128)
torch.manual_seed(0)
if name.startswith("decoding"):
    step = decoding(rows)
else:
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
    """Start a process that takes a step with the code of ``checkout`` for each line of its input."""
    command = [sys.executable, "-c", WORKER, name, str({**TRAINING, **DECODING}[name])]
    environment = {**os.environ, "PYTHONPATH": f"{checkout / 'src'}:{checkout}"}
    worker = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=checkout, env=environment
    )
    assert worker.stdout and worker.stdout.readline() == "ready\n"
    return worker


def seconds(worker: subprocess.Popen[str]) -> float:
    """Return the time of one step."""
    assert worker.stdin and worker.stdout
    worker.stdin.write("step\n")
    worker.stdin.flush()
    return float(worker.stdout.readline())


def compared(other: Path, name: str, pairs: int, steps: int) -> str:
    """Return a row with the seconds of both and their ratio. They take turns in starting and in stepping first.

    Steps of one process are more alike than steps of two, because of their memory layout. The interval is therefore
    over pairs of processes, each with its median.
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
    parser.add_argument("other", type=Path, help="other checkout of this project")
    cases = [*TRAINING, *DECODING]
    parser.add_argument("--case", choices=cases, action="append", help="default: all")
    parser.add_argument("--pairs", type=int, default=12, help="pairs of processes, one of each checkout")
    parser.add_argument("--steps", type=int, default=20, help="steps of each process")
    arguments = parser.parse_args()
    other: Path = arguments.other.resolve()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=other, capture_output=True, text=True, check=True
    ).stdout.strip()
    rows = [compared(other, name, arguments.pairs, arguments.steps) for name in arguments.case or cases]
    what = (
        f"{machine_line()} The table compares this version with commit {commit}: {arguments.pairs} pairs of processes, "
        f"which take turns of {arguments.steps} steps each. Intervals are over the pairs."
    )
    header = [
        "| Case | Seconds per step, this version | Seconds per step, commit | This version ÷ commit (95%) |",
        "| --- | ---: | ---: | --- |",
    ]
    publish("Before and after a change", "\n".join([what, "", *header, *rows]))


if __name__ == "__main__":
    main()
