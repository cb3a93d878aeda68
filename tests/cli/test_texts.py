"""Text and source arguments: literal text, standard input, file names and runs."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import wholegpt as wg
from tests.helpers import TINY, Fails, text_of
from wholegpt.checkpoint import CheckpointStore
from wholegpt.cli import main, texts
from wholegpt.console import Console
from wholegpt.data.reading.files import ReadingReport, files_below
from wholegpt.errors import ConfigError, DataError

Pipe = Callable[..., None]
STEPS = ["--training.steps", "2", "--quiet"]
LONG = "Once upon a time there was a text. " * 30


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    """Return a function that replaces standard input by a pipe with some content; ``closed`` closes its other end."""
    with contextlib.ExitStack() as opened:

        def make(content: bytes, closed: bool = True) -> None:
            theirs, ours = os.pipe()
            os.write(ours, content)
            os.close(ours) if closed else opened.callback(os.close, ours)
            monkeypatch.setattr(sys, "stdin", opened.enter_context(os.fdopen(theirs, encoding="utf-8")))

        yield make


@pytest.fixture
def result(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, object]]:
    """Run a command line with ``--json`` and return its result."""

    def run(*arguments: str | Path) -> dict[str, object]:
        capsys.readouterr()
        assert main([*map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture(scope="session")
def byte_tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer file."""
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "text.txt").write_text(text_of(3000))
    out = folder / "tokenizer.json"
    assert main(["tokenizer", "train", str(folder / "text.txt"), "--kind", "byte", "--out", str(out)]) == 0
    return out


def test_hyphen_is_text_where_a_text_is_expected(byte_tokenizer_file: Path, result: Callable) -> None:
    assert result("tokenizer", "encode", byte_tokenizer_file, "-")["token_ids"] == [45]
    assert result("tokenizer", "show", byte_tokenizer_file, "-")["tokens"] == ["-"]


def test_hyphen_reads_the_text_from_a_pipe(byte_tokenizer_file: Path) -> None:
    program = [sys.executable, "-m", "wholegpt.cli"]
    for command in (
        ["tokenizer", "encode", str(byte_tokenizer_file), "-", "--json"],
        ["generate", "modern-tiny", "-", "--max-tokens", "0", "--quiet"],
    ):
        done = subprocess.run([*program, *command], input=b"ab\n", capture_output=True, check=True)
        assert done.stdout == b"ab\n" or json.loads(done.stdout)["token_ids"] == [97, 98]


def test_hyphen_is_a_prompt_without_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "modern-tiny", "-", "--max-tokens", "0", "--quiet", "--stop", "-"]) == 0
    assert capsys.readouterr().out == "-\n"


def test_hyphen_is_standard_input_where_a_source_is_expected(trained_run: Path) -> None:
    program = [sys.executable, "-m", "wholegpt.cli"]
    for command in (["data", "stats", "-"], ["evaluate", str(trained_run), "-", "--quiet"]):
        done = subprocess.run(
            [*program, *command, "--json"], input=text_of(600).encode(), capture_output=True, check=True
        )
        made = json.loads(done.stdout)
        assert len(text_of(600)) - made.get("characters", made.get("text", {}).get("characters")) in (0, 1)


@pytest.mark.slow
def test_training_on_standard_input(trained_run: Path, tmp_path: Path) -> None:
    for command in (
        ["train", "-", *TINY, "--out", tmp_path / "run"],
        ["finetune", trained_run, "--task", "pretraining", "--data", "-", *STEPS, "--out", tmp_path / "more"],
    ):
        program = [sys.executable, "-m", "wholegpt.cli", *map(str, command)]
        subprocess.run(program, input=text_of(3000).encode(), capture_output=True, check=True)
        assert (Path(command[-1]) / "checkpoints.json").is_file()


def test_sources_that_are_not_paths(fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "not-asked-for.txt").write_text(text_of(3000))
    (tmp_path / "my model").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "my model" / name).touch()
    for source, message in (
        ("", "a source is empty"),
        ("tinyshakespear", "did you mean 'tinyshakespeare'?"),
        ("https://example.com/a.txt", "is a web address; download it"),
        ("hf:", "hf: names no dataset"),
        ("my model", "my model' --task pretraining"),
    ):
        assert message in fails("train", source, *TINY)
        assert message in fails("data", "stats", source)
    with pytest.raises(DataError, match="a source is empty"):
        wg.train("", console=Console(quiet=True))


def test_file_named_hyphen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: Callable) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-").write_text("some text")
    assert result("data", "stats", "./-")["text"]["characters"] == 9


@pytest.mark.parametrize("content", [b"of the", b"of the\n", b"of the\r\n"])
def test_text_from_a_pipe(content: bytes, pipe: Pipe, byte_tokenizer_file: Path, result: Callable) -> None:
    for command in ("encode", "show"):
        pipe(content)
        assert result("tokenizer", command, byte_tokenizer_file)["token_ids"] == list(b"of the")
    pipe(b"111 102\n32 ")
    assert result("tokenizer", "decode", byte_tokenizer_file)["text"] == "of "


def test_prompt_from_a_pipe(pipe: Pipe, capsys: pytest.CaptureFixture[str]) -> None:
    for content, arguments, shown in (
        (b"a\nb\n", (), "a\nb\n"),
        (b"", (), "\n"),
        (b"ignored", ("c",), "c\n"),
    ):
        pipe(content)
        assert main(["generate", "modern-tiny", *arguments, "--max-tokens", "0", "--quiet"]) == 0
        assert capsys.readouterr().out == shown


def test_file_and_null_device_on_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, byte_tokenizer_file: Path, result: Callable, fails: Fails
) -> None:
    (tmp_path / "prompt.txt").write_text("ab")
    for path, token_ids in ((tmp_path / "prompt.txt", [97, 98]), (Path(os.devnull), None)):
        with path.open() as file:
            monkeypatch.setattr(sys, "stdin", file)
            if token_ids:
                assert result("tokenizer", "encode", byte_tokenizer_file)["token_ids"] == token_ids
            else:
                assert "no text given; give one" in fails("tokenizer", "encode", byte_tokenizer_file)


def test_pipe_that_stays_open_and_empty_times_out(
    pipe: Pipe, fails: Fails, byte_tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "NOTE_SECONDS", 0.01)
    monkeypatch.setattr(texts, "MOST_SECONDS", 0.02)
    notes: list[str] = []
    monkeypatch.setattr(texts, "write_error", notes.append)
    for command in (["tokenizer", "encode", byte_tokenizer_file], ["generate", "modern-tiny"]):
        pipe(b"", closed=False)
        assert 'no input from the pipe within 0 s; give a text ("" for none)' in fails(*command)
    assert len(notes) == 2 and "waiting" in notes[0]


def test_invalid_text_on_standard_input(pipe: Pipe, fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(b"ab\xff")
    assert "standard input: byte 2 is not UTF-8" in fails("generate", "modern-tiny")
    for ids in (b"1 x", "²".encode(), b"9" * 30, b"-1"):
        pipe(ids)
        assert "is not a token id" in fails("tokenizer", "decode", "nowhere")
    monkeypatch.setattr(texts, "LARGEST_BYTES", 5)
    pipe(b"123456")
    assert "standard input: contains more than 5 bytes" in fails("generate", "modern-tiny")


def test_file_given_for_a_text(fails: Fails, byte_tokenizer_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "test.csv"
    path.write_text("text\nof\n")
    message = fails("predict", "nowhere", path)
    assert f"{path}: is a file, but a text is expected here; use `--data {path}` for the table" in message
    assert "is a file" in fails("predict", "nowhere", "one", path)
    assert "mistyped.csv: no such file; use `--data FILE` for a table" in fails(
        "predict", "nowhere", "mistyped.csv"
    )
    assert "nowhere: no such run" in fails("predict", "nowhere", "a sentence on x.csv")
    for command in (["generate", "modern-tiny"], ["tokenizer", "encode", byte_tokenizer_file]):
        assert f"`< {path}` for the text in it" in fails(*command, path)


def test_runs_and_models_given_for_a_text(fails: Fails, run_folder: Path, tmp_path: Path) -> None:
    assert "is a run, not text; `wholegpt train --resume " in fails("train", run_folder, *TINY)
    checkpoint = CheckpointStore(run_folder).path(6)
    assert "is a model, not text; train it on text by `wholegpt finetune " in fails(
        "train", checkpoint, *TINY
    )
    for command in (
        ["plan", "--minutes", "1"],
        ["data", "stats"],
        ["tokenizer", "train", "--out", tmp_path / "t.json"],
    ):
        assert "is a run, not text" in fails(*command, run_folder, "--quiet")
    assert "takes one model, then texts" in fails("evaluate", run_folder, run_folder, "--quiet")
    assert "holds no text" in fails("train", run_folder / "checkpoints", *TINY)
    assert (
        main(["export", str(run_folder), "--to", "huggingface", "--out", str(tmp_path / "hf"), "--quiet"])
        == 0
    )
    assert "is an export of a model, not text; `wholegpt import " in fails("train", tmp_path / "hf", *TINY)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    assert "is a LoRA adapter, not text" in fails("train", adapter, *TINY)


def test_runs_inside_a_folder_are_skipped(run_folder: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(run_folder, tree / "runs" / "a")
    shutil.copytree(CheckpointStore(run_folder).path(6), tree / "model")
    (tree / "page").mkdir()
    for name in ("manifest.json", "config.json", "lineage.json"):  # files of other programs with these names
        (tree / "page" / name).write_text('{"text": "not ours"}')
    report = ReadingReport()
    assert {file.parent.name for file in files_below(tree, report)} == {"page"}
    assert report.skipped == {"folders of models and runs": 2}


@pytest.mark.parametrize("text", [LONG, "two\nlines", "Once upon a time"])
def test_text_given_for_a_source(text: str, fails: Fails, trained_run: Path) -> None:
    expected = "a source is the path of a file or folder, or a corpus's name. Write text itself to a file"
    for command in (
        ["train", text, *TINY],
        ["data", "stats", text],
        ["evaluate", trained_run, text, "--quiet"],
    ):
        assert expected in fails(*command)
    with pytest.raises(DataError, match="Write text itself to a file"):
        wg.train(text, console=Console(quiet=True))
    with pytest.raises(DataError, match="Write text itself to a file"):
        wg.load(trained_run).evaluate(text)


def test_option_after_the_separator_is_an_error(fails: Fails) -> None:
    message = fails("generate", "modern-tiny", "--", "-x", "--max-tokens", "5")
    assert "unknown option: --max-tokens; put options before --" in message


def test_names_too_long_for_a_file(fails: Fails, text_file: Path, trained_run: Path) -> None:
    for command in (
        ["generate", LONG],
        ["info", LONG],
        ["train", text_file, "--recipe", LONG],
        ["train", text_file, "--out", LONG, *TINY],
        ["train", "--resume", LONG],
        ["finetune", trained_run, "--task", "instruct", "--data", LONG],
        ["tokenizer", "encode", LONG, "x"],
        ["evaluate", trained_run, text_file, "--records", LONG],
        ["import", LONG],
    ):
        assert len(fails(*command)) < 1100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", str(2**63)], "--seed is 9223372036854775808; expected a value of at least 0 and at most"),
        (["--max-seconds", "nan"], "--max-seconds is nan; expected a value above 0"),
        (["--out="], "--out is empty; give a value, or leave it out"),
        (["--resume", ""], "--resume is empty"),
        (["--threads", "1000000000"], "runtime.threads is 1000000000; this machine has"),
    ],
)
def test_invalid_numbers_and_names_are_rejected(
    options: list[str], message: str, fails: Fails, text_file: Path
) -> None:
    assert message in fails("train", text_file, "--quiet", *options)


def test_more_threads_than_cores_are_rejected(fails: Fails, trained_run: Path) -> None:
    message = fails("generate", trained_run, "the", "--threads", "1000000000", "--quiet")
    assert "runtime.threads is 1000000000; this machine has" in message


def test_time_limit_must_be_a_number() -> None:
    with pytest.raises(ConfigError, match="max_seconds is nan"):
        wg.train("nowhere.txt", max_seconds=float("nan"))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("generate no-run a --seed 2.5", "--seed is 2.5; expected a whole number"),
        ("generate no-run a --max-tokens nan", "--max-tokens is nan; expected a whole number"),
        ("tokenizer decode no-run 1 1.5", "is 1.5; expected a whole number"),
        ("train t.txt --training.steps 6.7", "--training.steps is 6.7; expected a whole number"),
        (
            "generate no-run Once upon a time",
            "starting at 'upon a time'; put a text of several words in quotation",
        ),
        ("export no-run", "--to is missing; see `wholegpt export --help`"),
        ("info", "RUN is missing; see `wholegpt info --help`"),
    ],
)
def test_invalid_command_lines_are_rejected(command: str, message: str, fails: Fails) -> None:
    assert message in fails(*command.split())
