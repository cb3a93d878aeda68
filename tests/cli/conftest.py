"""What tests of the command line share."""

from pathlib import Path

import pytest

from tests.helpers import TINY, Fails
from wholegpt.cli import main


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Runs a command line that must fail with exit code 2 and one line, and gives that line."""

    def run(*arguments: str | Path, code: int = 2) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("wholegpt: ") and err.count("\n") == 1, err
        return err

    return run


@pytest.fixture
def run_folder(text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A finished run of its own, for tests that damage it."""
    assert main(["train", str(text_file), "--out", str(tmp_path / "run"), *TINY]) == 0
    capsys.readouterr()
    return tmp_path / "run"
