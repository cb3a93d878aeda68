"""Tables of measurements, and their sections in docs/benchmarks.md."""

import re
import statistics
from pathlib import Path

import torch

from wholegpt import runtime

DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def spread(values: list[float], format_: str) -> str:
    """Return ``median (least to most)``."""
    median, least, most = statistics.median(values), min(values), max(values)
    return f"{format_.format(median)} ({format_.format(least)} to {format_.format(most)})"


def machine_line() -> str:
    """Return machine and versions."""
    machine = runtime.machine()
    threads = torch.get_num_threads()
    return (
        f"{machine['processor']}, {threads} thread{'s' * (threads > 1)}, torch {machine['torch']}, Python "
        f"{machine['python']}."
    )


def conditions(rounds: int) -> str:
    """Return machine, versions, and the meaning of the values."""
    return f"{machine_line()[:-1]}; median (least to most) of {rounds} alternating rounds."


def publish(section: str, text: str) -> None:
    """Print ``text``, and replace the section of that heading in docs/benchmarks.md with it."""
    print(f"## {section}\n\n{text}\n")
    document = DOCUMENT.read_text(encoding="utf-8")
    heading = f"## {section}\n"
    body = f"{heading}\n{text}\n"
    pattern = re.compile(rf"^{re.escape(heading)}.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    if pattern.search(document):
        document = pattern.sub(lambda found: body + ("\n" if found.end() < len(document) else ""), document)
    else:
        document = f"{document.rstrip()}\n\n{body}"
    DOCUMENT.write_text(document, encoding="utf-8")
