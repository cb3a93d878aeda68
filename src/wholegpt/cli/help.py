"""The help of the commands.

``--help`` shows a page: two examples, and the options that are used most. ``--help-all`` shows all options by section.
The examples of a command are in its docstring.
"""

import re
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any, ClassVar

from cyclopts import App

from wholegpt.console import write_output

HELP_ALL = "--help-all"
EXAMPLES = re.compile(r"^Examples\n-+\n(.*?)(?:\n\n|\Z)", re.MULTILINE | re.DOTALL)
SENTENCES = re.compile(r"(?<=\.)\s+(?=[A-Z-]|[a-z]+: )")
UNREMARKABLE = ("False", '""', "()")
"""Defaults that a page does not show."""
COMMON_OPTIONS = "Common options"
NAMES_SHARE = 0.35
"""Share of the width for the column of names, unless a name is longer."""
MOST_USED = {
    "train": "recipe preset out minutes resume overwrite max-seconds model.n-layers model.d-model model.context-length "
    "tokenizer.kind training.steps training.batch-size optimizer.learning-rate evaluation.every",
    "plan": "minutes memory flops bandwidth encoding text-field tokenizer.kind tokenizer.vocab-size precision.dtype",
    "ladder": "minutes out baseline recipe encoding text-field model.context-length tokenizer.kind "
    "tokenizer.vocab-size training.batch-size",
    "finetune": "task data validation recipe out overwrite max-seconds finetuning.text-columns finetuning.label-column "
    "lora.rank training.epochs training.steps training.batch-size optimizer.learning-rate",
    "align": "method data reward validation recipe out overwrite max-seconds alignment.loss lora.rank training.steps "
    "training.batch-size optimizer.learning-rate",
    "generate": "max-tokens temperature top-k top-p stop completions template beams show-probabilities json-schema "
    "regex weights checkpoint",
    "evaluate": "stride context detokenize shots examples max-tokens stop records dtype weights checkpoint encoding "
    "text-field",
    "compare": "stride context detokenize shots examples max-tokens stop dtype weights checkpoint encoding text-field",
    "chat": "system checkpoint weights execution max-tokens temperature top-k top-p min-p repetition-penalty stop",
    "data prepare": "out overwrite data.text-field data.encoding data.clean data.deduplicate "
    "data.split data.validation-fraction tokenizer.kind tokenizer.vocab-size tokenizer.path",
}
"""The options on the page of each command that has too many for one page. The pages of other commands show all."""


def add_help(app: App, path: str = "") -> None:
    """Set the help of ``app`` and of all its commands, whose names follow ``path``."""
    for name in [name for name in app if not name.startswith("-")]:
        command = app[name]
        whole = f"{path} {name}".strip()
        command.help_formatter = Help(command, whole)
        add_help(command, whole)
    if not path:
        app.help_formatter = Help(app, "")


def examples_of(app: App) -> list[str]:
    """Return the command lines in the section "Examples" of the docstring of a command."""
    from inspect import cleandoc

    found = EXAMPLES.search(cleandoc(app.help))
    return found[1].splitlines() if found else []


class Help:
    """Draws the help of one command."""

    everything: ClassVar[bool] = False
    """Whether all options are shown."""

    def __init__(self, app: App, command: str) -> None:
        self.app, self.command = app, command
        self.most_used = {f"--{name}" for name in MOST_USED.get(command, "").split()}

    def render_usage(self, console: Any, options: Any, usage: Any) -> None:
        """Draw the usage line."""
        from cyclopts.help import DefaultFormatter

        DefaultFormatter().render_usage(console, options, usage)

    def render_description(self, console: Any, options: Any, description: Any) -> None:
        """Draw what the command does, and its examples."""
        _rewrite(description, _paragraphs)
        console.print(description)
        if examples := examples_of(self.app):
            write_output("\n".join(["Examples:", *(f"  {line}" for line in examples), ""]))

    def __call__(self, console: Any, options: Any, panel: Any) -> None:
        """Draw ``panel``: its options by section, or those that are used most."""
        from cyclopts.help import DefaultFormatter

        if panel.title == COMMON_OPTIONS and not Help.everything:
            write_output(self._last_lines(panel))
            return
        for entry in panel.entries:
            _rewrite(entry.description, _one_paragraph if Help.everything else _essence)
        if Help.everything or panel.format == "command":
            panels = list(_by_section(panel))
        else:
            panels = [panel.copy(entries=[_brief(one) for one in panel.entries if self._is_shown(one)])]
        for one in filter(lambda one: one.entries, panels):
            columns = None if one.format == "command" else _columns(one.entries, console.width)
            DefaultFormatter(column_specs=columns)(console, options, one)

    def _is_shown(self, entry: Any) -> bool:
        """Return whether an argument or option is on the page."""
        return not self.most_used or bool(entry.positional_label) or entry.names[0] in self.most_used

    def _last_lines(self, panel: Any) -> str:
        names = " ".join(" ".join(entry.display_labels_with_metavar) for entry in panel.entries)
        return f"Common options: {names}\n`wholegpt {self.command} {HELP_ALL}` explains all options."


def _columns(entries: Any, width: int) -> Any:
    """Return the columns of a panel of options. No name of an option is broken."""
    from cyclopts.help.specs import AsteriskColumn, ColumnSpec, DescriptionRenderer, NameRenderer

    longest = max(len(name) for entry in entries for name in entry.display_labels)
    widest = max(longest, round(NAMES_SHARE * width))
    names = ColumnSpec(renderer=NameRenderer(max_width=widest), style="cyclopts.name", max_width=widest)
    described = ColumnSpec(renderer=DescriptionRenderer(), overflow="fold")
    return (*([AsteriskColumn] if any(one.required for one in entries) else []), names, described)


def _rewrite(description: Any, change: Callable[[str], str]) -> None:
    """Change the text of a description of cyclopts in place."""
    from rich.text import Text

    text = getattr(description, "primary_renderable", None)
    if isinstance(text, Text):
        text.plain = change(text.plain)


def _paragraphs(description: str) -> str:
    """Return a description with its paragraphs on one line each."""
    return re.sub(r"(?<=\S)\n(?=\S)", " ", description)


def _one_paragraph(description: str) -> str:
    """Return a description as one paragraph, without the line breaks of its docstring."""
    return " ".join(description.split())


def _essence(description: str) -> str:
    """Return the first sentence of a description, and the one about the default."""
    first, *more = SENTENCES.split(_one_paragraph(description))
    return " ".join([first, *(one for one in more if one.startswith("Default:"))])


def _brief(entry: Any) -> Any:
    """Return an entry without an unremarkable default, and without choices that its description explains."""
    words = {*re.findall(r"[\w-]+", str(entry.description.primary_renderable))}
    default = None if entry.default in UNREMARKABLE else entry.default
    return entry.copy(
        default=default, choices=None if words.issuperset(entry.choices or ()) else entry.choices
    )


def _by_section(panel: Any) -> Iterator[Any]:
    """Yield a panel for the options without a section, and one for each section of settings."""
    for section, entries in groupby(panel.entries, _section):
        if not section:
            yield panel.copy(entries=list(entries))
        else:
            yield panel.copy(title=f"Settings: {section}", description=None, entries=list(entries))


def _section(entry: Any) -> str:
    return entry.names[0].removeprefix("--").rpartition(".")[0] if entry.names else ""
