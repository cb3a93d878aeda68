"""Prompt templates: the text around the prompt and the stop strings."""

from pathlib import Path

import pytest

from wholegpt.errors import ConfigError
from wholegpt.generation.templates import TEMPLATES, fill_template


def test_named_template_has_stop_strings() -> None:
    assert fill_template("conversation", "hi") == ("User: hi\nAssistant:", ("\nUser:",))
    for template in TEMPLATES.values():
        assert "{prompt}" in template.text


def test_only_the_prompt_placeholder_is_replaced() -> None:
    assert fill_template("{a} {} {{prompt}} {prompt}", "x{prompt}") == ("{a} {} {x{prompt}} x{prompt}", ())


def test_template_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "question.txt"
    path.write_text("Question: {prompt}\nAnswer:\n")
    assert fill_template(str(path), "why?") == ("Question: why?\nAnswer:", ())
    path.write_text("Question:\n")
    with pytest.raises(ConfigError, match=r"question\.txt: has no \{prompt\}"):
        fill_template(str(path), "why?")


@pytest.mark.parametrize(
    ("name", "hint"), [("stori", "did you mean 'story'"), ("xyz", "there are: story, technical")]
)
def test_unknown_template_name_lists_the_valid_ones(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        fill_template(name, "hi")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_invalid_file_names_are_rejected(name: str) -> None:
    with pytest.raises(ConfigError, match="is neither a template name"):
        fill_template(name, "hi")
