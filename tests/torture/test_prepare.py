"""Killed or out of disk space, data preparation keeps finished shards and ends with identical bytes."""

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import Fails, text_of
from wholegpt import files
from wholegpt.cli import main
from wholegpt.data.text import encoding

KILLS = 10
PROGRAM = """
import sys, time
import wholegpt.data.text.encoding as encoding
from wholegpt.cli import main
encoding.SHARD_BYTES = 20_000
write = encoding.write_json_atomic
def slowly(path, value):  # so that kills fall between and inside the shards
    time.sleep(0.1)
    write(path, value)
encoding.write_json_atomic = slowly
print("started", flush=True)
sys.exit(main(sys.argv[1:]))
"""


def source(folder: Path) -> Path:
    path = folder / "documents.jsonl"
    documents = [text_of(2000, seed) for seed in range(200)]
    path.write_text("".join(json.dumps({"text": one}) + "\n" for one in documents))
    return path


def content(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.slow
def test_preparation_killed_ten_times_gives_the_same_shards(tmp_path: Path) -> None:
    text = source(tmp_path)

    def process(folder: str) -> "subprocess.Popen[bytes]":
        arguments = ("data", "prepare", text, "--out", "out", "--tokenizer.vocab-size", "400")
        command = [sys.executable, "-c", PROGRAM, *arguments]
        (tmp_path / folder).mkdir(exist_ok=True)  # the data card contains the command, which must be the same
        started = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path / folder
        )
        assert started.stdout and started.stdout.readline() == b"started\n"
        return started

    before = time.monotonic()
    whole = process("whole")
    whole.communicate()
    seconds = time.monotonic() - before
    assert whole.returncode == 0
    generator = random.Random(1)
    finished: list[list[int]] = []
    kills = 0
    while kills < KILLS:  # if a folder is finished before the last kill, another one is started
        folder = tmp_path / f"killed-{len(finished)}"
        finished.append([])
        while not (folder / "out").exists():
            running = process(folder.name)
            if kills < KILLS:
                time.sleep(generator.uniform(0.05, seconds / 8))
                running.kill()
                kills += running.wait() == -signal.SIGKILL
            _, complaint = running.communicate()
            assert running.returncode in (0, -signal.SIGKILL), complaint.decode()
            finished[-1].append(len(list((folder / ".unfinished-out").glob("*.bin.json"))))
        assert finished[-1][:-1] == sorted(finished[-1][:-1])
        assert content(folder / "out") == content(tmp_path / "whole" / "out")
        assert not (folder / ".unfinished-out").exists()
    assert len({count for counts in finished for count in counts}) > 3, finished


def test_finished_shards_are_kept_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Fails, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(encoding, "SHARD_BYTES", 20_000)
    command = ("data", "prepare", source(tmp_path), "--tokenizer.kind", "byte", "--out")
    assert main([*map(str, command), str(tmp_path / "whole"), "--quiet"]) == 0
    left = 30
    write = os.fsync

    def full(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        message = fails(*command, tmp_path / "full", "--quiet")
    assert "No space left on device; finished parts are kept, and the same command continues" in message
    assert not (tmp_path / "full").exists()
    records = list((tmp_path / ".unfinished-full").glob("*.bin.json"))
    modified = {path: path.stat().st_mtime_ns for path in records}
    assert 0 < len(modified) < 18
    assert main([*map(str, command), str(tmp_path / "full")]) == 0
    assert "continuing with the documents that an earlier call read" in capsys.readouterr().err
    assert content(tmp_path / "full") == content(tmp_path / "whole")


@pytest.mark.slow
def test_changed_settings_restart_the_preparation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = source(tmp_path)
    command = ["data", "prepare", str(text), "--out", str(tmp_path / "out"), "--quiet", "--tokenizer.kind"]

    def stop(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    for change in ("nothing", "settings", "text"):
        with monkeypatch.context() as patch:
            patch.setattr("wholegpt.data.text.preparation.write_manifest", stop)
            assert main([*command, "byte"]) == 130
        marked = tmp_path / ".unfinished-out" / "mark"
        marked.write_text("still here")
        if change == "text":
            text.write_text(text.read_text() + '{"text": "more"}\n')
        with monkeypatch.context() as patch:
            patch.setattr("wholegpt.data.text.preparation.write_manifest", stop)
            assert main([*command, "character" if change == "settings" else "byte"]) == 130
        assert marked.exists() == (change == "nothing")


@pytest.mark.slow
def test_preparation_killed_during_cleanup_completes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after any of the last deletions and renames, the same command ends with the same result."""
    command = ["data", "prepare", str(source(tmp_path)), "--tokenizer.kind", "byte", "--quiet", "--out"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    out = tmp_path / "out"

    def killed(*arguments: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    for function in ("data.text.preparation._clear", "files._sync_tree", "files._put_in_place"):
        with monkeypatch.context() as patch:
            patch.setattr(f"wholegpt.{function}", killed)
            assert main([*command, str(out)]) == 130
        assert not out.exists()
        documents = tmp_path / ".unfinished-out" / "documents" / "documents.bin"
        if documents.exists():  # half of the files to be deleted are gone
            documents.unlink()
    assert main([*command, str(out)]) == 0
    assert content(out) == content(tmp_path / "whole")


@pytest.mark.slow
def test_truncated_documents_file_is_detected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Fails
) -> None:
    command = ["data", "prepare", str(source(tmp_path)), "--tokenizer.kind", "byte", "--quiet", "--out"]
    out = tmp_path / "out"

    def killed(*arguments: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("wholegpt.data.text.preparation.encode_side", killed)
        assert main([*command, str(out)]) == 130
    os.truncate(tmp_path / ".unfinished-out" / "documents" / "documents.bin", 20_000)
    assert "documents.bin: damaged or missing; the same call starts over" in fails(*command, out)
    assert main([*command, str(out)]) == 0
    assert main([*command, str(tmp_path / "whole")]) == 0
    assert content(out) == content(tmp_path / "whole")
