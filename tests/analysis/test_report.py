"""The report stands alone, shows what was measured, and cannot be broken by what a model writes."""

import json
import math
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from wholegpt.analysis.report import write_report
from wholegpt.evaluation import TextScore
from wholegpt.settings.presets import recipe

pytestmark = pytest.mark.usefixtures("charts")
RESULT = {
    "run": "runs/x",
    "steps": 12,
    "planned_steps": 12,
    "stop_reason": "all steps are done",
    "parameters": 1234567,
    "tokens": 768,
    "train_seconds": 2.0,
    "other_seconds": 1.0,
    "validation": TextScore(2.5, 12.18, 3.6, 3.61, 599, 599, 600).to_json(),
    "best": None,
    "sample": "last",
}
VOID = {"meta", "br", "link", "path", "use"}


class Balance(HTMLParser):
    """Checks that what is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def copy_of(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder)
    return folder


def test_one_self_contained_page(trained_run: Path, tmp_path: Path) -> None:
    page = write_report(copy_of(trained_run, tmp_path / "run"), RESULT).read_text(encoding="utf-8")
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert parser.tags.count("svg") == 4 and "script" not in parser.tags
    assert all(link.startswith("#") for link in parser.links), parser.links
    for figure in ("2.5000", "12.180", "3.6100", "1,234,567", "599 tokens", "384"):
        assert figure in page
    bound = math.log(recipe(str(trained_run / "config.yaml")).model.vocab_size)
    assert f"ln V = {bound:.2f}" in page and f"{bound:.4f}" in page


def test_text_of_a_model_is_shown_not_run(trained_run: Path, tmp_path: Path) -> None:
    run = copy_of(trained_run, tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "sample", "step": 13, "text": "<script>alert(1)</script>"}) + "\n")
    page = write_report(run, RESULT).read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page


def test_a_run_cut_short_has_a_report(trained_run: Path, tmp_path: Path) -> None:
    run = copy_of(trained_run, tmp_path / "run")
    (run / "metrics.jsonl").write_text("")
    page = write_report(run, {**RESULT, "train_seconds": 0.0}).read_text(encoding="utf-8")
    assert "None was due before the run stopped" in page and ">last</pre>" in page


def test_the_same_run_gives_the_same_page(trained_run: Path, tmp_path: Path) -> None:
    run = copy_of(trained_run, tmp_path / "run")
    assert write_report(run, RESULT).read_bytes() == write_report(run, RESULT).read_bytes()
