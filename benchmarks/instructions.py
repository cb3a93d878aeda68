"""Measure instruction tuning of a small model on instructions and on paraphrases.

Each data set is learned from the pretrained weights of ``benchmarks.transfer``, and from random weights. Every run is
kept, and resumed after an interruption.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import wholegpt as wg
from benchmarks.runs import finished
from benchmarks.tables import machine_line, publish
from benchmarks.transfer import pretrained
from wholegpt.console import Console
from wholegpt.data.reading.tables import read_table
from wholegpt.evaluation import TaskScore
from wholegpt.evaluation.examples import Generation
from wholegpt.files import write_text_atomic
from wholegpt.metrics import Estimate

METRICS = ("nats_per_token", "stopped", "empty", "median_length_ratio", "bleu", "rougeL")
SHOWN = 20
EPOCHS = {"instructions": 16, "paraphrases": 4}
"""Epochs of each data set. The checkpoint that is best on the validation set is evaluated."""
Files = dict[str, Path]
"""Training, validation and test examples."""


def instructions(path: Path, out: Path) -> Files:
    """Split the instructions: 10% test, 5% validation, 85% training."""
    records = json.loads(path.read_text(encoding="utf-8"))
    random.Random(0).shuffle(records)
    tenth = len(records) // 10
    parts = {
        "test": records[:tenth],
        "validation": records[tenth : tenth * 3 // 2],
        "train": records[tenth * 3 // 2 :],
    }
    return {name: written(out / f"instructions-{name}.jsonl", part) for name, part in parts.items()}


def paraphrases(folder: Path, out: Path) -> Files:
    """Write the paraphrase pairs of MRPC as prompt and response."""
    found: Files = {}
    for name, theirs in (("train", "train"), ("validation", "val"), ("test", "test")):
        rows = read_table(folder / f"{theirs}.tsv").rows
        same = [
            {"prompt": one["#1 String"], "response": one["#2 String"]}
            for one in rows
            if one["Quality"] == "1"
        ]
        found[name] = written(out / f"paraphrases-{name}.jsonl", same)
    return found


def written(path: Path, records: list[dict[str, Any]]) -> Path:
    """Write records as JSON lines, and return the path."""
    write_text_atomic(path, "\n".join(json.dumps(one, ensure_ascii=False) for one in records))
    return path


def tuned(base: Path, files: Files, out: Path, settings: Any, console: Console) -> Path:
    """Return the folder of a finished run with all its checkpoints."""
    config = wg.configure(
        {**settings, "evaluation": {"every": 50}, "checkpointing": {"keep": 100}}, base=wg.recipe("instruct")
    )
    options = {"validation": files["validation"], "config": config, "out": out, "console": console}
    return finished(out, lambda: wg.finetune(base, files["train"], task="instruct", **options), console)


def measured(run: Path, test: Path, checkpoint: str, console: Console) -> TaskScore:
    """Evaluate a checkpoint on the test examples."""
    return wg.load(run, checkpoint=checkpoint, console=console).evaluate_task(test, console=console)


def row(name: str, before: TaskScore, after: TaskScore) -> str:
    """Return a row of the table."""
    figures = [before.metrics["nats_per_token"], *(after.metrics[figure] for figure in METRICS)]
    return f"| {name} | {' | '.join(map(shown, figures))} |"


def shown(figure: Estimate) -> str:
    """Return an estimate with its 95% interval."""
    return f"{figure.value:.3g} ({figure.low:.3g} to {figure.high:.3g})"


def copied(test: Path) -> str:
    """Return the row with BLEU and ROUGE-L of repeating the prompt."""
    records = [json.loads(line) for line in test.read_text(encoding="utf-8").splitlines()]
    again = [Generation(one["prompt"], one["response"]).generated_record(one["prompt"]) for one in records]
    found = Generation.metrics(again)
    return (
        f"| paraphrases: repeating the prompt |{' |' * 5} {shown(found['bleu'])} | {shown(found['rougeL'])} |"
    )


def described(tasks: dict[str, Files]) -> str:
    """Return the description of data and evaluation, with counts."""

    def counts(part: str) -> str:
        lines = (len(files[part].read_text(encoding="utf-8").splitlines()) for files in tasks.values())
        return " and ".join(f"{n:,}" for n in lines)

    epochs = " and ".join(map(str, EPOCHS.values()))
    return (
        f"Two data sets are used: instructions, and paraphrases (MRPC). Training uses {counts('train')} "
        f"conversations, for {epochs} epochs. The checkpoint that is best on a validation set is evaluated on "
        f"{counts('test')} other conversations, with 95% intervals. BLEU and ROUGE depend on a few words that such "
        "answers share. The nats per token show the value of pretraining."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/instructions"))
    parser.add_argument("--pretrained", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    console, data, out = Console(), arguments.data, arguments.out
    out.mkdir(parents=True, exist_ok=True)
    arguments.pretrained.mkdir(parents=True, exist_ok=True)
    base = pretrained(data, arguments.pretrained, console)
    tasks = {
        "instructions": instructions(data / "instruct/instructions.json", out),
        "paraphrases": paraphrases(data / "mrpc", out),
    }
    ways: dict[str, dict[str, Any]] = {
        "pretrained": {},
        "pretrained, LoRA": {"lora": {"rank": 8}, "optimizer": {"learning_rate": 0.005}},
        "random": {"finetuning": {"initialization": "random"}},
    }
    rows: list[str] = []
    answers: list[str] = []
    for task, files in tasks.items():
        for way, settings in ways.items():
            chosen = {
                **settings,
                "training": {"epochs": EPOCHS[task]},
                "runtime": {"threads": arguments.threads},
            }
            run = tuned(base, files, out / f"{task}-{way.replace(', ', '-')}", chosen, console)
            before = measured(run, files["test"], "0", console)
            score = measured(run, files["test"], "best", console)
            rows.append(row(f"{task}: {way}", before, score))
            if not answers:
                answers = [
                    f"| {cell(one['prompt'])} | {cell(one['reference'])} | {cell(one['generated'])} |"
                    for one in score.records[:SHOWN]
                ]
    header = [
        "| Data: initial weights | Nats per token before | Nats per token after | Share that end with an end token "
        "| Share of empty answers | Median length ÷ median reference length | BLEU | ROUGE-L |",
        "|" + " --- |" * 8,
    ]
    shown_answers = ["| Instruction | Reference answer | Model's answer |", "| --- | --- | --- |", *answers]
    table = [
        machine_line(),
        "",
        described(tasks),
        "",
        *header,
        *rows,
        copied(tasks["paraphrases"]["test"]),
        "",
        "Twenty held-out instructions, answered by the model with pretrained weights:",
        "",
        *shown_answers,
    ]
    publish("Instruction tuning", "\n".join(table))


def cell(text: str) -> str:
    """Return a text as a table cell."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    main()
