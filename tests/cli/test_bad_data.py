"""Invalid sources for ``data prepare``: exit code 2, a one-line error, and no partial output."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers import Fails, text_of
from wholegpt.cli import main
from wholegpt.data import PreparedData
from wholegpt.data.reading import decoding as formats
from wholegpt.data.reading import files as reading

Refused = Callable[..., str]


@pytest.fixture
def refused(fails: Fails, tmp_path: Path) -> Refused:
    """Run ``data prepare`` on invalid sources, check that nothing is left, and return the error line."""

    def run(*arguments: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        message = fails("data", "prepare", *arguments, "--out", tmp_path / "out", "--quiet")
        assert sorted(tmp_path.rglob("*")) == before
        assert len(message.strip().split("\n")) == 1
        return message

    return run


def prepared(folder: Path, *arguments: object) -> PreparedData:
    assert main(["data", "prepare", *map(str, arguments), "--out", str(folder / "out"), "--quiet"]) == 0
    return PreparedData.open(folder / "out")


def test_empty_folders(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty: holds no text (0 files)" in refused(tmp_path / "empty")
    (tmp_path / "empty" / ".hidden").write_text("hidden")
    (tmp_path / "empty" / "a.png").write_bytes(b"\x89PNG\0")
    assert "holds no text (0 files; skipped 1 binary (.png), 1 hidden)" in refused(tmp_path / "empty")


def test_bad_lines(refused: Refused, tmp_path: Path) -> None:
    lines = [json.dumps({"text": text_of(50, seed)}) for seed in range(10)]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join([*lines[:3], '{"text": "cut', *lines[3:]]) + "\n")
    message = refused(path)
    assert "t.jsonl: line 4 is not JSON" in message and "--on-bad-line skip" in message
    data = prepared(tmp_path, path, "--on-bad-line", "skip")
    assert data.card["sources"][0]["skipped"] == {"bad lines": 1} and data.card["text"]["documents"] == 10


def test_missing_text_field(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"title": "a", "body": "b"}\n')
    (tmp_path / "t.csv").write_text("title,body\na,b\n")
    for name in ("t.jsonl", "t.csv"):
        message = refused(tmp_path / name, "--text-field", "story")
        assert "'story'" in message and "title" in message and "body" in message


def test_folder_given_for_a_file_and_file_given_for_a_folder(
    refused: Refused, fails: Fails, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "t.txt").write_text(text_of(500))
    assert "folder: " in refused(tmp_path / "t.txt", "--tokenizer.path", tmp_path / "folder")
    assert "t.txt/a: does not exist" in refused(f"{tmp_path}/t.txt/a")
    message = fails("data", "prepare", tmp_path / "t.txt", "--out", tmp_path / "t.txt")
    assert "t.txt: already exists; name another --out" in message
    assert "folder: already exists" in fails(
        "data", "deduplicate", tmp_path / "t.txt", "--out", tmp_path / "folder"
    )
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "folder.jsonl" / "a.txt").write_text(text_of(500))
    assert prepared(tmp_path, tmp_path / "folder.jsonl").card["text"]["characters"] == len(text_of(500))


def test_binary_file(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"some text \0\1\2")
    assert "t.txt: holds NUL bytes, so it is not a text file" in refused(tmp_path / "t.txt")
    (tmp_path / "t.bin").write_bytes(bytes(range(1, 256)))
    message = refused(tmp_path / "t.bin")
    assert "t.bin: byte 127 (0x80) is not utf-8" in message and "--on-bad-text" in message


def test_endless_line(refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "LONGEST_RECORD", 2**21)
    (tmp_path / "t.jsonl").write_text('{"text": "' + "a" * 5_000_000 + '"}\n')
    assert "t.jsonl: line 1 is longer than 2,097,152 characters" in refused(tmp_path / "t.jsonl")
    (tmp_path / "t.txt").write_text("a" * 5_000_000)
    assert "t.txt: holds more than 2,097,152 characters without white space" in refused(tmp_path / "t.txt")


def test_vocabulary_smaller_than_the_bytes(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(text_of(500))
    message = refused(tmp_path / "t.txt", "--tokenizer.vocab-size", "100")
    assert "tokenizer.vocab_size is 100; expected a value of 0, or at least 257" in message
    names = ("--tokenizer.special-tokens", "<|start|>", "--tokenizer.special-tokens", "<|start|>")
    assert "expected different names" in refused(tmp_path / "t.txt", *names)


def test_one_repeated_character(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a" * 100_000)
    assert "t: is one character, 'a', repeated; a model learns nothing from it" in refused(tmp_path / "t.txt")


def test_circular_symbolic_links(refused: Refused, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "again").symlink_to(folder)
    (folder / "a.txt").symlink_to(folder / "b.txt")
    (folder / "b.txt").symlink_to(folder / "a.txt")
    assert "a.txt: does not exist" in refused(folder / "a.txt")
    message = refused(folder)
    assert "holds no text (0 files; skipped 2 broken links, pipes and devices, 1 linked folder)" in message
    (folder / "t.txt").write_text(text_of(500))
    assert prepared(tmp_path, folder).card["text"]["characters"] == len(text_of(500))


def test_file_that_changes_between_reads(
    fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"text": text_of(50, seed)}) + "\n" for seed in range(10)))
    read = reading.read_table

    def changing(source: formats.Source) -> Iterator[formats.Piece]:
        yield from read(source)
        with path.open("a") as file:
            file.write('{"text": "more"}\n')

    monkeypatch.setattr(reading, "read_table", changing)
    message = fails("data", "prepare", path, "--out", tmp_path / "out", "--quiet")
    assert "t.jsonl: changed while it was read; try again when nothing writes to it" in message
    assert list(tmp_path.iterdir()) == [path]


def test_file_that_grows_while_it_is_read(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading stops at the size that the file had at first, as for a log that is still written to."""
    monkeypatch.setattr(formats, "BLOCK_BYTES", 100)
    path = tmp_path / "t.jsonl"
    line = json.dumps({"text": text_of(50)}) + "\n"
    path.write_text(line * 50)
    read = reading.read_table

    def growing(source: formats.Source) -> Iterator[formats.Piece]:
        for piece in read(source):
            with path.open("a") as file:
                file.write(line)
            yield piece

    monkeypatch.setattr(reading, "read_table", growing)
    assert "t.jsonl: changed while it was read" in refused(path)


def test_interrupted_preparation_continues(tmp_path: Path) -> None:
    """Ctrl-C between reading and encoding exits with code 130 and leaves no output folder.

    The same command then continues.
    """
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"text": text_of(50, seed)}) + "\n" for seed in range(60)))
    program = (
        "import sys, wholegpt.data.text.preparation as p\n"
        "from wholegpt.cli import main\n"
        "def stopped(*a): raise KeyboardInterrupt\n"
        "p.encode_side = stopped\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = ["data", "prepare", str(path), "--out", str(tmp_path / "out")]
    result = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True)
    assert result.returncode == 130 and "interrupted" in result.stderr and not (tmp_path / "out").exists()
    continued = subprocess.run(
        [sys.executable, "-m", "wholegpt.cli", *command], capture_output=True, text=True, env={**os.environ}
    )
    assert (
        continued.returncode == 0
        and "continuing with the documents that an earlier call read" in continued.stderr
    )
    assert PreparedData.exists(tmp_path / "out")


def test_missing_ftfy_is_reported(refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    (tmp_path / "t.txt").write_text(text_of(500))
    assert "ftfy is not installed; pip install 'wholegpt[data]'" in refused(
        tmp_path / "t.txt", "--data.clean", "ftfy"
    )
