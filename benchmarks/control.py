"""Whether a model that is trained on a sentiment before each text writes with the one that it is asked for."""

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline, make_union

import wholegpt as wg
from benchmarks.tables import machine_line, publish
from wholegpt.console import Console
from wholegpt.data import contamination
from wholegpt.metrics import Estimate, bootstrap_ratio

LABELS = ("negative", "positive")
COPIED_WORDS = 8
QUIET = Console(quiet=True)
SETTINGS: dict[str, Any] = {
    "data": {"control": ["sentiment"]},
    "windows": {"documents": "separate"},
    "tokenizer": {"vocab_size": 2048},
    "model": {"context_length": 128, "n_layers": 4, "d_model": 256, "n_heads": 4, "dropout": 0.15},
    "training": {"steps": 900, "batch_size": 32},
    "schedule": {"kind": "warmup_stable_decay", "decay_fraction": 0.8, "final_fraction": 0.0},
    "evaluation": {"every": 0, "patience": 0},
    "runtime": {"device": "cpu"},
}
Labelled = list[tuple[str, int]]


def sst2(folder: Path) -> tuple[Labelled, Labelled]:
    """All sentences with their labels, each once, in two halves."""
    lines = [
        line.rpartition("\t")
        for name in ("train", "dev", "test")
        for line in (folder / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
    ]
    sentences = [(text, int(label)) for text, label in {text: label for text, _, label in lines}.items()]
    random.Random(0).shuffle(sentences)
    return sentences[: len(sentences) // 2], sentences[len(sentences) // 2 :]


def learned_judge(sentences: Labelled) -> Any:
    """Logistic regression on runs of one and two words and of two to six characters."""
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\S+")
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 6), sublinear_tf=True)
    judge = make_pipeline(make_union(words, characters), LogisticRegression(C=5, max_iter=2000))
    return judge.fit(*zip(*sentences, strict=True))


def written(lm: wg.LanguageModel, asked: list[int], controlled: bool) -> list[str]:
    """A text for each label asked for; without control the model's own line before it is taken off."""
    texts: list[str] = []
    for seed, label in enumerate(asked):
        control = {"sentiment": LABELS[label]} if controlled else {}
        text = lm.generate(control=control, temperature=1, max_tokens=240, seed=seed, console=QUIET).text
        texts.append(text if controlled else text.partition("\n")[2])
    return texts


def obeyed(judge: Any, texts: Sequence[str], asked: Sequence[int]) -> np.ndarray:
    return (judge.predict(texts) == np.array(asked)).astype(int)


def share(hits: np.ndarray) -> str:
    estimate: Estimate = bootstrap_ratio(hits, np.ones(len(hits)))
    return f"{estimate.value:.1%} ({estimate.low:.1%} to {estimate.high:.1%}) of {len(hits):,}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    samples, threads = arguments.samples, arguments.threads
    of_model, of_judge = sst2(Path(os.environ["WHOLEGPT_DATA"]) / "sst2")
    sentences, labels = zip(*of_model, strict=True)
    judge = learned_judge(of_judge)
    settings = {**SETTINGS, "runtime": {**SETTINGS["runtime"], "threads": threads}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "half.jsonl"
        records = [{"text": text, "sentiment": LABELS[label]} for text, label in of_model]
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        started = time.perf_counter()
        run = wg.train(path, config=wg.configure(settings), out=Path(folder) / "run", console=QUIET)
        seconds = time.perf_counter() - started
        lm = wg.load(run.path, checkpoint="last", threads=threads, console=QUIET)
    asked = [number % 2 for number in range(samples)]
    texts = written(lm, asked, controlled=True)
    without = written(lm, asked, controlled=False)
    overlaps = contamination(([text] for text in sentences), ([text] for text in texts), COPIED_WORDS)
    new = np.array([one.found == 0 for one in overlaps])
    hits = obeyed(judge, texts, asked)
    listed = [f'- {LABELS[label]}: "{text}"' for text, label in zip(texts[:6], asked, strict=False)]
    publish(
        "Control",
        "\n".join(
            [
                f"{machine_line()} SST-2's sentences with `--data.control sentiment`: a model of 4 layers, 256 wide, "
                f"learns from nine tenths of {len(of_model):,} of them ({seconds:.0f} s), a judge (logistic regression "
                "on runs of words and of characters) from the other half. Texts are drawn at temperature 1 from the "
                "model's last weights, every second one positive; new are those that share no "
                f"{COPIED_WORDS} words in a row with its half. 95% intervals.",
                "",
                "| the judge finds the label | share |",
                "| --- | ---: |",
                f"| of the model's half of the sentences | {share(obeyed(judge, sentences, labels))} |",
                f"| asked for, in new texts | {share(hits[new])} |",
                f"| asked for, in all texts | {share(hits)} |",
                f"| not asked for, in texts without control | {share(obeyed(judge, without, asked))} |",
                "",
                "The first texts:",
                "",
                *listed,
            ]
        ),
    )


if __name__ == "__main__":
    main()
