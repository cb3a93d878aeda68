"""Mistyped and misordered command lines: the error suggests what was probably meant."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from tests.cli.test_help import COMMANDS
from tests.helpers import Fails
from wholegpt.cli import EXTRAS, main
from wholegpt.cli.mistakes import OPTION_SYNONYMS
from wholegpt.cli.options import MEANT
from wholegpt.settings.choices import Tracker
from wholegpt.settings.schema import Config
from wholegpt.settings.serialization import to_mapping

ROOT = Path(__file__).parents[2]


def test_every_optional_package_belongs_to_an_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    in_extras = {
        (package.partition(">=")[0].replace("-", "_"), extra)
        for extra, packages in extras.items()
        for package in packages
        if extra != "dev" and extra not in list(Tracker)  # a run without its tracker only warns
    }
    assert {*EXTRAS.items()} <= in_extras
    assert {*EXTRAS} == {module for module, _ in in_extras}


@pytest.mark.parametrize(
    ("command", "right"),
    [
        ("eval", '"evaluate"'),
        ("sample", '"generate"'),
        ("complete", '"generate"'),
        ("pretrain", '"train"'),
        ("classify", '"predict"'),
        ("convert", '"export" or "import"'),
        ("tokenize", '"tokenizer"'),
    ],
)
def test_synonyms_of_commands_are_suggested(command: str, right: str, fails: Fails) -> None:
    assert f"Did you mean {right}?" in fails(command, "x")


def test_options_given_as_commands(fails: Fails) -> None:
    assert "unknown command help; did you mean `wholegpt --help`?" in fails("help")
    assert "unknown command version; did you mean `wholegpt --version`?" in fails("version")
    assert "unknown option --versoin; did you mean `wholegpt --version`?" in fails("--versoin")


@pytest.mark.parametrize(
    ("command", "given", "right"),
    [
        ("generate x", "--max-new-tokens", "--max-tokens"),
        ("generate x", "--temp", "--temperature"),
        ("generate x", "-n", "--completions"),
        ("train x", "--output_dir=y", "--out"),
        ("train x", "--gpu", "--device"),
        ("train x", "--force", "--overwrite"),
        ("predict x", "--file", "--data"),
    ],
)
def test_synonyms_of_options_are_suggested(command: str, given: str, right: str, fails: Fails) -> None:
    assert f"unknown option {given.partition('=')[0]}; the option is {right}\n" in fails(
        *command.split(), given, "1"
    )


def test_synonyms_map_to_existing_options() -> None:
    options = {
        name.removeprefix("--").replace("-", "_")
        for app in COMMANDS.values()
        if app.default_command
        for argument in app.assemble_argument_collection()
        for name in argument.names
    }
    assert {*OPTION_SYNONYMS.values()} <= options
    assert "the option is" not in OPTION_SYNONYMS and options.isdisjoint({"temp", "num_beams", "force"})


def test_settings_without_a_section_are_suggested_in_other_commands(fails: Fails) -> None:
    message = fails("data", "prepare", "x", "--out", "y", "--vocab-size", "3")
    assert "the setting is --tokenizer.vocab-size" in message


@pytest.mark.parametrize(
    ("words", "right"),
    [
        (["generate", "modern-tiny", "Once", "upon", "a"], "generate modern-tiny 'Once upon a'`"),
        (
            ["generate", "modern-tiny", "--seed", "2", "Once", "upon", "a", "--json"],
            "generate modern-tiny --seed 2 'Once upon a' --json`",
        ),
        (["tokenizer", "encode", "t.json", "it's", "so"], "tokenizer encode t.json 'it'\"'\"'s so'`"),
    ],
)
def test_text_without_quotation_marks(words: list[str], right: str, fails: Fails) -> None:
    assert f"in quotation marks: `wholegpt {right}" in fails(*words)


def test_separated_words_are_not_joined(fails: Fails) -> None:
    message = fails("generate", "modern-tiny", "Once", "--seed", "2", "upon")
    assert message.endswith("put a text of several words in quotation marks\n")
    assert "quotation" not in fails("chat", "modern-tiny", "hello")
    assert "see `wholegpt chat --help`" in fails("chat", "modern-tiny", "hello")


def test_swapped_arguments(fails: Fails, trained_run: Path, text_file: Path) -> None:
    run, text = str(trained_run), str(text_file)
    for words, right in (
        (["generate", "Once upon a time", run], f"generate {run} 'Once upon a time'"),
        (["predict", "one", "two", run], f"predict {run} one two"),
        (["evaluate", text, run], f"evaluate {run} {text}"),
    ):
        assert f"the model comes first: `wholegpt {right}`" in fails(*words)
    assert f"the 2 models come first: `wholegpt compare {run} {run} {text}`" in fails(
        "compare", run, text, run
    )
    assert f"the tokenizer comes first: `wholegpt tokenizer encode {run} 'of the'`" in fails(
        "tokenizer", "encode", "of the", run
    )
    assert f"`wholegpt finetune {run} --task pretraining --data {text}`" in fails(
        "finetune", text, "--task", "pretraining", "--data", run
    )
    assert "is a run, not text; `wholegpt train --resume" in fails("train", run)


def test_file_given_for_a_model(fails: Fails, text_file: Path) -> None:
    message = fails("generate", text_file, "Once")
    assert f"is a file, not a run or a model folder; `wholegpt train {text_file}`" in message


def test_misspelled_run_is_suggested(fails: Fails, trained_run: Path) -> None:
    assert f"did you mean '{trained_run}'?" in fails("generate", trained_run.with_name("runn"), "of")


def test_missing_runs_are_answered_with_those_that_exist(
    fails: Fails, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "`wholegpt train TEXT` trains a model" in fails("generate", "runs/nope", "x")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(trained_run)
    assert "the newest models in runs are runs/mine" in fails("generate", "runs/nope", "x")
    assert "did you mean 'runs/mine'?" in fails("evaluate", "mine")
    assert "runs/nope: no such run" in fails("train", "a.txt", "--config", "runs/nope")


def test_options_of_other_commands(fails: Fails, text_file: Path, trained_run: Path) -> None:
    assert "--data.validation-fraction" in fails("train", text_file, "--validation", "x.txt")
    assert "`wholegpt finetune MODEL --task" in fails("train", text_file, "--task", "instruct")
    assert "takes 2 models, then texts" in fails("compare", trained_run, trained_run, trained_run)
    assert "did you mean 'gpt2-small'?" in fails("train", text_file, "--preset", "gpt2")


def test_an_interrupted_import_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An import that Ctrl-C interrupts may fail with another error, or be tried again and fail then."""

    def interrupted() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        raise ImportError("cannot load module more than once per process")

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("wholegpt.cli.make_app", interrupted)
    assert main(["data", "list"]) == 130
    assert "bug" not in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_options_of_other_programs(fails: Fails, text_file: Path) -> None:
    assert "--precision.dtype" in fails("train", text_file, "--bf16")
    assert "--training.steps" in fails("train", text_file, "--step", "5")
    assert "`wholegpt train --help-all` lists all options" in fails("train", text_file, "--xyzzy")
    assert 'Did you mean "train"' in fails("resume", "runs/a")


def test_errors_in_arguments_come_before_pytorch_is_imported(tmp_path: Path) -> None:
    program = (
        "import sys; from wholegpt.cli import main; code = main(sys.argv[1:]); assert 'torch' not in sys.modules; "
        "sys.exit(code)"
    )
    others = ("train a.txt --minutes 0", "finetune runs/nope --task instruct --data a.csv")
    for given in (*(f"{name} runs/nope" for name in ("generate", "evaluate", "chat", "info")), *others):
        ended = subprocess.run(
            [sys.executable, "-c", program, *given.split()], cwd=tmp_path, capture_output=True
        )
        assert ended.returncode == 2, ended.stderr.decode()


@pytest.mark.parametrize("command", ["generate", "evaluate", "info", "import", "chat"])
@pytest.mark.parametrize("name", ["gpt2", "HuggingFaceTB/SmolLM2-135M"])
def test_names_of_the_hugging_face_hub(
    command: str, name: str, fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = fails(command, name)
    assert f"`wholegpt import {name}` downloads it (pip install 'wholegpt[hub]')" in message


def test_names_that_are_not_on_the_hub(fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for name in ("runs/mine", "mine/run", "mine2", "../x/y", "a/b/c"):
        assert "downloads it" not in fails("generate", name, "x")
        assert "downloads it" not in fails("import", name)


def test_presets_with_a_published_vocabulary(fails: Fails) -> None:
    for command in ("generate", "chat"):
        message = fails(command, "gpt2-xl")
        assert "is a preset" in message and "`wholegpt import gpt2-xl` downloads it" in message
        assert "downloads it" not in fails(command, "gpt1")


@pytest.mark.parametrize(
    ("section", "value", "hint"),
    [
        ("model", "gpt2", "did you mean --preset gpt2?"),
        ("optimizer", "adam", "did you mean --optimizer.kind adam?"),
        ("lora", "8", "did you mean --lora.rank 8?"),
        ("runtime", "cpu", "did you mean --device cpu?"),
        ("logging", "wandb", "did you mean --logging.trackers wandb?"),
        ("data", "mine", "see --help-all"),
        ("alignment", "x", "see --help-all"),
    ],
)
def test_section_given_a_value_is_refused(section: str, value: str, hint: str, fails: Fails) -> None:
    """The parser would ignore the value."""
    message = fails("train", "x.txt", f"--{section}", value)
    assert f"--{section} is a section of settings, such as --{section}." in message and hint in message


def test_every_option_that_is_meant_by_a_section_exists() -> None:
    everything = to_mapping(Config())
    for name, option in MEANT.items():
        assert name in everything
        section, _, setting = option.removeprefix("--").replace("-", "_").partition(".")
        assert setting in everything[section] if setting else section in ("preset", "device")
