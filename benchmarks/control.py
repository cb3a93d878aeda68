"""Measure how often a model with sentiment control codes generates text of the requested sentiment."""

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
from wholegpt.data.text.contamination import contamination
from wholegpt.metrics import Estimate, bootstrap_ratio

LABELS = ("negative", "positive")
SHARED_WORDS = 8
MAX_TOKENS = 110
"""Maximum tokens of a text. With the control line they fit into the context."""
GUIDANCE = (1.0, 1.5, 2.0, 3.0)
QUIET = Console(quiet=True)
SETTINGS: dict[str, Any] = {
    "data": {"control": ["sentiment"], "control_dropout": 0.15},
    "windows": {"documents": "separate"},
    "tokenizer": {"vocab_size": 2048},
    "model": {"context_length": 128, "n_layers": 4, "d_model": 256, "n_heads": 4, "dropout": 0.15},
    "training": {"steps": 900, "batch_size": 32},
    "schedule": {"kind": "warmup_stable_decay", "decay_fraction": 0.8, "final_fraction": 0.0},
    "evaluation": {"every": 0, "patience": 0},
    "runtime": {"device": "cpu"},
}
Labeled = list[tuple[str, int]]


def sst2(folder: Path) -> tuple[Labeled, Labeled]:
    """Return the distinct sentences with their labels, in two halves."""
    lines = [
        line.rpartition("\t")
        for name in ("train", "dev", "test")
        for line in (folder / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
    ]
    sentences = [(text, int(label)) for text, label in {text: label for text, _, label in lines}.items()]
    random.Random(0).shuffle(sentences)
    return sentences[: len(sentences) // 2], sentences[len(sentences) // 2 :]


def learned_judge(sentences: Labeled) -> Any:
    """Train a logistic regression on word n-grams (1 and 2) and character n-grams (2 to 6)."""
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\S+")
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 6), sublinear_tf=True)
    judge = make_pipeline(make_union(words, characters), LogisticRegression(C=5, max_iter=2000))
    return judge.fit(*zip(*sentences, strict=True))


def generated(lm: wg.LanguageModel, label: int, count: int, guidance: float) -> list[str]:
    """Generate texts with a label."""
    control = {"sentiment": LABELS[label]}
    made = lm.generate_all(
        [""] * count, control=control, guidance=guidance, temperature=1, max_tokens=MAX_TOKENS, console=QUIET
    )
    return [one.text for one in made]


def obeyed(judge: Any, texts: Sequence[str], asked: Sequence[int] | np.ndarray) -> np.ndarray:
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
    rows: list[str] = []
    listed: list[str] = []
    asked = np.repeat([0, 1], samples // 2)
    for guidance in GUIDANCE:
        texts = [text for label in (0, 1) for text in generated(lm, label, samples // 2, guidance)]
        overlaps = contamination(([text] for text in sentences), ([text] for text in texts), SHARED_WORDS)
        new = np.array([one.found == 0 for one in overlaps])
        hits = obeyed(judge, texts, asked)
        words = len({word for text in texts for word in text.split()})
        rows.append(f"| {guidance:g} | {share(hits[new])} | {share(hits)} | {words:,} |")
        listed += [f'- {guidance:g}, {LABELS[asked[i]]}: "{texts[i]}"' for i in (0, 1, -2, -1)]
    publish(
        "Control codes",
        "\n".join(
            [
                machine_line(),
                "",
                "- **Model.** 4 layers, width 256, trained on sentences of SST-2 with `--data.control sentiment` "
                f"({seconds:,.0f} s). It gets one half of the sentences ({len(of_model):,}) and learns from nine "
                f"tenths of it. {SETTINGS['data']['control_dropout']:.0%} of the sentences have no control line.",
                "- **Judge.** Logistic regression on word and character n-grams, trained on the other half. It "
                f"predicts the label of {share(obeyed(judge, sentences, labels))} sentences in the model's half.",
                "- **Texts.** They are sampled at temperature 1 from the last weights of the model. The requested "
                f"label is positive for half of them. A text is new if it shares no word {SHARED_WORDS}-gram with the "
                "model's half of the sentences.",
                "- **Intervals** are 95% intervals.",
                "",
                "| Guidance γ | New texts that the judge gives the requested label | All texts | Distinct words |",
                "| ---: | ---: | ---: | ---: |",
                *rows,
                "",
                "The first two and the last two texts of each row:",
                "",
                *listed,
            ]
        ),
    )


if __name__ == "__main__":
    main()
