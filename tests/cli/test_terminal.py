"""Progress output on pseudo-terminals of several widths, on a terminal that cannot redraw, and in a pipe."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.helpers import OPTIONS, text_of
from wholegpt.cli import main
from wholegpt.console import Console

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
STEPS = 40
TRAINING = [
    *(
        "--threads",
        "1",
        "--logging.sample-tokens",
        "0",
        "--evaluation.every",
        "20",
        "--training.steps",
        str(STEPS),
    ),
    *(part for name, value in OPTIONS.items() if name != "--training.steps" for part in (name, value)),
]
VALIDATION = r"step {}: validation loss \d\.\d{{4}} nats/token"


def on_terminal(columns: int, command: list[str], folder: Path) -> str:
    """Run a command on its own pseudo-terminal, and return the output with lines ending in a line feed only."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, *command],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        env={**inherited, "TERM": "xterm-256color"},
    )
    os.close(theirs)
    output = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # no process has the terminal open any more
            break
        if not part:
            break
        output += part
    os.close(ours)
    text = output.decode().replace("\r\n", "\n")
    assert process.wait(timeout=60) == 0, text
    return text


TRAIN = """
import fcntl, os, struct, sys, termios
from wholegpt.analysis import report
from wholegpt.cli import main
from wholegpt.console import Console

report._charts = lambda records, bound: []
for name, columns, environment in WAYS:
    fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    os.environ.update(environment)
    print(f"<{name}>", flush=True)
    assert main(["train", "text.txt", "--out", os.path.abspath(name), *OPTIONS]) == 0
    for variable in environment:
        del os.environ[variable]
    os.environ["TERM"] = "xterm-256color"
"""
WAYS = [
    ("forty", 40, {}),
    ("eighty", 80, {}),
    ("wide", 120, {}),
    ("colorless", 120, {"NO_COLOR": "1"}),
    ("dumb", 80, {"TERM": "dumb"}),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder in which one process trained in each of ``WAYS``, and the output of each."""
    folder = tmp_path_factory.mktemp("a folder with a long name")
    (folder / "text.txt").write_text(text_of(6000))
    script = TRAIN.replace("WAYS", repr(WAYS)).replace("OPTIONS", repr(TRAINING))
    output = re.split(r"<(\w+)>\n", on_terminal(80, ["-c", script], folder))
    return folder, dict(zip(output[1::2], output[2::2], strict=True))


def plain(text: str) -> str:
    return ESCAPE.sub("", text)


def frames(text: str) -> list[str]:
    """Return what was drawn on the progress bar's line, and the lines printed above it."""
    drawn = [plain(frame) for line in text.split("\n") for frame in line.split("\r")]
    bars = [number for number, frame in enumerate(drawn) if f"/{STEPS}" in frame]
    return drawn[bars[0] : bars[-1] + 1]


@pytest.mark.parametrize(
    ("name", "columns", "parts"),
    [
        ("forty", 40, [rf"^{STEPS}/{STEPS}  loss \d\.\d{{3}} nats/token  \d+:\d\d *$"]),
        ("eighty", 80, [rf"step {STEPS}/{STEPS}  loss \d\.\d{{3}} nats/token", "validation", "in ", "tok/s"]),
        ("wide", 120, [rf"^training  .*step {STEPS}/{STEPS}  loss", "━━", "validation", "in ", "tok/s"]),
    ],
)
def test_progress_bar_fits_the_terminal(
    name: str, columns: int, parts: list[str], runs: tuple[Path, dict[str, str]]
) -> None:
    output = runs[1][name]
    drawn = frames(output)
    assert len(drawn) > 3 and max(map(cell_len, drawn)) <= columns
    assert all(re.search(part, drawn[-1]) for part in parts), drawn[-1]
    for step in (STEPS // 2, STEPS):  # each validation stays on its own line
        line = VALIDATION.format(step) if columns > 40 else rf"step {step}: \d\.\d{{4}} nats/token"
        assert re.search(rf"(?m)^{line}( \(best\))?$", "\n".join(drawn)), drawn


@pytest.mark.parametrize("name", [name for name, _, _ in WAYS])
def test_paths_and_commands_are_not_wrapped(name: str, runs: tuple[Path, dict[str, str]]) -> None:
    folder, output = runs
    lines = plain(output[name]).split("\n")
    assert f"Report: {folder / name / 'report.html'}" in lines
    assert f"""  wholegpt generate '{folder / name}' "The"    # generate text""" in lines


def test_progress_bar_without_colors(runs: tuple[Path, dict[str, str]]) -> None:
    output = runs[1]["colorless"]
    assert f"step {STEPS}/{STEPS}" in output and "━━" in output
    assert not re.search(r"\x1b\[[0-9;]+m", output) and re.search(r"\x1b\[[0-9;]+m", runs[1]["wide"])


def test_terminal_that_cannot_redraw_gets_plain_lines(runs: tuple[Path, dict[str, str]]) -> None:
    output = runs[1]["dumb"]
    assert "\x1b" not in output and "\r" not in output
    assert re.search(VALIDATION.format(STEPS), output)


def test_pipe_gets_plain_lines(tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(text_file), "--out", str(tmp_path / "run"), *TRAINING]) == 0
    out, err = capsys.readouterr()
    assert not re.search("[\x1b\r]", out + err)
    assert re.search(rf"(?m)^{VALIDATION.format(STEPS)}", err) and "Next:" in out


def test_progress_is_printed_as_lines_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("wholegpt.console.LINE_INTERVAL_SECONDS", 0.0)
    with Console().progress("training", 2, unit="step") as progress:
        progress.advance(1, "loss 1.000 nats/token", "9 tok/s")
        progress.advance(1)
    with Console().progress("reading", 0) as progress:  # unknown length
        progress.advance(7, "1.0 MB/s")
    first, second, third = capsys.readouterr().err.splitlines()
    assert first == "training  step 1/2  loss 1.000 nats/token  9 tok/s  0:00 left"
    assert (second, third) == ("training  step 2/2  in 0:00", "reading  1.0 MB/s")


def test_time_left_ends_at_the_deadline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("wholegpt.console.LINE_INTERVAL_SECONDS", 0.0)
    now = iter([0.0, 0.0, *[10.0] * 20])
    monkeypatch.setattr("wholegpt.console.time.monotonic", lambda: next(now))
    with Console().progress("training", 100, unit="step", deadline=40.0) as progress:
        progress.advance(1)
    assert "0:30 left" in capsys.readouterr().err, "not 16:30, which all 100 steps would take"


NOTES = """
import time
from wholegpt.console import Console

console = Console()
with console.working("looking for something whose name is longer than the terminal is wide"):
    console.note("/a/path/that/is/longer/than/the/terminal/is/wide/1")
    time.sleep(0.3)
with console.progress("reading", 2) as progress:
    progress.advance()
    console.warn("/a/path/that/is/longer/than/the/terminal/is/wide/2")
    progress.advance(1, "first detail", "second detail", "third detail")
"""


@pytest.mark.parametrize("columns", [20, 40, 80])
def test_notes_above_a_bar_are_not_wrapped(columns: int, tmp_path: Path) -> None:
    output = plain(on_terminal(columns, ["-c", NOTES], tmp_path))
    lines = re.split("[\n\r]", output)
    assert "/a/path/that/is/longer/than/the/terminal/is/wide/1" in lines
    assert "warning: /a/path/that/is/longer/than/the/terminal/is/wide/2" in lines
    drawn = [line for line in lines if "/a/path" not in line]
    assert max(map(cell_len, drawn)) <= columns and any("100%" in line for line in drawn)


LONG_NOTE = """
from wholegpt.console import Console
Console().note("a note of many short words that do not fit into one line, and /a/path/longer/than/the/terminal")
Console().note("in the way of many words: `wholegpt train --resume runs/a --training.steps 2000`")
Console().note("commands:\\n/name VALUE  the meaning of a command in many short words\\n/quit        end")
"""


def test_notes_are_wrapped_between_words(tmp_path: Path) -> None:
    lines = [line.rstrip() for line in plain(on_terminal(40, ["-c", LONG_NOTE], tmp_path)).split("\n")]
    assert lines[:4] == [
        "a note of many short words that do not",
        "fit into one line, and",
        "/a/path/longer/than/the/terminal",
        "in the way of many words:",
    ]
    assert lines[4:6] == ["`wholegpt train --resume runs/a --training.steps 2000`", "commands:"]
    assert lines[6:9] == [
        "/name VALUE  the meaning of a command in",
        "             many short words",
        "/quit        end",
    ]
