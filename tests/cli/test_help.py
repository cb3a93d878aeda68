"""The help of every command: two screens, at least two working examples, and all options on request."""

import re
import shlex
from collections.abc import Iterator

import cyclopts
import pytest

from wholegpt.cli import main, make_app
from wholegpt.cli.help import MOST_USED, examples_of

SCREENS = 2 * 24
MOST_OPTIONS = 15
OPTION = re.compile(r"(?m)^│ [* ]? *(--[a-z][\w.-]*)")


def commands(app: cyclopts.App, path: str = "") -> Iterator[tuple[str, cyclopts.App]]:
    """Return every command and group of commands by its full name."""
    yield path, app
    for name in app:
        if not name.startswith("-"):
            yield from commands(app[name], f"{path} {name}".strip())


COMMANDS = dict(commands(make_app()))
LEAVES = [path for path, app in COMMANDS.items() if app.default_command]


@pytest.fixture(autouse=True)
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def shown(capsys: pytest.CaptureFixture[str], path: str, option: str) -> str:
    assert main([*path.split(), option]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.mark.parametrize("path", COMMANDS)
def test_help_fits_on_two_screens(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = shown(capsys, path, "--help")
    lines = page.splitlines()
    assert len(lines) <= SCREENS and max(map(len, lines)) <= 80
    options = {*OPTION.findall(page)} - {"--help", "--version"}
    assert len(options) <= MOST_OPTIONS
    examples = [line.strip() for line in lines if line.startswith("  wholegpt ")]
    assert examples == examples_of(COMMANDS[path]) and len(examples) >= 2
    if path in LEAVES and path != "completion":
        assert lines[-2] == ("Common options: --json --quiet --debug --seed INT --device STR --threads INT")
        assert lines[-1] == f"`wholegpt {path} --help-all` explains all options."


@pytest.mark.parametrize("path", LEAVES)
def test_help_all_shows_every_option(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = " ".join(shown(capsys, path, "--help-all").replace("│", " ").split())
    app = COMMANDS[path]
    for argument in app.assemble_argument_collection():
        if argument.parse and argument.show and not argument.children:
            assert argument.name in page, argument.name
    assert "----" not in page  # a section of the docstring that was not parsed


def test_settings_are_shown_by_section(capsys: pytest.CaptureFixture[str]) -> None:
    page = shown(capsys, "train", "--help-all")
    sections = [line.strip("╭─╮ ") for line in page.splitlines() if line.startswith("╭")]
    assert sections[:4] == ["Arguments", "Parameters", "Settings: model", "Settings: tokenizer"]
    assert sections[-2:] == ["Reading text", "Common options"]
    settings = page.partition("─ Settings: training ")[2].partition("╰")[0]
    assert "--training.steps" in settings and "--optimizer" not in settings


def test_most_used_options_exist() -> None:
    for path, names in MOST_USED.items():
        options = [name for one in COMMANDS[path].assemble_argument_collection() for name in one.names]
        assert {f"--{name}" for name in names.split()} <= {*options}
        assert len(names.split()) <= MOST_OPTIONS


def words_of(example: str) -> Iterator[list[str]]:
    """Yield the wholegpt command lines of an example, without shell syntax."""
    for part in example.split(" | "):
        program, *words = shlex.split(re.split(" [<>] ", part)[0])
        assert program == "wholegpt"
        yield words


@pytest.mark.parametrize(
    ("path", "example"), [(path, one) for path, app in COMMANDS.items() for one in examples_of(app)]
)
def test_examples_are_command_lines(path: str, example: str) -> None:
    """The parser accepts every example, and each command has an example of its own."""
    for words in words_of(example):
        make_app().parse_args(words, exit_on_error=False, print_error=False)
    assert any(
        next(words_of(one))[: len(path.split())] == path.split() for one in examples_of(COMMANDS[path])
    )


def test_parser_rejects_an_invalid_example() -> None:
    with pytest.raises(cyclopts.CycloptsError):
        make_app().parse_args(["generate", "x", "--max-token", "3"], exit_on_error=False, print_error=False)
