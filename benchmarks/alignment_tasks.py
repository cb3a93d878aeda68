"""GRPO on tasks whose right answers are known, and with a reward that is only noise."""

import argparse
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import wholegpt as wg
from benchmarks.tables import DOCUMENT, machine_line, publish
from wholegpt.analysis.charts import Series, line_chart
from wholegpt.console import Console
from wholegpt.evaluation import TaskScore
from wholegpt.settings.presets import configure
from wholegpt.training.events import Callback
from wholegpt.training.state import TrainingState

SECTION = "GRPO on tasks with known answers"
QUIET = Console(quiet=True)
MODEL = {
    "preset": "modern-tiny",
    "n_layers": 4,
    "d_model": 128,
    "n_heads": 4,
    "n_kv_heads": 4,
    "context_length": 64,
}
EXAMPLES = 1_000
"""Right answers that the model is tuned on before, which teach it the format."""
TUNING_STEPS = {"addition": 210, "sorting": 60}
"""Steps of tuning, of 64 examples; so few that less than a fifth of the held-out answers are right."""
PROMPTS = {"addition": 6_000, "sorting": 20_000}
NOISE = "function:benchmarks.alignment_tasks:noise"
CASES = {
    "addition": ("addition", ("exact",)),
    "sorting": ("sorting", ("exact",)),
    "addition, noise": ("addition", (NOISE, "0.000001*exact")),
}
"""Task and rewards; the tiny weight only logs the right answers."""
ENOUGH = 0.98
"""Share of right answers at which a run is stopped."""
SETTINGS: dict[str, Any] = {
    "training": {"steps": 100_000, "batch_size": 512},
    "alignment": {"rollout_size": 512, "group_size": 16, "completion_tokens": 8},
    "optimizer": {"learning_rate": 0.00015},
    "schedule": {"warmup_steps": 20},
    "evaluation": {"every": 25},
    "checkpointing": {"every": 200},
}
COMMON: dict[str, Any] = {"precision": {"dtype": "float32"}, "logging": {"sample_tokens": 0}}


def noise(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Return random numbers: a reward that nothing can be learned from."""
    del prompts
    return [random.random() for _ in completions]


class Watch(Callback):
    """Notes the share of right held-out answers with the minutes since the start, and stops a run at ``ENOUGH``."""

    def __init__(self, minutes: float) -> None:
        """``minutes`` is the longest time of a run."""
        self.minutes, self.started = minutes, time.perf_counter()
        self.seen: list[tuple[float, float]] = []

    def after_log(self, state: TrainingState, record: Mapping[str, Any]) -> None:
        """Note the time and the right answers of an evaluation."""
        if record["kind"] == "validation":
            passed, right = (time.perf_counter() - self.started) / 60, right_answers(record)
            self.seen.append((passed, right))
            if right >= ENOUGH:
                state.stop_reason = "nearly all answers are right"
            elif passed > self.minutes:
                state.stop_reason = "the time is over"


def right_answers(metrics: Mapping[str, Any]) -> Any:
    """Return the share of right answers: the reward, or the part of it that is named so."""
    return metrics.get("reward_exact", metrics["reward"])


def tuned_model(task: str, seed: int, work: Path) -> Path:
    """Return a model with random weights that was tuned on a few examples of the task."""
    text = work / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 200, encoding="utf-8")
    seeded = {**COMMON, "runtime": {"seed": seed}}
    base = {"model": MODEL, "data": {"source": [str(text)]}, "tokenizer": {"kind": "byte"}}
    untrained = wg.train(
        config=configure({**base, "training": {"steps": 1, "batch_size": 8}, **seeded}),
        out=work / "base",
        console=QUIET,
    )
    tuning = {
        "training": {"steps": TUNING_STEPS[task], "batch_size": 64},
        "optimizer": {"learning_rate": 0.001},
        "evaluation": {"every": 10_000},
        **seeded,
    }
    config = configure(tuning, wg.recipe("instruct"))
    data, out = f"{task}:{EXAMPLES}", work / "tuned"
    return wg.finetune(untrained.path, data, task="instruct", config=config, out=out, console=QUIET).path


def learned(task: str, rewards: tuple[str, ...], seed: int, minutes: float) -> tuple[Watch, TaskScore]:
    """Train by GRPO; return what was seen while training, and the evaluation on all held-out prompts."""
    with tempfile.TemporaryDirectory() as folder:
        start, watch = tuned_model(task, seed, Path(folder)), Watch(minutes)
        settings = {**SETTINGS, **COMMON, "runtime": {"seed": seed}}
        settings["alignment"] = {**settings["alignment"], "rewards": rewards}
        run = wg.align(
            *(start, f"{task}:{PROMPTS[task]}"),
            method="grpo",
            config=configure(settings, wg.recipe("grpo")),
            out=Path(folder) / "run",
            callbacks=[watch],
            console=QUIET,
        )
        assert isinstance(run.validation, TaskScore)
        return watch, run.validation


def row(name: str, seed: int, watch: Watch, score: TaskScore) -> str:
    """Return a row of the table."""
    final = right_answers(score.metrics)
    above = next((f"{minutes:.1f}" for minutes, right in watch.seen if right > 0.9), "never")
    return (
        f"| {name} | {seed} | {watch.seen[0][1]:.1%} | {final.value:.1%} ({final.low:.1%} to {final.high:.1%}) | "
        f"{above} | {watch.seen[-1][0]:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--minutes", type=float, default=20, help="longest time of a run")
    parser.add_argument("--case", choices=CASES, action="append", help="default: all")
    arguments = parser.parse_args()
    rows, series = list[str](), list[Series]()
    for color, case in enumerate(arguments.case or CASES):
        task, rewards = CASES[case]
        for seed in arguments.seeds:
            watch, score = learned(task, rewards, seed, arguments.minutes)
            rows.append(row(case, seed, watch, score))
            print(rows[-1], flush=True)
            times, right = np.array(watch.seen).T
            series.append(Series(case, times, right, color, in_legend=seed == arguments.seeds[0]))
    what = (
        f"{machine_line()} `modern-tiny` with 4 layers of width 128 and single bytes as tokens. It has random weights, "
        f"is tuned on {EXAMPLES:,} right answers for so few steps that less than a fifth of its answers are right, and "
        f"is then trained by GRPO with the reward `exact`: {SETTINGS['alignment']['rollout_size']} completions of "
        f"{SETTINGS['alignment']['rollout_size'] // SETTINGS['alignment']['group_size']} prompts a step. With the "
        "reward that is noise, a completion gets a random number. The right answers before and the curves are of one "
        "completion each of 128 held-out prompts at temperature 1; those after are of all held-out prompts, with 95% "
        f"intervals. A run ends at {ENOUGH:.0%}, or after {arguments.minutes:g} minutes."
    )
    header = [
        "| Task | Seed | Right before | Right after | Minutes to 90% | Minutes of the run |",
        "| --- | ---: | ---: | --- | ---: | ---: |",
    ]
    picture = "![Share of right answers as a function of the time](alignment-tasks.svg)"
    publish(SECTION, "\n".join([what, "", *header, *rows, "", picture]))
    chart = line_chart(series, x_label="minutes", y_label="share of right answers")
    chart.save(DOCUMENT.with_name("alignment-tasks.svg"))


if __name__ == "__main__":
    main()
