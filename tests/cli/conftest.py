"""Fixtures for the command-line tests."""

from pathlib import Path

import pytest

from tests.helpers import TINY
from wholegpt.cli import main


@pytest.fixture
def run_folder(text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A separate finished run, for tests that damage it."""
    assert main(["train", str(text_file), "--out", str(tmp_path / "run"), *TINY]) == 0
    capsys.readouterr()
    return tmp_path / "run"
