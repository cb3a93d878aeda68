"""The Python code in the pages of docs/ runs."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
SOURCE = DOCS.parent / "src" / "wholegpt"


@pytest.mark.parametrize("page", ["attention.md"])
def test_the_code_of_a_page_runs_from_top_to_bottom(page: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.S)
    assert len(blocks) >= 7
    names: dict[str, object] = {"__name__": page}
    for block in blocks:
        exec(compile(block, page, "exec"), names)


def test_benchmarks_replace_sections_that_exist() -> None:
    """A script's heading exists on the page, so that a new run replaces its section."""
    headings = re.findall(r"(?m)^## (.*)$", (DOCS / "benchmarks.md").read_text(encoding="utf-8"))
    scripts = (path.read_text(encoding="utf-8") for path in (DOCS.parent / "benchmarks").glob("*.py"))
    published = [heading for script in scripts for heading in re.findall(r'publish\(\s*"([^"{]+)"', script)]
    assert len(published) > 15
    assert not set(published) - set(headings)


def test_the_architecture_names_every_module() -> None:
    """In the row of its package, or in the first column if it is in no package."""
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rows = [line.split("|", maxsplit=2)[1:] for line in page.splitlines() if line.startswith("| `")]
    named: dict[str, set[str]] = {}
    for package, contents in rows:
        for name in re.findall(r"`([^`]+)`", package):
            named.setdefault(name, set()).update(re.findall(r"`(\w+)`", contents))
    modules = [path.relative_to(SOURCE) for path in SOURCE.rglob("*.py") if not path.name.startswith("__")]
    assert len(modules) > 200
    for path in modules:
        if path.parent == Path():
            assert path.name in named
        else:
            assert path.stem in named.get(f"{path.parent.as_posix()}/", ()), path
