"""Options and output that all commands share, and the settings that were given on the command line."""

import json as json_module
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args

from cyclopts import App, Group, Parameter, Token
from cyclopts.argument import ArgumentCollection

from wholegpt.cli.help import COMMON_OPTIONS
from wholegpt.console import Console, write_output
from wholegpt.errors import ConfigError, RunError, shortened
from wholegpt.settings.choices import OnBadLine, OnBadText
from wholegpt.settings.schema import Config
from wholegpt.settings.serialization import to_mapping
from wholegpt.settings.validation import check_seed


@dataclass(frozen=True)
class Common:
    """Options of every command."""

    json: Annotated[bool, Parameter(negative="")] = False
    """Print one JSON object on standard output."""
    quiet: Annotated[bool, Parameter(negative="")] = False
    """Show only warnings and errors on standard error."""
    debug: Annotated[bool, Parameter(negative="")] = False
    """Show the traceback of errors."""
    seed: int | None = None
    """Seed of all random numbers."""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps. Default: an accelerator if there is one."""
    threads: int | None = None
    """Number of CPU threads."""

    @property
    def console(self) -> Console:
        """The console for notes and progress."""
        return Console(self.quiet)

    def __post_init__(self) -> None:
        """Refuse a seed out of range and a negative number of threads."""
        check_seed("--seed", self.seed or 0)
        if self.threads is not None and self.threads < 0:
            raise ConfigError(f"--threads is {self.threads}; expected a value of at least 0")

    def placement(self) -> dict[str, Any]:
        """Return the given ones of device and threads as keyword arguments."""
        given = {"device": self.device, "threads": self.threads}
        return {name: value for name, value in given.items() if value is not None}

    def show(self, result: dict[str, Any], human: str, advice: Sequence[str] = ()) -> None:
        """Write the result of a command to standard output: one JSON object, or the text for people.

        Lines of ``advice`` on what to do next follow the text, unless quiet.
        """
        text = human if self.quiet else "\n".join([human, *advice])
        write_output(json_module.dumps(result, ensure_ascii=False) if self.json else text, exact=self.json)


@dataclass(frozen=True)
class Reading:
    """How text files are read."""

    encoding: str | None = None
    """Character encoding of text files. Default: utf-8."""
    text_field: str | None = None
    """Field or column that holds the text. Default: detected automatically."""
    on_bad_text: OnBadText | None = None
    """What to do with bytes that are not valid text. Default: stop."""
    on_bad_line: OnBadLine | None = None
    """What to do with malformed lines and records without text. Default: stop."""

    def given(self) -> dict[str, str]:
        """Return the given options as keyword arguments."""
        return {name: value for name, value in vars(self).items() if value is not None}


LONE_HYPHEN = "\0-"
"""Stands for a ``-`` during parsing, because the parser would read that as an option."""


def _with_hyphen(token: Token) -> Token:
    return token.evolve(value="-") if token.value == LONE_HYPHEN else token


ReadingOptions = Annotated[Reading, Parameter(name="*", group=Group("Reading text", sort_key=2))]
CommonOptions = Annotated[Common, Parameter(name="*", group=Group(COMMON_OPTIONS, sort_key=3))]
Settings = Annotated[
    Config,
    Parameter(name="*", group=Group("Settings (defaults without a recipe)", sort_key=1)),
]
TuningSettings = Annotated[
    Config,
    Parameter(
        name="*",
        show_default=False,
        group=Group("Settings (defaults: those of the recipe; `wholegpt recipes` lists them)", sort_key=1),
    ),
]
"""The settings of a command that always uses a recipe."""

NEVER_EMPTY = ("--out", "--resume", "--recipe", "--preset", "--records", "--validation", "--onto", "--device")
"""Options that must not be empty, as they are with an unset shell variable: that would count as not given."""


class ChosenSettings:
    """The settings given on the command line. Only these override a recipe."""

    paths: ClassVar[list[tuple[str, str]]] = []

    @classmethod
    def remember(cls, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        """Remember the parsed arguments. The parser calls this before it creates any object."""
        del app, commands
        for argument in arguments:
            argument.tokens[:] = [_with_hyphen(token) for token in argument.tokens]
            if argument.name in NEVER_EMPTY and any(not token.value for token in argument.tokens):
                raise ConfigError(f"{argument.name} is empty; give a value, or leave it out")
            if argument.tokens and is_dataclass(argument.hint):
                raise ConfigError(_section_message(argument.name, argument.tokens[0].value, argument.hint))
            for token in argument.tokens if _is_whole(argument.hint) else ():
                if _has_fraction(token.value):  # the parser would truncate it
                    raise ConfigError(f"{argument.name} is {token.value}; expected a whole number")
        names = [
            argument.name for argument in arguments if argument.tokens and argument.name.startswith("--")
        ]
        cls.paths = [(part, field) for part, field in map(_path, names) if field]

    @classmethod
    def of(cls, config: Config) -> dict[str, Any]:
        """Return the given settings of ``config`` as a nested mapping."""
        everything, chosen = to_mapping(config), {}
        for section, field in cls.paths:
            chosen.setdefault(section, {})[field] = everything[section][field]
        return chosen


def _is_whole(hint: Any) -> bool:
    """Return whether the type of a parameter is ``int``, ``int | None``, or a sequence of them."""
    return hint is int or any(map(_is_whole, get_args(hint)))


def _has_fraction(value: str) -> bool:
    try:
        return not float(value).is_integer()
    except ValueError:
        return False


MEANT = {
    "model": "--preset",
    "tokenizer": "--tokenizer.kind",
    "training": "--training.steps",
    "optimizer": "--optimizer.kind",
    "schedule": "--schedule.kind",
    "evaluation": "--evaluation.every",
    "precision": "--precision.dtype",
    "runtime": "--device",
    "checkpointing": "--checkpointing.every",
    "logging": "--logging.trackers",
    "lora": "--lora.rank",
    "windows": "--windows.length",
}
"""The option that is probably meant where the name of a section is given a value."""


def _section_message(option: str, value: str, section: Any) -> str:
    """Return the message for ``--section VALUE``, which the parser would ignore."""
    name = option.removeprefix("--")
    first = f"{option}.{fields(section)[0].name.replace('_', '-')}"
    hint = f"did you mean {MEANT[name]} {shortened(value, 40)}?" if name in MEANT else "see --help-all"
    return f"{option} is a section of settings, such as {first}, and takes no value; {hint}"


def _path(option: str) -> tuple[str, str]:
    """Return section and field of ``--section.the-field``. The field of other options is empty."""
    part, _, field = option.removeprefix("--").replace("-", "_").partition(".")
    return part, field


def section(values: dict[str, Any], name: str, **fields: Any) -> dict[str, Any]:
    """Return ``values`` with those ``fields`` of one section set that are not ``None``."""
    given = {field: value for field, value in fields.items() if value is not None}
    return {**values, name: {**values.get(name, {}), **given}} if given else values


def next_commands(*steps: tuple[str, str]) -> list[str]:
    """Return lines that suggest commands, each with its purpose."""
    return ["", "Next:", *(f"  {command}    # {purpose}" for command, purpose in steps)]


def check_new_file(path: str | None, option: str) -> None:
    """Raise ``RunError`` if the file that ``option`` names exists, or its folder does not."""
    if path and (Path(path).exists() or not Path(path).absolute().parent.is_dir()):
        problem = "already exists" if Path(path).exists() else "its folder does not exist"
        raise RunError(f"{path}: {problem}; name another {option}")


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Return lines of a label and a value, with the values aligned."""
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Return aligned rows of cells: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


TEXT_METRICS = {
    "pseudo_nats_per_token": "nats per masked token",
    "pseudo_perplexity": "pseudo-perplexity (not comparable with perplexity)",
    "nats_per_token": "nats per token",
    "perplexity": "perplexity per token",
    "bits_per_token": "bits per token",
    "bits_per_word": "bits per word",
    "perplexity_per_word": "perplexity per word",
    "bits_per_character": "bits per character",
    "bits_per_byte": "bits per byte",
}
"""The metrics of a text, and their names in tables."""


def score_table(score: dict[str, Any]) -> str:
    """Return a table of the metrics of a text, with intervals if there are any."""
    intervals = score.get("intervals", {})
    rows = [
        (shown, _with_interval(score[name], *intervals[name]) if name in intervals else _digits(score[name]))
        for name, shown in TEXT_METRICS.items()
        if name in score
    ]
    units = ("tokens", "words", "characters", "bytes")
    counted = ", ".join(f"{score[unit]:,} {unit}" for unit in units if unit in score)
    return table([*rows, ("over", counted)])


def task_table(score: dict[str, Any]) -> str:
    """Return a table of the metrics of an evaluation on examples."""
    rows = [
        (name.replace("_", " "), _with_interval(figure["value"], figure["low"], figure["high"]))
        for name, figure in score.items()
        if isinstance(figure, dict)
    ]
    shots = f", {score['shots']} shots" if score["shots"] else ""
    counted = f"{score['examples']:,} examples ({score['kind']}){shots}"
    cut = f"; {score['truncated']:,} truncated: without {score['left_out']}" if score["truncated"] else ""
    return table([*rows, ("over", counted + cut)])


def comparison_table(compared: dict[str, Any]) -> str:
    """Return a table of the metrics of two models and their differences."""
    return table(
        [
            (
                name.replace("_", " "),
                f"{_digits(one['first'])} → {_digits(one['second'])}: difference "
                + _with_interval(one["difference"], one["difference_low"], one["difference_high"])
                + f", p = {_digits(one['p_value'])} ({one['test']}); "
                + {"uncertain": "no significant difference"}.get(
                    one["better"], f"the {one['better']} is better"
                ),
            )
            for name, one in compared.items()
        ]
    )


def _with_interval(value: float | None, low: float | None, high: float | None) -> str:
    interval = "unknown" if low is None or high is None else f"{_digits(low)} to {_digits(high)}"
    return f"{_digits(value)} (95%: {interval})"


MOST_WITH_DIGITS = 1e6
"""Figures from here on are shown with four significant digits."""


def _digits(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if abs(value) < MOST_WITH_DIGITS else f"{value:.4g}"


def program_name() -> str:
    """Return the command that starts this program: ``wholegpt``, or its path if that is not on the search path."""
    called = Path(sys.argv[0])
    return str(called) if called.name == "wholegpt" and not shutil.which("wholegpt") else "wholegpt"
