"""Compare the speed of encoding and of BPE training with tiktoken and the tokenizers library."""

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from benchmarks.tables import conditions, publish, spread
from wholegpt.data.reading.corpora import python_stdlib
from wholegpt.tokenizers import Tokenizer, gpt2_tokenizer, train_bpe
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


def alternating(sides: dict[str, Callable[[], object]], rounds: int, megabytes: float) -> list[str]:
    """Return rows with megabytes per second, and the ratio of the first side to the second."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            started = time.perf_counter()
            work()  # not kept: the garbage collector would traverse it in the time of the other side
            rates[name].append(megabytes / (time.perf_counter() - started))
    ours, theirs = rates.values()
    ratios = spread([a / b for a, b in zip(ours, theirs, strict=True)], "{:.2f}")
    lines = [f"| {name} | {spread(values, '{:.1f}')} | " for name, values in rates.items()]
    return [lines[0] + f"{ratios} |", lines[1] + "1 |"]


def read_texts(data: Path) -> list[str]:
    lines = (data / "english.jsonl").read_text(encoding="utf-8").strip().split("\n")
    return [json.loads(line)["text"] for line in lines] + [piece.text for piece in python_stdlib().pieces()]


def learn_here(texts: list[str]) -> Tokenizer:
    return train_bpe(texts, ENTRIES)


def peak_memory() -> int:
    """Return the peak memory of this process in kilobytes. ``getrusage`` would include that of the parent."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0])


def measure_growth(learn: Callable[[list[str]], object], data: Path, result: Connection) -> None:
    texts = read_texts(data)
    before = peak_memory()
    learn(texts)
    result.send((peak_memory() - before) / 1e3)


def peak_growth(learn: Callable[[list[str]], object], data: Path) -> float:
    """Return the increase of the peak memory of a new process during training, in megabytes."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure_growth, args=(learn, data, sender))
    process.start()
    megabytes = receiver.recv()
    process.join()
    return megabytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    data = Path(os.environ["WHOLEGPT_DATA"])
    texts = read_texts(data)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    ours = gpt2_tokenizer(data / "gpt2")
    theirs = fast_encoding(ours.to_json(), ours.token_bytes)
    assert theirs
    cores = os.cpu_count() or 1
    mine = list(ours.encode_all(texts))
    reference = theirs.encode_ordinary_batch(texts, num_threads=cores)
    assert all(a.tolist() == b for a, b in zip(mine, reference, strict=True))
    del mine, reference
    encoding = alternating(
        {
            "encoding, wholegpt": lambda: list(ours.encode_all(texts)),
            f"encoding, tiktoken's batch on {cores} threads": lambda: theirs.encode_ordinary_batch(
                texts, num_threads=cores
            ),
        },
        arguments.rounds,
        megabytes,
    )
    learning = alternating(
        {
            f"learning {ENTRIES:,} entries, wholegpt": lambda: learn_here(texts),
            "the same, the tokenizers library alone": lambda: learn_with_the_library(texts),
        },
        max(2, arguments.rounds // 2),
        megabytes,
    )
    memory = [[peak_growth(learn, data) for _ in range(2)] for learn in (learn_here, learn_with_the_library)]
    publish(
        "Tokenization",
        "\n".join(
            [
                f"{conditions(arguments.rounds)} The text is {megabytes:.1f} MB: english.jsonl and Python's standard "
                "library. Encoding uses GPT-2's vocabulary, and both sides give the same ids.",
                "",
                "| Task | MB/s | Ratio |",
                "| --- | ---: | ---: |",
                *encoding,
                *learning,
                "",
                "Learning the vocabulary increases the peak memory of a new process by "
                f"{' and '.join(f'{grown:.0f}' for grown in memory[0])} MB, and the library alone by "
                f"{' and '.join(f'{grown:.0f}' for grown in memory[1])} MB (two runs each).",
            ]
        ),
    )


if __name__ == "__main__":
    main()
