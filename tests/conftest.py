"""Configuration and fixtures of all tests.

Modules that state array shapes are checked at run time in every test; pyright checks all other types.
"""

import os
from pathlib import Path

from jaxtyping import install_import_hook

from tests import typechecker

SOURCE = Path(__file__).parents[1] / "src"
STATING_SHAPES = [
    ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    for path in (SOURCE / "wholegpt").rglob("*.py")
    if "from jaxtyping import" in path.read_text(encoding="utf-8")
]
# The hook finds the type checker by its name.
install_import_hook(STATING_SHAPES, f"{typechecker.__name__}.check")

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

import wholegpt  # noqa: E402 (before torch, since it sets how threads wait)
from tests.helpers import Fails, text_of, tiny_config  # noqa: E402
from wholegpt import runtime  # noqa: E402
from wholegpt.cli import main  # noqa: E402
from wholegpt.console import Console  # noqa: E402

# Parallel tests keep the other cores busy, which a run would warn about.
runtime.overload = lambda threads, fixed=False: ""


settings.register_profile("wholegpt", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("wholegpt")


LONGEST = ("torture/", "test_readme", "planning/", "test_bad_data")
"""Test files that take most of a minute each."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest tests first, so that no process is left with one of them at the end."""
    items.sort(key=lambda item: not any(name in item.nodeid for name in LONGEST))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data, if there is one."""
    folder = os.environ.get("WHOLEGPT_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("WHOLEGPT_DATA names no folder of real data")
    return Path(folder)


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Return a function that runs a command line which must fail with one line, and returns that line."""

    def run(*arguments: str | Path, code: int = 2) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("wholegpt: ") and err.count("\n") == 1, err
        return err

    return run


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """A small text of several lines."""
    path = tmp_path / "text.txt"
    path.write_text(text_of(6000), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run; tests only read it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(text_of(6000), encoding="utf-8")
    config = tiny_config(folder / "text.txt")
    return wholegpt.train(config=config, out=folder / "run", console=Console(quiet=True)).path
