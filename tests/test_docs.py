"""The Python code in the pages of docs/ runs."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


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
