"""Prompt templates: what stands around the prompt, and what ends the answer."""

from pathlib import Path

import pytest

from wholegpt.errors import ConfigError
from wholegpt.generation.templates import TEMPLATES, fill_template


def test_a_named_template_brings_its_stop_texts() -> None:
    assert fill_template("conversation", "hi") == ("User: hi\nAssistant:", ("\nUser:",))
    for template in TEMPLATES.values():
        assert "{prompt}" in template.text


def test_only_the_place_of_the_prompt_is_replaced() -> None:
    assert fill_template("{a} {} {{prompt}} {prompt}", "x{prompt}") == ("{a} {} {x{prompt}} x{prompt}", ())


def test_a_template_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "question.txt"
    path.write_text("Question: {prompt}\nAnswer:\n")
    assert fill_template(str(path), "why?") == ("Question: why?\nAnswer:", ())
    path.write_text("Question:\n")
    with pytest.raises(ConfigError, match=r"question\.txt: has no \{prompt\}"):
        fill_template(str(path), "why?")


@pytest.mark.parametrize(
    ("name", "hint"), [("stori", "did you mean 'story'"), ("xyz", "there are: story, technical")]
)
def test_an_unknown_name_lists_the_right_ones(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        fill_template(name, "hi")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_what_can_be_no_name_of_a_file(name: str) -> None:
    with pytest.raises(ConfigError, match="is neither a template name"):
        fill_template(name, "hi")
