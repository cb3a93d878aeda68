"""How much memory preparing a large corpus takes, and how long: JSON lines from english.jsonl, each document new."""

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

LOOKS_A_SECOND = 5


def generate(path: Path, gigabytes: float) -> int:
    """Write about so much text, every document with a number of its own in front; returns the bytes."""
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
    """Kilobytes of a process and its children, what they share divided among those who have it (PSS)."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            if process in (parent, int(status.parent.name)):
                lines = (status.parent / "smaps_rollup").read_text()
                total += int(lines.partition("Pss:")[2].split()[0])
        except OSError:  # it ended meanwhile
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
            time.sleep(1 / LOOKS_A_SECOND)
        seconds = time.perf_counter() - started
        assert process.returncode == 0
        card = read_json(out / "card.json")
    publish(
        "Preparing",
        f"{machine_line()} `data prepare` of {size / 1e9:.2f} GB of JSON lines, {card['text']['documents']:,} "
        f"documents, copies: {card['duplicates']['method']}; one run: {seconds:.0f} s, {size / 1e6 / seconds:.1f} MB/s "
        f"from reading to shards, peak memory of the whole process tree (PSS) {peak * 1024 / 1e6:.0f} MB.",
    )


if __name__ == "__main__":
    main()
