"""How fast text becomes token ids, and a vocabulary is learned: ours beside tiktoken and the tokenizers library."""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from benchmarks.tables import conditions, publish, spread
from wholegpt.data.corpora import python_stdlib
from wholegpt.tokenizers import gpt2_tokenizer, train_bpe
from wholegpt.tokenizers.fast import fast_encoding

ENTRIES = 32_000


def learn_with_the_library(texts: list[str]) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ENTRIES - 1, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    library.train_from_iterator(texts, trainer)
    return library


def alternating(
    sides: dict[str, Callable[[], object]], rounds: int, megabytes: float
) -> tuple[list[str], dict[str, object]]:
    """Lines of a table of megabytes a second, the first side's as ratios to the second's; and the last results."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    results: dict[str, object] = {}
    for _ in range(rounds):
        for name, work in sides.items():
            started = time.perf_counter()
            results[name] = work()
            rates[name].append(megabytes / (time.perf_counter() - started))
    ours, theirs = rates.values()
    ratios = spread([a / b for a, b in zip(ours, theirs, strict=True)], "{:.2f}")
    lines = [f"| {name} | {spread(values, '{:.1f}')} | " for name, values in rates.items()]
    return [lines[0] + f"{ratios} |", lines[1] + "1 |"], results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    data = Path(os.environ["WHOLEGPT_DATA"])
    lines = (data / "english.jsonl").read_text(encoding="utf-8").strip().split("\n")
    texts = [json.loads(line)["text"] for line in lines] + [piece.text for piece in python_stdlib().pieces()]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    ours = gpt2_tokenizer(data / "gpt2")
    theirs = fast_encoding(ours.to_json(), ours.token_bytes)
    assert theirs
    cores = os.cpu_count() or 1
    encoding, ids = alternating(
        {
            "encoding, ours": lambda: list(ours.encode_all(texts)),
            f"encoding, tiktoken's batch on {cores} threads": lambda: theirs.encode_ordinary_batch(
                texts, num_threads=cores
            ),
        },
        arguments.rounds,
        megabytes,
    )
    mine, reference = ids.values()
    assert isinstance(mine, list) and isinstance(reference, list)
    assert all(a.tolist() == b for a, b in zip(mine, reference, strict=True))
    learning, _ = alternating(
        {
            f"learning {ENTRIES:,} entries, ours": lambda: train_bpe(texts, ENTRIES),
            "the same, the tokenizers library by itself": lambda: learn_with_the_library(texts),
        },
        max(2, arguments.rounds // 2),
        megabytes,
    )
    publish(
        "Tokenizing",
        "\n".join(
            [
                f"{conditions(arguments.rounds)} {megabytes:.1f} MB: english.jsonl and Python's standard library. "
                "GPT-2's vocabulary; the ids are the same.",
                "",
                "| | MB/s | ratio |",
                "| --- | ---: | ---: |",
                *encoding,
                *learning,
            ]
        ),
    )


if __name__ == "__main__":
    main()
