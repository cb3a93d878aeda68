"""The table of equations refers to functions and tests that exist."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = [
    [cell.strip().strip("`") for cell in line.strip("| \n").split(" | ")]
    for line in (ROOT / "docs" / "equations.md").read_text(encoding="utf-8").splitlines()
    if re.match(r"\| (E\d+|–) \|", line)
]


def test_table_is_parsed() -> None:
    numbers = {row[0] for row in ROWS}
    assert numbers >= {f"E{n}" for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 16)}
    assert all(len(row) == 4 for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]} {row[1]}")
def test_function_and_test_exist(row: list[str]) -> None:
    _, _, function, test = row
    parts = function.split(".")
    module_parts = next(n for n in range(len(parts), 0, -1) if (_file(parts[:n])).exists())
    found = importlib.import_module(".".join(parts[:module_parts]))
    for name in parts[module_parts:]:
        found = getattr(found, name)
    assert found.__doc__
    path, name = test.split("::")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def _file(parts: list[str]) -> Path:
    return ROOT / "src" / Path(*parts).with_suffix(".py")
