"""Type checkers find mistakes in a user's script, and none in a correct script."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

CORRECT = """\
import wholegpt as wg

run = wg.train("notes.txt", minutes=10, device="cpu", out="runs/notes")
lm = wg.load(run.path, weights="int8")
text: str = lm.generate("Once upon a time", max_tokens=100, temperature=0.8, stop="\\n").text
first: str = lm.generate(["One", "Two"], top_p=0.9)[0].text
for piece in lm.stream("Once", max_tokens=10):
    print(piece.upper())
bits: list[float] = lm.score("The cat sat on the mat.").surprisal_bits
loss: float = lm.evaluate("held_out.txt", stride=64).bits_per_byte
nats: float = run.validation.nats_per_token
steps = [line["step"] for line in run.metrics]
longer = wg.resume(run.path, steps=2000)
low: float = wg.compare(lm, lm, "held_out.txt", stride=64)["nats_per_token"].difference.low
in_memory = wg.train(texts=["The first document.", "The second."], minutes=1)
"""
MISTAKES = [
    'wg.train("notes.txt", minuts=10)',
    'lm.generate("Once", max_token=100)',
    'lm.generate("Once", temperature="warm")',
    'print(lm.generate("Once").txt)',
    'wg.trian("notes.txt")',
    'wg.train(["notes.txt"])',
    'wg.compare(lm, lm, "a.txt", strid=3)',
    'wg.train(texts="one text", overwrit=True)',
]
WRONG = "\n".join(["import wholegpt as wg", 'lm = wg.load("runs/notes")', *MISTAKES, ""])
FIRST_MISTAKE = 3
"""The line of the first mistake in ``WRONG``."""


def lines_with_errors(command: list[str], folder: Path, script: str) -> set[int]:
    """Run a type checker on a script, and return the line numbers of its errors."""
    path = folder / "script.py"
    path.write_text(script)
    found = subprocess.run(
        [sys.executable, "-m", *command, str(path)], capture_output=True, text=True, cwd=folder
    )
    assert found.returncode in (0, 1), found.stdout + found.stderr
    return {int(line) for line in re.findall(r"script\.py:(\d+)(?::\d+)?:? .*?error", found.stdout)}


@pytest.mark.parametrize(
    "command",
    [
        ["pyright", "--pythonpath", sys.executable],
        pytest.param(
            ["mypy", "--cache-dir", "cache", "--python-executable", sys.executable], marks=pytest.mark.slow
        ),
    ],
    ids=["pyright", "mypy"],
)
def test_type_checkers_find_exactly_the_mistakes(command: list[str], tmp_path: Path) -> None:
    assert lines_with_errors(command, tmp_path, CORRECT) == set()
    last = FIRST_MISTAKE + len(MISTAKES)
    assert lines_with_errors(command, tmp_path, WRONG) == set(range(FIRST_MISTAKE, last))
