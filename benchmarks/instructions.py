"""What a small model learns of answering: instructions, and sentences said in other words.

Each is learned by the pretrained model of ``benchmarks.transfer``, and by the same from random weights. Every run is
kept, and gone on with where it was stopped.
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

FIGURES = ("nats_per_token", "stopped", "empty", "median_length_ratio", "bleu", "rougeL")
SHOWN = 20
PASSES = {"instructions": 16, "paraphrases": 4}
"""Over the training examples; the checkpoint that is best on the validation set is measured."""
Files = dict[str, Path]
"""Training, validation and test examples."""


def instructions(path: Path, out: Path) -> Files:
    """The instructions in three parts: of ten, nine are learned but for a small validation set, one is held out."""
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
    """The pairs of MRPC that mean the same, as a prompt and a response."""
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
    """Records as a file of JSON lines."""
    write_text_atomic(path, "\n".join(json.dumps(one, ensure_ascii=False) for one in records))
    return path


def tuned(base: Path, files: Files, out: Path, settings: Any, console: Console) -> Path:
    """A finished run with all its checkpoints."""
    config = wg.configure(
        {**settings, "evaluation": {"every": 50}, "checkpointing": {"keep": 100}}, base=wg.recipe("instruct")
    )
    options = {"validation": files["validation"], "config": config, "out": out, "console": console}
    return finished(out, lambda: wg.finetune(base, files["train"], task="instruct", **options), console)


def measured(run: Path, test: Path, checkpoint: str, console: Console) -> TaskScore:
    """The figures of a checkpoint on the test examples."""
    return wg.load(run, checkpoint=checkpoint, console=console).evaluate_task(test, console=console)


def row(name: str, before: TaskScore, after: TaskScore) -> str:
    """A line of the table."""
    figures = [before.metrics["nats_per_token"], *(after.metrics[figure] for figure in FIGURES)]
    return f"| {name} | {' | '.join(map(shown, figures))} |"


def shown(figure: Estimate) -> str:
    """A figure with its 95% interval."""
    return f"{figure.value:.3g} ({figure.low:.3g} to {figure.high:.3g})"


def copied(test: Path) -> str:
    """What BLEU and ROUGE-L give to saying the same sentence again."""
    records = [json.loads(line) for line in test.read_text(encoding="utf-8").splitlines()]
    again = [Generation(one["prompt"], one["response"]).generated_record(one["prompt"]) for one in records]
    found = Generation.metrics(again)
    return (
        f"| paraphrases: the sentence itself |{' |' * 5} {shown(found['bleu'])} | {shown(found['rougeL'])} |"
    )


def described(tasks: dict[str, Files]) -> str:
    """What was learned and measured, with its counts."""

    def counts(part: str) -> str:
        lines = (len(files[part].read_text(encoding="utf-8").splitlines()) for files in tasks.values())
        return " and ".join(f"{n:,}" for n in lines)

    passes = " and ".join(map(str, PASSES.values()))
    return (
        f"Instructions and paraphrases (MRPC): {counts('train')} conversations learned, for {passes} passes; the "
        f"checkpoint that is best on a validation set is measured on {counts('test')} others, with 95% intervals. "
        "BLEU and ROUGE hang on a few words that such answers share; what pretraining is worth shows in the nats."
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
        "trained": {},
        "trained, LoRA": {"lora": {"rank": 8}, "optimizer": {"learning_rate": 0.005}},
        "random": {"finetuning": {"initialization": "random"}},
    }
    rows: list[str] = []
    answers: list[str] = []
    for task, files in tasks.items():
        for way, settings in ways.items():
            chosen = {
                **settings,
                "training": {"epochs": PASSES[task]},
                "runtime": {"threads": arguments.threads},
            }
            run = tuned(base, files, out / f"{task}-{way.replace(', ', '-')}", chosen, console)
            begun = measured(run, files["test"], "0", console)
            score = measured(run, files["test"], "best", console)
            rows.append(row(f"{task}: {way}", begun, score))
            if not answers:
                answers = [
                    f"| {cell(one['prompt'])} | {cell(one['reference'])} | {cell(one['generated'])} |"
                    for one in score.records[:SHOWN]
                ]
    header = [
        "| held-out answers, begun with | nats a token before | after | end by themselves | empty | length ÷ the "
        "given, medians | BLEU | ROUGE-L |",
        "|" + " --- |" * 8,
    ]
    said = ["| asked | given | answered |", "| --- | --- | --- |", *answers]
    table = [
        machine_line(),
        "",
        described(tasks),
        "",
        *header,
        *rows,
        copied(tasks["paraphrases"]["test"]),
        "",
        *said,
    ]
    publish("Answering", "\n".join(table))


def cell(text: str) -> str:
    """A text in a table."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    main()
