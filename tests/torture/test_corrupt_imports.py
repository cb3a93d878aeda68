"""Import of corrupted files: a clear error or a correct load, in limited time and memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.interop.models import KINDS, random_model, tokenizer_of
from tests.torture.corrupt_imports import split_in_two
from wholegpt.checkpoint import save_model
from wholegpt.console import Console
from wholegpt.interop.conversion import export_model

CORRUPTIONS = int(os.environ.get("WHOLEGPT_CORRUPTIONS", "400"))
"""The number of corruptions; for a long run, set the environment variable ``WHOLEGPT_CORRUPTIONS`` to 10000."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "modern-untied"])
def test_corrupt_imports(kind: str, tmp_path: Path) -> None:
    save_model(tmp_path / "model", random_model(KINDS[kind]), tokenizer_of(65))
    export_model(tmp_path / "model", "huggingface", tmp_path / "export", console=Console(quiet=True))
    if kind != "gpt2":
        split_in_two(tmp_path / "export")
    process = subprocess.run(
        [sys.executable, "-m", "tests.torture.corrupt_imports", tmp_path, str(CORRUPTIONS // 2), kind],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.returncode == 0, process.stdout + process.stderr
    outcome = json.loads(process.stdout)
    assert outcome["wrong"] == []
    assert outcome["refused"] + outcome["loaded"] == CORRUPTIONS // 2
    # Some corruptions are fatal and some are harmless.
    assert outcome["refused"] > 0 and outcome["loaded"] > 0
    assert outcome["slowest_seconds"] < 5
    assert outcome["peak_bytes_more"] < 1e9
