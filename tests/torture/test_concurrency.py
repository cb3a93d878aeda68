"""Four processes start, resume or prepare the same folder at once: one succeeds, the others name it."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import text_of, tiny
from wholegpt.cli import main

ROUNDS, PROCESSES = 20, 4
Race = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def race() -> Iterator[Race]:
    """Return a function that runs a command line in four processes at once."""
    racer = subprocess.Popen(
        [sys.executable, "-m", "tests.torture.racer"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert racer.stdin and racer.stdout

    def run(*arguments: str | Path, folder: Path = Path(), waits: bool = True) -> list[dict[str, Any]]:
        assert racer.stdin and racer.stdout
        commands = [list(map(str, arguments))] * PROCESSES
        print(json.dumps([commands, waits, str(folder.absolute())]), file=racer.stdin, flush=True)
        return json.loads(racer.stdout.readline())

    yield run
    racer.stdin.close()
    racer.stdout.close()
    assert racer.wait(timeout=30) == 0


def weights_of(run: Path, step: int) -> str:
    return hashlib.sha256((run / f"checkpoints/step-{step:08d}/model.safetensors").read_bytes()).hexdigest()


def assert_one_winner(outcomes: list[dict[str, Any]]) -> None:
    """Assert that one process succeeds and the others end at once with exit code 2 and its process id."""
    winners = [one for one in outcomes if one["code"] == 0]
    assert len(winners) == 1, outcomes
    for one in outcomes:
        if one is winners[0]:
            continue
        assert one["code"] == 2 and one["error"].count("\n") == 1, one
        busy = re.search(r"process (\d+) \([a-z ]+, started \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", one["error"])
        assert busy and int(busy[1]) == winners[0]["process"], one


@pytest.mark.slow
def test_only_one_of_four_processes_succeeds(tmp_path: Path, race: Race) -> None:
    text = tmp_path / "text.txt"
    text.write_text(text_of(3000))
    train = ["train", text, *tiny(training_steps="20", checkpointing_every="0"), "--evaluation.every", "0"]
    train += ["--threads", "1"]
    data = ["data", "prepare", text, "--tokenizer.kind", "character", "--quiet"]
    assert main([*map(str, train), "--out", str(tmp_path / "alone")]) == 0
    assert main([*map(str, data), "--out", str(tmp_path / "data")]) == 0
    for number in range(ROUNDS):
        folder = tmp_path / f"round {number}"
        folder.mkdir()
        assert_one_winner(race(*train, "--out", folder / "run", "--max-seconds", "0.001"))
        assert not (folder / "run/checkpoints/step-00000020").exists()
        resumed = race("train", "--resume", folder / "run", "--quiet")
        assert_one_winner(resumed)
        assert weights_of(folder / "run", 20) == weights_of(tmp_path / "alone", 20)
        assert_one_winner(race(*data, "--out", folder / "data"))
        shards = [path.read_bytes() for path in sorted((folder / "data").glob("*.bin"))]
        assert shards == [path.read_bytes() for path in sorted((tmp_path / "data").glob("*.bin"))]
        assert sorted(path.name for path in folder.iterdir()) == ["data", "run"]


def test_four_processes_get_different_run_names(tmp_path: Path, race: Race) -> None:
    text = tmp_path / "text.txt"
    text.write_text(text_of(3000))
    outcomes = race("train", text, *tiny(), "--threads", "1", folder=tmp_path, waits=False)
    assert [one["code"] for one in outcomes] == [0] * PROCESSES, outcomes
    runs = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert runs == ["text", "text-2", "text-3", "text-4"]
    assert len({weights_of(tmp_path / "runs" / name, 6) for name in runs}) == 1
