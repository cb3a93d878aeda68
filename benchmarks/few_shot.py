"""Compare the same labeled examples in the prompt and as training data, by their number."""

import argparse
import csv
import random
from pathlib import Path

import wholegpt as wg
from benchmarks.instructions import shown, written
from benchmarks.runs import finished
from benchmarks.tables import machine_line, publish
from benchmarks.transfer import pretrained
from wholegpt.console import Console
from wholegpt.evaluation import TaskScore

ANSWERS = {"0": "bad", "1": "good"}
"""Names of the labels of SST-2 in a prompt."""
PROMPTED = (0, 1, 4, 16)
LEARNED = (4, 16, 64, 256, 1024)
STEPS = 100
LONGEST = 10
"""Maximum words of an example, so that sixteen of them fit into the context."""


def sentences(path: Path) -> list[tuple[str, str]]:
    """Return the sentences with their labels."""
    with path.open(encoding="utf-8", newline="") as file:
        return [(row[0], row[1]) for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


def chosen(known: list[tuple[str, str]], count: int, seed: int) -> list[tuple[str, str]]:
    """Return ``count`` short examples with alternating labels. Smaller selections are parts of larger ones."""
    short = [one for one in known if len(one[0].split()) <= LONGEST]
    random.Random(seed).shuffle(short)
    sides = [[one for one in short if one[1] == label] for label in ANSWERS]
    return [one for pair in zip(*sides, strict=False) for one in pair][:count]


def prompts(examples: list[tuple[str, str]], path: Path) -> Path:
    """Write examples as multiple choice with two answers."""
    choices = list(ANSWERS.values())
    return written(
        path,
        [
            {"context": f"{text}\nthis film is", "choices": choices, "answer": list(ANSWERS).index(label)}
            for text, label in examples
        ],
    )


def prompted(base: Path, count: int, seed: int, files: list[Path], console: Console) -> TaskScore:
    """Evaluate by the likelihood of the answers after ``count`` solved examples, the same for all."""
    test, pool = files
    return wg.load(base, console=console).evaluate_task(
        test, shots=count, examples=pool if count else None, seed=seed, console=console
    )


def learned(
    base: Path, examples: list[tuple[str, str]], data: Path, out: Path, seed: int, console: Console
) -> TaskScore:
    """Evaluate with a head trained on the examples for all steps, without validation examples."""
    table = written(out.with_suffix(".jsonl"), [{"text": text, "label": label} for text, label in examples])
    settings = {
        "training": {"steps": STEPS, "epochs": 0, "batch_size": min(32, len(examples))},
        "evaluation": {"every": 0},
        "runtime": {"seed": seed},
    }
    config = wg.configure(settings, base=wg.recipe("finetune"))
    options = {"validation": table, "config": config, "out": out, "console": console}
    run = finished(out, lambda: wg.finetune(base, table, task="classification", **options), console)
    return wg.load(run, checkpoint="last", console=console).evaluate_task(
        data / "sst2" / "test.tsv", console=console
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/few-shot"))
    parser.add_argument("--pretrained", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    console, data, out = Console(), arguments.data, arguments.out
    for folder in (out, arguments.pretrained):
        folder.mkdir(parents=True, exist_ok=True)
    base = pretrained(data, arguments.pretrained, console)
    train, test = (sentences(data / "sst2" / f"{name}.tsv") for name in ("train", "test"))
    asked = prompts(test, out / "asked.jsonl")
    rows: list[str] = []
    for count in sorted({*PROMPTED, *LEARNED}):
        by_prompt: list[str] = []
        by_head: list[str] = []
        for seed in range(1, arguments.seeds + 1):
            examples = chosen(train, count, seed)
            if count in PROMPTED and (count or seed == 1):
                pool = prompts(examples, out / f"shots-{count}-{seed}.jsonl")
                score = prompted(base, count, seed, [asked, pool], console)
                by_prompt.append(shown(score.metrics["accuracy"]))
            if count in LEARNED:
                score = learned(base, examples, data, out / f"learned-{count}-{seed}", seed, console)
                by_head.append(shown(score.metrics["accuracy"]))
        rows.append(f"| {count} | {'; '.join(by_prompt) or '–'} | {'; '.join(by_head) or '–'} |")
    header = ["| Examples | In the prompt | As training data |", "| --- | --- | --- |"]
    what = (
        "The same labeled examples are used in the prompt or as training data. The table shows the accuracy on the "
        f"{len(test):,} test sentences of SST-2 with its 95% interval, for each of {arguments.seeds} selections of "
        f"examples with at most {LONGEST} words. A classification head needs two examples of each label and is "
        f"trained for {STEPS} steps."
    )
    publish("Few-shot prompts and fine-tuning", "\n".join([machine_line(), "", what, "", *header, *rows]))


if __name__ == "__main__":
    main()
