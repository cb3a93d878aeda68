"""Measure time and memory of `data prepare` on a large corpus of distinct documents from english.jsonl."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.tables import machine_line, publish
from wholegpt.files import read_json

SAMPLES_PER_SECOND = 5


def generate(path: Path, gigabytes: float) -> int:
    """Write about ``gigabytes`` of text, with a number in front of each document. Return the bytes."""
    source = Path(os.environ["WHOLEGPT_DATA"]) / "english.jsonl"
    documents = [json.loads(line)["text"] for line in source.read_text(encoding="utf-8").strip().split("\n")]
    written = number = 0
    with path.open("w", encoding="utf-8") as file:
        while written < gigabytes * 1e9:
            text = f"{number} {documents[number % len(documents)]}"
            written += file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            number += 1
    return path.stat().st_size


def share_of_memory(process: int) -> int:
    """Return the proportional set size (PSS) of a process and its children in kilobytes."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            if process in (parent, int(status.parent.name)):
                lines = (status.parent / "smaps_rollup").read_text()
                total += int(lines.partition("Pss:")[2].split()[0])
        except OSError:  # the process has ended
            continue
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--deduplicate", default="none")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        text, out = Path(folder) / "text.jsonl", Path(folder) / "out"
        size = generate(text, arguments.gigabytes)
        command = [
            "data",
            "prepare",
            str(text),
            "--out",
            str(out),
            "--data.deduplicate",
            arguments.deduplicate,
        ]
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "wholegpt.cli", *command], stdout=subprocess.DEVNULL
        )
        peak = 0
        while process.poll() is None:
            peak = max(peak, share_of_memory(process.pid))
            time.sleep(1 / SAMPLES_PER_SECOND)
        seconds = time.perf_counter() - started
        assert process.returncode == 0
        card = read_json(out / "card.json")
    publish(
        "Data preparation",
        f"{machine_line()} One run of `data prepare` on {size / 1e9:.2f} GB of JSON Lines with "
        f"{card['text']['documents']:,} documents, deduplication: {card['duplicates']['method']}. It took "
        f"{seconds:.0f} s, {size / 1e6 / seconds:.1f} MB/s from reading to shards. The peak memory of the whole "
        f"process tree is {peak * 1024 / 1e6:.0f} MB (PSS).",
    )


if __name__ == "__main__":
    main()
