"""Compare fine-tuning from pretrained weights with fine-tuning from random weights, on several tasks.

Every run is kept, and resumed after an interruption: the command can be repeated at any time. Runs of this size finish
soonest with two processes, each with ``--threads 1`` and another ``--only``; a last call without these options makes
the table.
"""

import argparse
import csv
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline

import wholegpt as wg
from benchmarks.runs import finished
from benchmarks.tables import machine_line, publish
from wholegpt.console import Console
from wholegpt.data.examples.columns import TaskColumns
from wholegpt.data.examples.tasks import read_examples
from wholegpt.data.reading.tables import read_table
from wholegpt.files import write_json_atomic
from wholegpt.metrics import Estimate, bootstrap_ratio
from wholegpt.runs.folder import recorded_config
from wholegpt.settings.choices import TaskKind

SEEDS = (1, 2, 3)
WHAT = """The benchmark compares fine-tuning from pretrained weights with fine-tuning from random weights.

- **Cost:** {cost}
- **Intervals** are paired bootstraps over the test examples. They do not include the variation between seeds.
- **Relatedness scores:** the last column is the difference of the squared error, so values below 0 are better.
- **LoRA** is compared with full fine-tuning of the random model."""
LETTERS = "ABCD"
EPOCHS = 2
SICK_EPOCHS = 4
"""Pairs of sentences take more epochs: on the validation file the pretrained model improves for three, the other for
two."""


@dataclass(frozen=True)
class Way:
    """One way of fine-tuning."""

    initialization: str
    language_modeling: float
    lora: int = 0

    @property
    def name(self) -> str:
        """The name in tables."""
        initial = "pretrained" if self.initialization == "trained" else self.initialization
        return f"{initial}{', LoRA' if self.lora else ''}, λ = {self.language_modeling:g}"

    def settings(self) -> dict[str, dict[str, Any]]:
        """Return the settings as sections of a config."""
        changes: dict[str, dict[str, Any]] = {
            "finetuning": {"initialization": self.initialization, "language_modeling": self.language_modeling}
        }
        if self.lora:
            changes |= {"lora": {"rank": self.lora}, "optimizer": {"learning_rate": 0.005}}
        return changes


WAYS = (
    Way("trained", 0.5),
    Way("random", 0.5),
    Way("trained", 0.0),
    Way("random", 0.0),
    Way("trained", 0.5, lora=8),
)


@dataclass(frozen=True)
class Task:
    """A task with its files."""

    name: str
    kind: str
    train: Path
    validation: Path
    test: Path
    settings: dict[str, dict[str, Any]]
    whole: bool = False
    """Whether all ways are tried, with three seeds."""

    @property
    def ways(self) -> tuple[Way, ...]:
        """The ways of fine-tuning to try."""
        return WAYS if self.whole else WAYS[:2]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of each way."""
        return SEEDS if self.whole else SEEDS[:1]


def tasks(data: Path, out: Path) -> list[Task]:
    """Return the tasks. MCTest is converted to JSON lines."""
    for name in ("train", "dev", "test"):
        write_questions(data / "mctest", name, out / f"mctest-{name}.jsonl")

    def of(folder: str, dev: str = "dev") -> tuple[Path, Path, Path]:
        train, validation, test = (data / folder / f"{name}.tsv" for name in ("train", dev, "test"))
        return train, validation, test

    train, validation, test = (out / f"mctest-{name}.jsonl" for name in ("train", "dev", "test"))
    questions = (train, validation, test)
    longer = {"training": {"epochs": SICK_EPOCHS}}
    labels = {"finetuning": {"label_column": "entailment_judgment"}, **longer}
    scores = {"finetuning": {"label_column": "relatedness_score"}, **longer}
    return [
        Task("SST-2", "classification", *of("sst2"), {}, whole=True),
        Task("SICK entailment", "entailment", *of("sick"), labels, whole=True),
        Task("SICK relatedness", "similarity", *of("sick"), scores),
        Task("MRPC", "similarity", *of("mrpc", "val"), {}),
        Task("MCTest", "choice", *questions, {"training": {"epochs": 1, "batch_size": 8}}),
    ]


def write_questions(folder: Path, name: str, path: Path) -> None:
    """Write MCTest as JSON lines: four questions per story, each with four answers."""
    lines: list[str] = []
    answers = [row.split("\t") for row in (folder / f"{name}.ans").read_text().splitlines()]
    rows = (folder / f"{name}.statements.tsv").read_text(encoding="utf-8").splitlines()
    for row, right in zip(rows, answers, strict=True):
        _, _, story, *rest = row.split("\t")
        for number, letter in enumerate(right):
            asked, *choices = rest[5 * number : 5 * number + 5]
            question = asked.partition(":")[2].strip()
            context = (
                f"{question} {story.replace(chr(92) + 'n', ' ')}"  # truncation removes the end of the story
            )
            example = {"context": context, "choices": choices, "answer": LETTERS.index(letter)}
            lines.append(json.dumps(example, ensure_ascii=False))
    path.write_text("\n".join(lines), encoding="utf-8")


def pretrained(data: Path, out: Path, console: Console) -> Path:
    """Return the pretrained model. Train it if there is none."""
    run, config = out / "pretrained", wg.recipe("transfer")
    return finished(
        run, lambda: wg.train(data / "english.jsonl", config=config, out=run, console=console), console
    )


def tested(
    base: Path, task: Task, way: Way, seed: int, out: Path, threads: int, console: Console
) -> dict[str, Any]:
    """Return the test results of one run. Train it if there is none."""
    words = way.name.replace("pretrained", "trained").replace(" ", "").replace(",", "-").replace("λ=", "")
    run = out / f"{task.name.replace(' ', '-')}-{words}-{seed}"
    kept = run / "test.json"
    if not kept.exists():
        if (run / "config.yaml").exists():
            finished = wg.resume(run, console=console)
        else:
            config = wg.recipe("finetune")
            runtime = {
                "runtime": {"seed": seed, "threads": threads},
                "evaluation": {"every": 100},
                "training": {"epochs": EPOCHS},
            }
            for changes in (runtime, task.settings, way.settings()):
                config = wg.configure(changes, base=config)
            finished = wg.finetune(
                base,
                task.train,
                task=task.kind,
                validation=task.validation,
                config=config,
                out=run,
                console=console,
            )
        score = finished.load().evaluate_task(task.test, console=console)
        figures = {name: estimate.value for name, estimate in score.metrics.items()}
        field = "correct" if "correct" in score.records[0] else "squared_error"
        write_json_atomic(
            kept,
            {
                "figures": figures,
                field: [float(one[field]) for one in score.records],
                "core_seconds": (finished.state.train_seconds + finished.state.other_seconds)
                * finished.config.runtime.threads,
            },
        )
    return json.loads(kept.read_text())


def most_frequent(task: Task) -> float:
    """Return the accuracy of the most frequent label of the training examples."""
    columns = TaskColumns(target=task.settings.get("finetuning", {}).get("label_column", ""))
    known, asked = (
        [one.target for one in read_examples(read_table(path), TaskKind(task.kind), columns)[0]]
        for path in (task.train, task.test)
    )
    return asked.count(Counter(known).most_common(1)[0][0]) / len(asked)


def naive_bayes(task: Task) -> float:
    """Return the accuracy of multinomial naive Bayes on the presence of word n-grams (1 and 2)."""

    def read(path: Path) -> tuple[list[str], list[str]]:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        return [row[0] for row in rows], [row[1] for row in rows]

    present = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\S+", binary=True)
    judge = make_pipeline(present, MultinomialNB()).fit(*read(task.train))
    return float(judge.score(*read(task.test)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--only", help="run only this task")
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    console = Console()
    arguments.out.mkdir(parents=True, exist_ok=True)
    base = pretrained(arguments.data, arguments.out, console)
    rows: list[str] = []
    for task in tasks(arguments.data, arguments.out):
        if arguments.only in (None, task.name):
            rows += lines_of(base, task, arguments.out, arguments.threads, console)
    header = [
        "| Task, test examples | Metric | Initial weights | Mean of the seeds (each) | Pretrained − random, 95% |",
        "| --- | --- | --- | --- | --- |",
    ]
    print("\n".join([*header, *rows]))
    if not arguments.only:
        what = WHAT.format(cost=cost(arguments.out))
        publish("Transfer", "\n".join([machine_line(), "", what, "", *header, *rows]))


def cost(out: Path) -> str:
    """Return the minutes of two cores that pretraining and fine-tuning took."""
    lines = map(json.loads, (out / "pretrained/metrics.jsonl").read_text().splitlines())
    pretraining = max(line.get("train_seconds", 0.0) for line in lines)
    threads = recorded_config(out / "pretrained").runtime.threads
    runs = [json.loads(path.read_text())["core_seconds"] for path in sorted(out.glob("*/test.json"))]
    parts = [pretraining * threads / 120, sum(runs) / 120]
    return (
        f"{parts[0]:.0f} minutes of two cores for pretraining, and {parts[1]:.0f} for fine-tuning and validation in "
        f"{len(runs)} runs; {sum(parts):.0f} together."
    )


def lines_of(base: Path, task: Task, out: Path, threads: int, console: Console) -> Iterator[str]:
    """Yield the rows of one task."""
    found = {
        way: [tested(base, task, way, seed, out, threads, console) for seed in task.seeds]
        for way in task.ways
    }
    figures, *examples = found[task.ways[0]][0].values()
    title = f"{task.name}, {len(examples[0]):,}"
    for way, results in found.items():
        figure = next(iter(results[0]["figures"]))
        values = [one["figures"][figure] for one in results]
        each = ", ".join(f"{value:.4f}" for value in values)
        other = found.get(Way("random", way.language_modeling))
        against = ""
        if way.initialization == "trained" and other:
            gain = difference(results, other)
            of_what = "" if "correct" in results[0] else "squared error "
            against = f"{of_what}{gain.value:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})"
        name = figure.replace("_", " ")
        yield f"| {title} | {name} | {way.name} | {np.mean(values):.4f} ({each}) | {against} |"
    if "accuracy" in figures:
        yield f"| {title} | accuracy | the most frequent label | {most_frequent(task):.4f} | |"
    if task.name == "SST-2":
        yield f"| {title} | accuracy | naive Bayes on word 1- and 2-grams | {naive_bayes(task):.4f} | |"


def difference(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> Estimate:
    """Return the difference first − second of the means over seeds, with a bootstrap interval over the test examples.

    The metric is the accuracy for labels, and the mean squared error for scores.
    """
    field = "correct" if "correct" in first[0] else "squared_error"
    means = [np.mean([one[field] for one in side], axis=0) for side in (first, second)]
    return bootstrap_ratio(means[0] - means[1], np.ones(len(means[0])))


if __name__ == "__main__":
    main()
