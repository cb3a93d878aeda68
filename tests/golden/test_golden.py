"""Golden runs reproduce their stored results on every processor."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.golden import FOLDER, RUNS, figures, path_of

RELATIVE = 1e-9


@pytest.mark.parametrize("name", RUNS)
def test_golden_run(name: str, tmp_path: Path) -> None:
    stored: dict[str, Any] = json.loads(path_of(name).read_text())
    found = figures(name, tmp_path)
    assert found.keys() == stored.keys()
    for key in ("losses", "gradient_norms"):
        assert found[key] == pytest.approx(stored[key], rel=RELATIVE), key
    assert found["weight_norms"] == pytest.approx(stored["weight_norms"], rel=RELATIVE)


def test_every_file_belongs_to_a_run() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == RUNS.keys()
