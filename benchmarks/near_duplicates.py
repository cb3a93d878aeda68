"""Measure near-duplicate detection with planted copies, and the contamination of english.jsonl."""

import json
import os
import random
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.tables import publish
from wholegpt.data import plan_split, write_documents
from wholegpt.data.reading.decoding import Piece
from wholegpt.data.text.contamination import contamination
from wholegpt.data.text.deduplication import find_duplicates
from wholegpt.settings.choices import Split
from wholegpt.settings.schema import DataConfig

SHARES = (0.0, 0.05, 0.1, 0.2, 0.5)
PLANTED, LEAST_WORDS = 1000, 50


def changed(text: str, share: float, generator: random.Random, vocabulary: list[str]) -> str:
    """Return ``text`` with each word replaced, with probability ``share``, by a random word of the corpus."""
    words = text.split(" ")
    return " ".join(generator.choice(vocabulary) if generator.random() < share else word for word in words)


def contamination_lines(documents: list[str]) -> list[str]:
    """Return lines with the held-out documents that share word 13-grams with the training text."""
    with (
        tempfile.TemporaryDirectory() as folder,
        write_documents(Path(folder), map(Piece, documents)) as store,
    ):
        plan = plan_split(store, "english", Split.automatic, DataConfig())
        overlaps = contamination(plan.documents(store, "train"), plan.documents(store, "validation"))
    found = sorted((one for one in overlaps if one.found), key=lambda one: -one.share)
    return [
        f"Of {len(overlaps)} held-out documents, {len(found)} share word 13-grams with the training text. Each line "
        "gives the number of shared 13-grams, the number of 13-grams in the document, and the first shared 13-gram:",
        "",
        *(f'- {one.found:,} of {one.ngrams:,} 13-grams: "{one.excerpt}"' for one in found),
    ]


def main() -> None:
    data, settings = Path(os.environ["WHOLEGPT_DATA"]), DataConfig()
    lines = (data / "english.jsonl").read_text(encoding="utf-8").strip().split("\n")
    documents = [json.loads(line)["text"] for line in lines]

    def find(texts: list[str]) -> np.ndarray:
        each = ([text] for text in texts)
        return find_duplicates(each, True, settings.near_threshold, settings.near_words).first

    started = time.perf_counter()
    alone = find(documents)
    seconds = time.perf_counter() - started
    copies = np.flatnonzero(alone != np.arange(len(alone)))
    generator = random.Random(1)
    candidates = [
        i for i in range(len(documents)) if alone[i] == i and len(documents[i].split()) >= LEAST_WORDS
    ]
    originals = generator.sample(candidates, PLANTED)
    vocabulary = [word for document in documents for word in document.split()]
    rows: list[str] = []
    for share in SHARES:
        planted = [changed(documents[i], share, generator, vocabulary) for i in originals]
        first = find([*documents, *planted])[len(documents) :]
        right = np.mean(first == np.array(originals))
        wrong = np.sum((first < len(documents)) & (first != np.array(originals)))
        rows.append(f"| {share:.0%} | {right:.3f} | {wrong} |")
    listed = [
        f'- {number} and {alone[number]}: "{" ".join(documents[number].split())[:60]}" and '
        f'"{" ".join(documents[alone[number]].split())[:60]}"'
        for number in copies
    ]
    publish(
        "Near-duplicates and contamination",
        "\n".join(
            [
                f"english.jsonl has {len(documents):,} documents. {len(candidates):,} of them have at least "
                f"{LEAST_WORDS} words and are not duplicates of others. {PLANTED:,} of these were added a second "
                f"time, with some words replaced. The threshold is {settings.near_threshold}, with word "
                f"{settings.near_words}-grams. Searching the original {len(documents):,} documents took "
                f"{seconds:.1f} s.",
                "",
                "| Words replaced | Share detected as duplicates of their original | Detected as duplicates of another "
                "document |",
                "| ---: | ---: | ---: |",
                *rows,
                "",
                f"In english.jsonl itself, {len(copies)} documents are detected as near-duplicates. Each line gives "
                "the index and the beginning of both documents:",
                "",
                *listed,
                "",
                *contamination_lines(documents),
            ]
        ),
    )


if __name__ == "__main__":
    main()
