"""Lists of recipes and presets, shell completion, and suggestions for settings known by other names."""

import json
import subprocess
import sys

import pytest

from tests.helpers import Fails
from wholegpt.cli import main
from wholegpt.cli.mistakes import SYNONYMS
from wholegpt.settings.presets import PRESETS, preset, recipe_names
from wholegpt.settings.schema import Config
from wholegpt.settings.serialization import to_mapping


def test_recipes_and_presets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--json"]) == 0
    recipes = json.loads(capsys.readouterr().out)["recipes"]
    assert list(recipes) == recipe_names()
    assert recipes["gpt1"].startswith("GPT-1 as published (Radford et al. 2018, section 4.1): 100 epochs")
    assert all(recipes.values())
    assert main(["presets", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["presets"]
    assert found.keys() == PRESETS.keys()
    assert found["gpt2-small"]["parameters"] == 124_439_808  # as published
    assert found["modern-tiny"]["vocabulary"] is None and preset("modern-tiny").vocab_size == 0
    assert main(["presets"]) == 0
    assert "gpt2-xl" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ("--steps", "--training.steps"),
        ("--lr", "--optimizer.learning-rate"),
        ("--batch-size=8", "--training.batch-size"),
        ("--layers", "--model.n-layers"),
        ("--n_embd", "--model.d-model"),
        ("--block-size", "--model.context-length"),
        ("--dropout", "--model.dropout or --lora.dropout"),
    ],
)
def test_setting_without_its_section_is_suggested(given: str, settings: str, fails: Fails) -> None:
    name = given.partition("=")[0]
    assert f"unknown option {name}; the setting is {settings}" in fails("train", "x.txt", given, "8")


def test_synonyms_map_to_existing_settings(fails: Fails) -> None:
    fields = {field for section in to_mapping(Config()).values() for field in section}
    assert {*SYNONYMS.values()} <= fields and fields.isdisjoint(SYNONYMS)
    assert "the setting is" not in fails("train", "x.txt", "--bogus", "8")
    assert "the setting is" not in fails("generate", "x", "--steps", "8"), "generate has no settings"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_covers_the_commands(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in ("finetune", "evaluate", "overwrite"))
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_python_m_wholegpt() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "wholegpt", "--version"], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip()
