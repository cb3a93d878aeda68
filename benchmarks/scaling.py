"""Run the sweep behind `--minutes`: train models of several sizes on several texts, and fit a scaling law.

Each point is trained exactly as `--minutes` would train it, with its batch, schedule and regularization. The last
weights are evaluated on the whole held-out text. Points that are in scaling.jsonl are not trained again.
"""

import argparse
import dataclasses
import json
import math
import tempfile
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wholegpt.console import Console
from wholegpt.data import PreparedData, open_corpus, prepare
from wholegpt.model import parameter_count
from wholegpt.planning.choice import BATCH_SIZE, CONTEXT_LENGTH, model_of_width, planned_config
from wholegpt.planning.plan import Text
from wholegpt.planning.planner import PILOT_VALIDATION_TOKENS
from wholegpt.planning.scaling import (
    EARLY_SHARE,
    PILOT_TOKENS,
    PILOT_WIDTH,
    Difficulty,
    ScalingLaw,
)
from wholegpt.runs.api import train
from wholegpt.settings.schema import Config, DataConfig, LoggingConfig, RuntimeConfig

Point = dict[str, Any]
RESULTS = Path(__file__).with_name("scaling.jsonl")
STEP_TOKENS = BATCH_SIZE * CONTEXT_LENGTH
PILOT = (PILOT_WIDTH, PILOT_TOKENS // STEP_TOKENS)
IDENTITY = ("text", "width", "steps", "seed")
POINTS: dict[str, list[tuple[int, int]]] = {
    "tinyshakespeare": [
        *((128, steps) for steps in (250, 500, 1000, 2000)),
        *((192, steps) for steps in (120, 250, 500, 1000)),
        *((256, steps) for steps in (250, 500)),
    ],
    "english": [
        *((96, steps) for steps in (300, 1000, 2500)),
        *((128, steps) for steps in (150, 300, 1000, 2500)),
        *((192, steps) for steps in (120, 300, 1000, 2000)),
        *((256, steps) for steps in (300, 900)),
        (384, 300),
    ],
    "python-docs": [(128, 150), (128, 300), (192, 300), (128, 1000), (192, 800)],
    "speeches": [(128, 150), (128, 300), (192, 300), (128, 1000), (192, 800)],
    "news": [(128, 150), (128, 300), (192, 300), (128, 1000), (192, 800)],
}
"""Width and steps of the points of each text, in addition to the pilot with two seeds."""
FIRST_GUESS = (0.1, 0.5, 1.0, 0.3, 2.0, 1.0)
"""Initial values of the constants of the law."""
FIT_STEPS, DIFFERENCE = 100, 1e-6
PARTS = {"speeches": ("state_union", "inaugural"), "news": ("abc",)}
"""Texts that consist of some sources in english.jsonl."""


def source(text: str, data: Path, work: Path) -> str:
    """Return the name of a corpus, or the path of a file."""
    english = data / "english.jsonl"
    if text not in PARTS:
        return str(english) if text == "english" else text
    part = work / f"{text}.jsonl"
    with part.open("w") as file:
        for line in english.open(encoding="utf-8", newline="\n"):
            if json.loads(line)["source"] in PARTS[text]:
                file.write(line)
    return str(part)


def prepared(text: str, data: Path, work: Path) -> PreparedData:
    """Return the prepared text. Prepare it if necessary."""
    if not PreparedData.exists(work / text):
        config = Config(data=DataConfig(source=(source(text, data, work),)))
        prepare(open_corpus(config.data), config.data, config.tokenizer, work / text, Console())
    return PreparedData.open(work / text)


def run_point(point: Point, data: PreparedData, threads: int) -> Point:
    """Train one point. Return it with its results."""
    base = Config(
        data=DataConfig(source=(str(data.folder),)),
        runtime=RuntimeConfig(seed=point["seed"], threads=threads),
        logging=LoggingConfig(sample_tokens=0),
    )
    config = planned_config(base, point["width"], Text.of(data), point["steps"] * STEP_TOKENS)
    is_pilot = (point["width"], point["steps"]) == PILOT
    early = point["steps"] // EARLY_SHARE
    every, tokens = (early, PILOT_VALIDATION_TOKENS) if is_pilot else (0, config.evaluation.tokens)
    evaluation = dataclasses.replace(config.evaluation, every=every, tokens=tokens)
    config = dataclasses.replace(config, evaluation=evaluation)
    with tempfile.TemporaryDirectory() as folder:
        run = train(config=config, out=Path(folder) / "run", console=Console())
        records = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    scored = {r["step"]: r["nats_per_token"] for r in records if r["kind"] == "validation"}
    return {
        **point,
        "vocab_size": run.config.model.vocab_size,
        "tokens": run.state.tokens,
        "unique_tokens": data.manifest.train.tokens,
        **({"early_nats_per_token": scored[early]} if is_pilot else {}),
        "nats_per_token": run.validation.nats_per_token,
        "bits_per_byte": run.validation.bits_per_byte,
        "train_seconds": run.state.train_seconds,
        "threads": threads,
    }


def recorded() -> list[Point]:
    """Return the points in scaling.jsonl."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def sweep(texts: list[str], data: Path, work: Path, threads: int) -> None:
    """Train the missing points, the pilots first."""
    for text in texts:
        tokens = prepared(text, data, work)
        for width, steps, seed in [(*PILOT, 1), (*PILOT, 2)] + [(*point, 1) for point in POINTS[text]]:
            point = {"text": text, "width": width, "steps": steps, "seed": seed}
            if any(all(done[name] == point[name] for name in IDENTITY) for done in recorded()):
                continue
            result = run_point(point, tokens, threads)
            with RESULTS.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(json.dumps(result), flush=True)


# --- The fit -------------------------------------------------------------------------------------


def is_pilot(point: Point) -> bool:
    """Return whether a point is the pilot of its text."""
    return (point["width"], point["steps"]) == PILOT


def difficulties(points: list[Point]) -> dict[str, Difficulty]:
    """By text, the mean of its pilots."""
    pilots: dict[str, list[Point]] = defaultdict(list)
    for point in filter(is_pilot, points):
        pilots[point["text"]].append(point)

    def mean(some: list[Point], name: str) -> float:
        return math.fsum(point[name] for point in some) / len(some)

    return {
        text: Difficulty(mean(some, "early_nats_per_token"), mean(some, "nats_per_token"))
        for text, some in pilots.items()
    }


@cache
def blocks(width: int) -> int:
    """Return the parameters in the blocks of the model of a width."""
    return parameter_count(model_of_width(width, 1024)).blocks


def residuals(law: ScalingLaw, points: list[Point]) -> list[float]:
    """Return ln(measured / expected) of each point that is not a pilot."""
    texts = difficulties(points)
    errors: list[float] = []
    for point in points:
        if is_pilot(point):
            continue
        text, unique = texts[point["text"]], point["unique_tokens"]
        ratio = law.level(blocks(point["width"]), point["tokens"], unique) / law.level(
            blocks(PILOT_WIDTH), PILOT_TOKENS, unique
        )
        errors.append(math.log(point["nats_per_token"] / law.loss(text, ratio)))
    return errors


def fit(points: list[Point]) -> ScalingLaw:
    """Fit the law with the least squared ``residuals`` by the Levenberg–Marquardt method in log space."""

    def errors(logarithms: Tensor) -> Tensor:
        law = ScalingLaw(*logarithms.exp().tolist())
        return torch.tensor(residuals(law, points), dtype=torch.float64)

    at = torch.tensor(FIRST_GUESS, dtype=torch.float64).log()
    current, damping = errors(at), 1.0
    for _ in range(FIT_STEPS):
        nearby = (at + DIFFERENCE * axis for axis in torch.eye(len(at), dtype=torch.float64))
        slopes = torch.stack([(errors(x) - current) / DIFFERENCE for x in nearby], dim=1)
        curvature = slopes.T @ slopes
        step = torch.linalg.solve(curvature + damping * curvature.diag().diag(), -slopes.T @ current)
        there = errors(at + step)
        if there.square().sum() < current.square().sum():
            at, current, damping = at + step, there, damping / 3
        else:
            damping *= 3
    return ScalingLaw(*at.exp().tolist())


def root_mean_square(errors: list[float]) -> float:
    """Return √(mean of squares)."""
    return math.sqrt(math.fsum(error**2 for error in errors) / len(errors))


def report(points: list[Point]) -> None:
    """Print the fitted law and its errors, also for each text left out of the fit."""
    law = fit(points)
    print(law)
    errors = residuals(law, points)
    print(f"all points: root mean square {root_mean_square(errors):.2%}, largest {max(map(abs, errors)):.2%}")
    for text in difficulties(points):
        inside = [point for point in points if point["text"] != text]
        left_out = [point for point in points if point["text"] == text]
        errors = residuals(fit(inside), left_out)
        print(
            f"{text}, left out of the fit: root mean square {root_mean_square(errors):.2%}, "
            f"largest {max(map(abs, errors)):.2%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", nargs="*", help="texts to train on; default: all")
    parser.add_argument("--fit", action="store_true", help="fit the recorded points without training")
    parser.add_argument("--data", type=Path, help="folder of english.jsonl")
    parser.add_argument("--work", type=Path, help="folder for the prepared tokens")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.fit:
        report(recorded())
    elif arguments.data and arguments.work:
        arguments.work.mkdir(parents=True, exist_ok=True)
        sweep(arguments.texts or list(POINTS), arguments.data, arguments.work, arguments.threads)
    else:
        parser.error("give --data and --work to train, or --fit")


if __name__ == "__main__":
    main()
