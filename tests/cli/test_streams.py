"""Closed, full and broken standard streams, and escaping of control characters."""

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import Fails
from wholegpt.cli import main
from wholegpt.console import Console, visible, write_output, write_styled

ESCAPES = "a\x1b[31mred\x07\x9b0m\u202edesrever\u2066x\tb\n"
SHOWN = "a\\x1b[31mred\\x07\\x9b0m\\u202edesrever\\u2066x\tb\n"


def shell(command: str) -> tuple[int, str, str]:
    """Run a shell command line in which ``wholegpt`` is this program."""
    program = f'wholegpt() {{ "{sys.executable}" -m wholegpt.cli "$@"; }}; {command}'
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&-", ">&- 2>&- <&-", ">/dev/null"])
def test_closed_stream_behaves_like_the_null_device(redirection: str) -> None:
    assert shell(f"wholegpt data list {redirection}")[::2] == (0, "")


@pytest.mark.parametrize("options", ["data list", "data list --json", "--help"])
def test_full_disk_on_standard_output(options: str) -> None:
    code, _, error = shell(f"wholegpt {options} >/dev/full")
    assert code == 2 and error.count("\n") == 1 and "No space left on device" in error


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_exit_code_is_kept_if_the_error_cannot_be_printed(redirection: str) -> None:
    assert shell(f"wholegpt trian {redirection}") == (2, "", "")


@pytest.mark.parametrize("columns", [0, 1, 2, 19])
def test_help_with_an_invalid_terminal_width(columns: int) -> None:
    code, shown, error = shell(f"COLUMNS={columns} wholegpt data --help")
    assert (code, error) == (0, "") and "deduplicate" in shown


def test_deleted_working_directory(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    code, shown, error = shell(
        f"cd '{tmp_path}/gone'; rmdir '{tmp_path}/gone'; wholegpt generate modern-tiny x"
    )
    assert (code, shown) == (2, "")
    assert error == "wholegpt: the working directory was deleted; change to one that exists\n"


def test_broken_pipe_on_standard_output() -> None:
    assert shell("(sleep 0.1; wholegpt data list; echo $? >&2) | true")[2] == "0\n"


class Terminal(io.StringIO):
    """A stream that reports that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_control_characters_are_escaped_on_a_terminal_only(
    stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = write_output if stream == "stdout" else Console().warn
    warned = "" if stream == "stdout" else "warning: "
    for file, expected in ((Terminal(), SHOWN), (io.StringIO(), ESCAPES)):
        monkeypatch.setattr(sys, stream, file)
        write(ESCAPES)
        assert file.getvalue() == f"{warned}{expected}\n"


def test_json_output_is_not_escaped_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    write_output(ESCAPES, exact=True)
    assert sys.stdout.getvalue() == ESCAPES + "\n"  # pyright: ignore[reportAttributeAccessIssue]


def test_visible_keeps_printable_text() -> None:
    text = "".join(map(chr, range(0x20, 0x7F))) + "é\u200d\u200f中🙂\t\n"
    assert visible(text) == text


def test_styled_text_is_not_escaped_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    write_styled([(ESCAPES, "red"), ("\r\x08 end", "dim")], separator="|")
    assert capsys.readouterr().out == f"{ESCAPES}|\r\x08 end\n"


@pytest.mark.parametrize(
    ("command", "expected"), [("tokenizer show", b"a\\x1b[2J"), ("generate", b"a\\x1b[2J")]
)
def test_commands_on_a_terminal(command: str, expected: bytes, trained_run: Path, tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    bytes_ = [
        "tokenizer",
        "train",
        str(trained_run.parent / "text.txt"),
        "--kind",
        "byte",
        "--out",
        str(tokenizer),
    ]
    assert main([*bytes_, "--quiet"]) == 0
    arguments = [str(tokenizer), "a\x1b[2J"]
    if command == "generate":
        arguments = ["modern-tiny", "a\x1b[2J", "--max-tokens", "0", "--quiet"]
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "wholegpt.cli", *command.split(), *arguments]
    environment = {**os.environ, "NO_COLOR": "1", "TERM": "xterm"}
    subprocess.run(words, stdout=theirs, stderr=theirs, timeout=60, check=True, env=environment)
    os.close(theirs)
    output = os.read(ours, 65536)
    os.close(ours)
    assert b"\x1b[2J" not in output
    assert expected in output.replace(b"|", b"")


def test_error_messages_escape_control_characters(fails: Fails) -> None:
    for name in ("evil\x1b[2J", "evil\u202e", "evil\x9b"):
        for arguments in ((name,), ("train", "x", f"--{name}"), ("train", name), ("info", name)):
            message = fails(*arguments)
            assert message[:-1].isprintable(), message


def test_long_argument_is_shortened_in_the_error(fails: Fails) -> None:
    assert len(fails("info", "x " * 2000)) < 1100


def test_progress_does_not_interpret_markup_in_names(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Console().progress("reading [/red]\x1b]0;x\x07", 2) as progress:
        progress.advance(1, "[/b]")
    with Console().working("reading [/red]"):
        pass
    assert "reading [/red]" in screen.getvalue() and "\x1b]0;" not in screen.getvalue()


@pytest.mark.parametrize("which", ["²", "٣", "-1", "1e3", "", "9" * 5000, "best ", "6.0"])
def test_missing_checkpoint_lists_those_that_exist(which: str, fails: Fails, trained_run: Path) -> None:
    message = fails("info", trained_run, f"--checkpoint={which}")
    assert "no checkpoint '" in message and "there are best, last, " in message


def test_checkpoint_is_selected_by_its_step(trained_run: Path) -> None:
    for step in ("12", "00000012"):
        assert main(["info", str(trained_run), "--checkpoint", step]) == 0


def test_arguments_that_start_with_a_hyphen(
    fails: Fails, trained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (("- item",), ("-x",), ("the", "--stop", "- a")):
        message = fails("generate", trained_run, *arguments)
        assert " and --, " in message and "after =" in message
    assert "--" in fails("train", "-x.txt")
    assert main(["tokenizer", "encode", str(trained_run), "--", "of"]) == 0
    capsys.readouterr()
    assert "and --," not in fails("train", "--mdel.n-layers", "2")
    for options in (["--", "- item"], ["--stop=- a", "the"]):
        assert main(["generate", "modern-tiny", "--quiet", "--max-tokens", "0", *options]) == 0
        assert capsys.readouterr().out == f"{options[-1]}\n"


def test_argument_with_a_nul_character(fails: Fails) -> None:
    assert "contains a NUL character" in fails("train", "a\0b")
