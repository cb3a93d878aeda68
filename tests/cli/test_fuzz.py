"""Random command lines, up to the validated settings: each succeeds or is rejected with one line."""

import contextlib
import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wholegpt.cli import main, make_app
from wholegpt.errors import RunError

COMMANDS = {
    "train": ["train", "text.txt", "--print-config"],
    "resume": ["train", "--resume", "text.txt"],
    "plan": ["plan", "text.txt", "--minutes", "1"],
    "ladder": ["ladder", "text.txt", "--minutes", "1"],
    "finetune": ["finetune", "run", "--task", "classification", "--data", "text.csv"],
    "generate": ["generate", "run", "the"],
    "chat": ["chat", "run"],
    "evaluate": ["evaluate", "run", "text.txt"],
    "compare": ["compare", "run", "run", "text.txt"],
    "predict": ["predict", "run", "the"],
    "info": ["info", "gpt2-small"],
    "export": ["export", "run", "--to", "gguf"],
    "import": ["import", "run"],
    "encode": ["tokenizer", "encode", "run", "the"],
    "decode": ["tokenizer", "decode", "run", "1"],
    "list": ["data", "list"],
    "contamination": ["data", "contamination", "text.txt", "text.txt"],
    "deduplicate": ["data", "deduplicate", "text.txt"],
}
VALUES = [
    *(
        "",
        " ",
        "-",
        "--",
        "-x",
        "- item",
        "²",
        "٣",
        "½",
        "a\ud800b",
        "\udce9",
        "a\0b",
        "\x1b[2J",
        "\u202e",
        "é" * 300,
    ),
    *(
        "x" * 5000,
        "a b\nc",
        "/dev/null",
        "/",
        ".",
        "..",
        "~",
        "/nowhere/at/all",
        "text.txt",
        "[",
        "{}",
        "{",
        "[1,2]",
    ),
    *(
        "0",
        "-1",
        "1",
        "1e400",
        "-1e400",
        "1e-400",
        "nan",
        "inf",
        "-inf",
        "1_000",
        "0x10",
        "1e3",
        "true",
        "none",
    ),
    *(
        str(2**31),
        str(2**63),
        str(2**70),
        "-" + str(2**70),
        "9" * 5000,
        "1.5",
        "=",
        "a=b",
        "%s",
        "$HOME",
        "null",
    ),
]
LINES = 12
"""Random command lines per command."""


class Reached(RunError):
    """Raised where the actual work would start."""


@pytest.fixture(autouse=True)
def no_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stop after validating settings: nothing is loaded, read or trained."""

    def reached(*_: Any, **__: Any) -> None:
        raise Reached("reached")

    for function in (
        *("runs.api.train", "runs.api.plan", "runs.api.finetune", "runs.api.continue_run", "runs.load.load"),
        *(
            "experiments.ladder.compare_baselines",
            "interop.conversion.load_model",
            "interop.conversion.import_model",
        ),
        *("tokenizers.open_tokenizer", "data.open_corpus"),
    ):
        monkeypatch.setattr(f"wholegpt.{function}", reached)
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("of the")


def options_of(command: list[str]) -> list[str]:
    """Return all options of a command."""
    words = command[:2] if command[0] in ("tokenizer", "data") else command[:1]
    app = make_app()
    for word in words:
        app = app[word]
    arguments = app.assemble_argument_collection()
    return [
        name
        for argument in arguments
        for name in argument.names
        if name.startswith("--") and "." not in name[-1:]
    ]


def random_line(chance: random.Random, command: list[str], options: list[str]) -> list[str]:
    """Return a command line of this command with one to four random changes."""
    line = list(command)
    for _ in range(chance.randint(1, 4)):
        option, value = chance.choice(options), chance.choice(VALUES)
        change = chance.randrange(8)
        if change == 0:
            line[chance.randrange(len(line))] = value
        elif change == 1:
            line.append(value)
        elif change == 2:
            line.append(option)
        elif change == 3:
            line.append(f"--no-{option[2:]}")
        elif change == 4:
            line += [option, value]
        else:
            line.append(f"{option}={value}")
    return line


@contextlib.contextmanager
def captured() -> Iterator[tuple[io.TextIOWrapper, io.TextIOWrapper]]:
    """Provide in-memory standard streams, opened the way Python opens them."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield out, err


@pytest.mark.parametrize("name", COMMANDS)
def test_random_command_lines(name: str) -> None:
    chance, options = random.Random(name), options_of(COMMANDS[name])
    for _ in range(LINES):
        line = random_line(chance, COMMANDS[name], options)
        with captured() as (_, err):
            code = main(line)
        message = err.buffer.getvalue().decode("utf-8")  # pyright: ignore[reportAttributeAccessIssue]
        assert "bug in wholegpt" not in message and code in (0, 2, 130), (line, message)
        if code and "--debug" not in line:
            *notes, last = message.splitlines()
            assert last.startswith("wholegpt: ") and last.isprintable() and len(last) < 1100, (line, message)
            assert not any(note.startswith("wholegpt: ") for note in notes), (line, message)
