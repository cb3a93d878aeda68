"""Former names of settings: files that use them still load, with a warning that gives the current names."""

import json
import warnings
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from tests.helpers import TINY, Fails
from wholegpt.checkpoint import load_model_config
from wholegpt.cli import main
from wholegpt.errors import CheckpointError, ConfigError, RenamedSettingWarning
from wholegpt.settings.presets import configure, recipe
from wholegpt.settings.schema import Config
from wholegpt.settings.serialization import RENAMED, RENAMED_VALUES, from_mapping, to_mapping

DEFAULTS = to_mapping(Config())
OTHER = {"training.recompute": "blocks", "windows.shortest": 128, "data.licence": "CC0-1.0"}
"""Values that differ from the default; 0.5 or 2 for the others."""


def value_for(old: str) -> Any:
    section, name = RENAMED[old].split(".")
    return OTHER.get(old, type(DEFAULTS[section][name])(2.5))


@pytest.mark.parametrize("old", RENAMED)
@pytest.mark.parametrize("hyphens", [False, True], ids=["underscores", "hyphens"])
def test_former_name_sets_the_current_setting(old: str, hyphens: bool) -> None:
    section, name = old.split(".")
    value = value_for(old)
    mapping = {section: {name.replace("_", "-") if hyphens else name: value}}
    with pytest.warns(
        RenamedSettingWarning, match=f"old.yaml: renamed settings: {old} is now {RENAMED[old]}"
    ):
        config = from_mapping(mapping, Config(), "old.yaml")
    present = RENAMED[old].split(".")[1]
    assert config == from_mapping({section: {present: value}}, Config())
    assert to_mapping(config)[section][present] == value != DEFAULTS[section][present]


@pytest.mark.parametrize("old", RENAMED)
def test_former_names_are_removed_and_current_ones_exist(old: str) -> None:
    section, name = old.split(".")
    present_section, present = RENAMED[old].split(".")
    assert section == present_section
    fields = get_type_hints(get_type_hints(Config)[section])
    assert name not in fields and present in fields


@pytest.mark.parametrize("old", RENAMED)
def test_both_names_together_are_rejected(old: str) -> None:
    section, name = old.split(".")
    mapping = {section: {name: value_for(old), RENAMED[old].split(".")[1]: value_for(old)}}
    with pytest.raises(
        ConfigError, match=f"'{old}' is the former name of '{RENAMED[old]}', and both are given"
    ):
        from_mapping(mapping, Config())


def test_former_name_given_twice_is_rejected() -> None:
    with pytest.raises(ConfigError, match=r"'training\.average_decay' is given twice"):
        from_mapping({"training": {"average_decay": 0.5, "average-decay": 0.6}}, Config())


@pytest.mark.parametrize(
    ("path", "old"), [(path, old) for path, values in RENAMED_VALUES.items() for old in values]
)
def test_former_value_becomes_the_current_one(path: str, old: str) -> None:
    section, name = path.split(".")
    new = RENAMED_VALUES[path][old]
    with pytest.warns(RenamedSettingWarning, match=f"{path}: {old} is now {path}: {new}"):
        config = from_mapping({section: {name: old}}, Config())
    assert to_mapping(config)[section][name] == new


def test_one_warning_lists_all_renamed_settings() -> None:
    with pytest.warns(RenamedSettingWarning) as caught:
        configure({"training": {"recompute": "nothing", "average_decay": 0.5}})
    (warning,) = caught
    assert str(warning.message) == (
        "config: renamed settings: training.recompute: nothing is now training.activation_checkpointing: none, "
        "training.average_decay is now training.ema_decay"
    )


def test_recipe_with_former_names_loads(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text("model: {preset: modern-tiny, experts: 4}\ntraining: {recompute: blocks}\n")
    with pytest.warns(RenamedSettingWarning, match=r"old\.yaml: renamed settings"):
        config = recipe(str(path))
    assert config.model.n_experts == 4 and config.training.activation_checkpointing == "blocks"


def with_former_names(text: str) -> str:
    """Return a config.yaml as written by an earlier version."""
    text = text.replace("activation_checkpointing: none", "activation_checkpointing: nothing")
    for old, new in RENAMED.items():
        text = text.replace(f"  {new.split('.')[1]}:", f"  {old.split('.')[1]}:")
    assert all(f"  {old.split('.')[1]}:" in text for old in RENAMED)
    return text


@pytest.mark.parametrize("quiet", [[], ["--quiet"]], ids=["notes", "quiet"])
def test_former_names_in_a_run_are_silent_but_warn_once_in_a_recipe(
    quiet: list[str], text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["train", str(text_file), "--out", str(out), *TINY]) == 0
    config = out / "config.yaml"
    config.write_text(with_former_names(config.read_text()))
    capsys.readouterr()
    assert main(["train", "--resume", str(out), "--json", *quiet]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["run"] == str(out)
    assert "renamed" not in printed.err  # the user did not write that file
    again = ["train", "--config", str(config), "--out", str(tmp_path / "again"), "--json", *quiet]
    assert main(again) == 0
    printed = capsys.readouterr()
    (line,) = [line for line in printed.err.splitlines() if "renamed" in line]
    assert line.startswith(f"warning: {config}: renamed settings: model.experts is now model.n_experts, ")


def test_model_folder_with_former_names_loads_silently(text_file: Path, tmp_path: Path) -> None:
    assert main(["train", str(text_file), "--out", str(tmp_path / "run"), *TINY]) == 0
    folder = next(tmp_path.glob("run/checkpoints/*"))
    content = json.loads((folder / "config.json").read_text())
    content["model"]["experts"] = content["model"].pop("n_experts")
    (folder / "config.json").write_text(json.dumps(content))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_model_config(folder).n_experts == 0
    content["model"]["n_experts"] = 2
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"'model\.experts' is the former name of 'model\.n_experts'"):
        load_model_config(folder)


def test_both_names_on_the_command_line_of_a_recipe(tmp_path: Path, text_file: Path, fails: Fails) -> None:
    path = tmp_path / "old.yaml"
    path.write_text("training: {recompute: blocks, activation_checkpointing: none}\n")
    message = fails("train", text_file, "--recipe", path, "--out", tmp_path / "run")
    assert (
        "old.yaml: 'training.recompute' is the former name of 'training.activation_checkpointing'" in message
    )


def test_former_name_on_the_command_line_is_explained(
    text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(text_file), "--training.recompute", "blocks"]) == 2
    assert "--training.recompute is now --training.activation-checkpointing" in capsys.readouterr().err


def test_pairs_recorded_as_instruct_by_earlier_versions_become_a_source(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("model: {architecture: encoder_decoder}\nfinetuning: {task: instruct, data: pairs.tsv}\n")
    config = recipe(str(path))
    assert config.finetuning.task == "pretraining" and config.finetuning.data == ""
    assert config.data.source == ("pairs.tsv",)
