"""With ``--quiet``, only the result goes to standard output and nothing to standard error; suggested next steps."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import TINY, WORDS, text_of, tiny
from wholegpt.cli import main

Output = Callable[..., tuple[str, str]]


@pytest.fixture
def output(capsys: pytest.CaptureFixture[str]) -> Output:
    """Run a command line and return its standard output and standard error."""

    def run(*arguments: str | Path) -> tuple[str, str]:
        capsys.readouterr()
        assert main([*map(str, arguments)]) == 0
        return capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def classifier(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run fine-tuned to classify texts by the length of words."""
    folder = tmp_path_factory.mktemp("classifier")
    rows = [f"{word},{'long' if len(word) > 2 else 'short'}" for word in WORDS] * 3
    (folder / "words.csv").write_text("\n".join(["text,label", *rows]))
    options = ["--task", "classification", "--data", str(folder / "words.csv"), "--out", str(folder / "run")]
    fast = ["--training.epochs", "0", "--training.steps", "2", "--quiet", "--device", "cpu"]
    assert main(["finetune", str(trained_run), *options, *fast]) == 0
    return folder / "run"


def test_quiet_commands_print_only_the_result(
    output: Output, trained_run: Path, classifier: Path, text_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "questions.txt").write_text(text_of(300, seed=3))
    tokenizer = tmp_path / "tokenizer.json"
    for command, first in (
        (["train", text_file, "--out", tmp_path / "run", *TINY], "Sample:"),
        (["evaluate", trained_run], "nats per token"),
        (["evaluate", classifier], "accuracy"),
        (["compare", trained_run, trained_run, text_file], "bits per byte"),
        (["generate", trained_run, "the", "--max-tokens", "2"], "the"),
        (["predict", classifier, "the of"], ""),
        (["info", trained_run], "parameters"),
        (["info", "modern-tiny"], "parameters"),
        (["recipes"], "demo"),
        (["presets"], "preset"),
        (["export", trained_run, "--to", "huggingface", "--out", tmp_path / "hf"], str(tmp_path / "hf")),
        (["import", tmp_path / "hf", "--out", tmp_path / "back"], f"{tmp_path / 'back'}: "),
        (["tokenizer", "train", text_file, "--kind", "byte", "--out", tokenizer], "tokenizer"),
        (["tokenizer", "encode", tokenizer, "of"], "111 102\n"),
        (["tokenizer", "show", tokenizer, "of"], "o|f\n"),
        (["tokenizer", "decode", tokenizer, "111", "102"], "of\n"),
        (["data", "list"], "corpora: `train NAME`"),
        (["data", "stats", text_file], "documents"),
        (["data", "prepare", text_file, "--out", tmp_path / "data", "--tokenizer.kind", "byte"], "out"),
        (["data", "deduplicate", text_file, "--exact"], "total"),
        (["data", "contamination", text_file, tmp_path / "questions.txt"], ""),
    ):
        out, err = output(*command, *([] if "--quiet" in command else ["--quiet"]))
        assert out.startswith(first) and out.strip() and err == "", command
        assert "Next:" not in out and "Report:" not in out, command


def test_suggested_next_steps_match_the_command(
    output: Output, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The suggestions can be run as printed, also with paths that need quoting."""
    monkeypatch.chdir(tmp_path)
    loud = [option for option in tiny() if option != "--quiet"]
    out, _ = output("train", text_file, "--out", "my run", *loud, "--max-seconds", "1e-9")
    assert "\n\nNext:\n  wholegpt train --resume 'my run'    # continue to the last step\n" in out
    out, _ = output("train", "--resume", "my run")
    assert "--resume" not in out and "\n  wholegpt generate 'my run' \"The\"    # generate text\n" in out
    out, _ = output("data", "prepare", text_file, "--out", "my data", "--tokenizer.kind", "byte")
    assert out.endswith("\n\nNext:\n  wholegpt train 'my data'    # train a model on it\n")
    out, _ = output("tokenizer", "train", text_file, "--kind", "byte", "--out", "t.json")
    assert f"\n  wholegpt train {text_file} --tokenizer.path t.json    # train a model with it\n" in out
    assert output("export", "my run", "--to", "huggingface", "--out", "hf")[0].startswith("hf\n")
    assert '\n  wholegpt generate models/hf "Once"    # generate text\n' in output("import", "hf")[0]


@pytest.mark.parametrize("texts", [[], ["-"]])
def test_predict_reads_one_text_per_line(
    texts: list[str], output: Output, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "texts.txt").write_text("of the\r\n\n  and a\n")
    with (tmp_path / "texts.txt").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        predictions = json.loads(output("predict", classifier, *texts, "--json")[0])["predictions"]
    assert [one["text"] for one in predictions] == ["of the", "  and a"]
    assert (
        predictions
        == json.loads(output("predict", classifier, "of the", "  and a", "--json")[0])["predictions"]
    )


@pytest.mark.parametrize("texts", [[], ["-"]])
def test_generate_reads_a_prompt(
    texts: list[str], output: Output, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompt.txt").write_text("of the\nand ")
    with (tmp_path / "prompt.txt").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert output("generate", trained_run, *texts, "--max-tokens", "0", "--quiet")[0] == "of the\nand \n"
