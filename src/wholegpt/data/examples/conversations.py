"""Conversations for fine-tuning: read from tables in the common formats, split, and stored in the run's
folder.

======================  =====================================================================================
format                  columns
======================  =====================================================================================
messages                ``messages``: a list of ``role`` (system, user, assistant) and ``content``; or of
``from``
                        (system, human, gpt) and ``value``; ``data.messages`` lists other names and contents
instructions            ``instruction``, optionally ``input`` or ``context``, ``output``
pairs                   ``prompt`` and ``response``, or other names of a prompt and a completion
======================  =====================================================================================

An additional column ``system`` holds the system message, and ``history``, a list of pairs of a question and
an answer, the turns before an instruction or a prompt. All other columns are named in a note.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from wholegpt.console import QUIET, Console
from wholegpt.data.chat.messages import (
    JOINED_BY,
    MESSAGES,
    SYSTEM,
    decode_list,
    read_messages,
    refuse_tools_and_media,
    unused_fields,
    with_system,
)
from wholegpt.data.chat.template import Conversation, Message
from wholegpt.data.examples.built_in import Exercise, built_in_exercises
from wholegpt.data.examples.columns import DETECTED, TaskColumns
from wholegpt.data.examples.files import open_examples, save_examples
from wholegpt.data.permutation import held_out_indices
from wholegpt.data.reading.decoding import ReadingReport
from wholegpt.data.reading.tables import Reading, Table
from wholegpt.errors import ConfigError, DataError, counted
from wholegpt.settings.schema import Config

ASKED = ("instruction", "prompt", "question", "source", "document", "text", "input")
GIVEN = ("input", "context")
"""Columns with the input of an instruction."""
CHOICES = ("choices", "options", "answers")
"""Columns of multiple-choice questions, which are not conversations."""
ANSWERED = ("output", "response", "completion", "answer", "target", "summary")
HISTORY = "history"
ASKING = ("user", "assistant")
"""Roles of the two texts of a pair."""
T = TypeVar("T")


@dataclass(frozen=True)
class ConversationData:
    """Conversations of the training and the validation split."""

    train: list[Conversation]
    validation: list[Conversation]
    columns: TaskColumns
    """The columns of the training table."""

    @classmethod
    def read(cls, config: Config, console: Console = QUIET, source: str = "") -> "ConversationData":
        """Read the tables or the built-in task that ``config.finetuning`` names, or the table ``source`` for the
        training examples.

        Rows without a conversation of text are skipped if ``data.on_bad_line`` is skip. Raises ``DataError`` for tables
        without conversations.
        """
        settings = config.finetuning
        if not source and (exercises := built_in_exercises(config)):
            train, validation = ([_pair_of(one) for one in side] for side in exercises)
            return cls(train, validation, TaskColumns(("prompt",), (), "answer"))
        source = source or settings.data
        if not source:
            raise ConfigError("no training examples are named; give --data FILE")
        reading = Reading.of(config.data, source, settings.validation)
        table = reading.table(Path(source))
        columns = TaskColumns(settings.text_columns, (), settings.label_column)
        train, columns = read_conversations(table, columns, reading, console)
        if settings.validation:
            validation = read_like(Path(settings.validation), reading, columns, console)
            reading.show(console)
            return cls(train, validation, columns)
        reading.show(console)
        train, validation = held_out_by_prompt(source, train, lambda one: one[:-1], config, "conversations")
        return cls(train, validation, columns)

    @classmethod
    def open(cls, folder: Path) -> "ConversationData":
        """Load what ``save`` wrote. Raises ``DataError`` if a file is missing or has changed."""
        about, train, validation = open_examples(folder, Conversation)
        return cls(train, validation, msgspec.convert(about, TaskColumns))

    def save(self, folder: Path) -> str:
        """Write the conversations into a new ``folder``; return the hash of all."""
        return save_examples(folder, self.columns, self.train, self.validation)


def _pair_of(exercise: Exercise) -> Conversation:
    return Message("user", exercise.prompt), Message("assistant", exercise.answer)


def held_out_by_prompt(
    source: str,
    examples: Sequence[T],
    prompt_of: Callable[[T], Conversation],
    config: Config,
    unit: str,
) -> tuple[list[T], list[T]]:
    """Split examples into those to train on, and ``data.validation_fraction`` of the prompts that are held out.

    Examples with equal prompts stay on one side. Raises ``DataError`` if a side would be empty; ``unit`` names the
    examples in it.
    """
    fraction = config.data.validation_fraction
    of_prompt: dict[Conversation, list[int]] = {}
    for index, one in enumerate(examples):
        of_prompt.setdefault(prompt_of(one), []).append(index)
    groups = list(of_prompt.values())
    drawn = held_out_indices(len(groups), fraction, config.runtime.seed)
    held_out = {index for i in drawn for index in groups[i]}
    if not 0 < len(held_out) < len(examples):
        different = f" of {len(groups):,} different questions" if len(groups) < len(examples) else ""
        raise DataError(
            f"{source}: has {counted(len(examples), unit)}{different}, too few to hold {fraction:.0%} of them "
            "out; give more, or held-out ones by --validation FILE"
        )
    train, validation = (
        [one for i, one in enumerate(examples) if (i in held_out) is side] for side in (False, True)
    )
    return train, validation


def holds_conversations(path: Path, reading: Reading | None = None, known: TaskColumns = DETECTED) -> bool:
    """Return whether a table has the ``known`` columns, or else columns of messages or of prompts and
    answers.
    """
    uncounted = replace(reading, report=ReadingReport()) if reading else Reading()
    columns = uncounted.table(path, _named(known)).columns
    if known.target and {*_named(known)} <= {*columns}:
        return True
    names = {column.lower() for column in columns}
    if not names.isdisjoint(CHOICES):
        return False
    return not names.isdisjoint(MESSAGES) or not (names.isdisjoint(ASKED) or names.isdisjoint(ANSWERED))


def read_like(
    path: Path, reading: Reading, known: TaskColumns, console: Console = QUIET
) -> list[Conversation]:
    """Read the conversations of another table, from the ``known`` columns of the training table if it has
    them.
    """
    table = reading.table(path, _named(known))
    columns = known if {*_named(known)} <= {*table.columns} else DETECTED
    return read_conversations(table, columns, reading, console)[0]


def _named(columns: TaskColumns) -> list[str]:
    return [name for name in (*columns.texts, columns.target) if name]


def read_conversations(
    table: Table, columns: TaskColumns = DETECTED, reading: Reading | None = None, console: Console = QUIET
) -> tuple[list[Conversation], TaskColumns]:
    """Read the conversations of a table; also return the columns that hold them.

    ``columns`` names the columns of pairs. Raises ``DataError`` naming the line of a row that is not a text
    conversation, unless ``reading`` skips such rows, and listing the columns if none holds answers.
    """
    form, reading = _form_of(table, columns), reading or Reading()
    found = reading.examples(table, form.conversation, "a conversation")
    table.note_unused(form.names, console)
    fields = sorted(set[str]().union(*(unused_fields(row.get(form.messages)) for row in table.rows)))
    if fields:
        console.note(f"{table.path}: fields of messages that are not used: {', '.join(fields)}")
    return found, form.columns


@dataclass(frozen=True)
class _Form:
    """The column of each part of a conversation; empty if the table has none."""

    messages: str
    texts: tuple[str, ...]
    answers: str
    system: str
    history: str

    @property
    def names(self) -> tuple[str, ...]:
        """Return all columns that are read."""
        return (self.messages, *self.texts, self.answers, self.system, self.history)

    @property
    def columns(self) -> TaskColumns:
        """Return the columns that other tables of the same format should have."""
        return (
            TaskColumns(target=self.messages) if self.messages else TaskColumns(self.texts, (), self.answers)
        )

    def conversation(self, row: Mapping[str, Any], where: str) -> Conversation:
        """Return the conversation in a row. Raises ``DataError`` if there is none."""
        refuse_tools_and_media(row, where)
        messages = read_messages(row.get(self.messages), where) if self.messages else self._pair(row, where)
        return with_system(messages, row.get(self.system), self.system, where)

    def _pair(self, row: Mapping[str, Any], where: str) -> Conversation:
        said = [(name, row.get(name)) for name in self.texts]
        for name, one in said[1:]:
            if one is not None and not isinstance(one, str):
                raise DataError(f"{where}: expected a text in '{name}', found {one!r:.40}")
        given = [one for _, one in said if isinstance(one, str) and one.strip()]
        if not given:
            raise DataError(f"{where}: has an empty text in '{self.texts[0]}'")
        answer = row.get(self.answers)
        if answer is not None and not isinstance(answer, str):
            raise DataError(f"{where}: expected a text in '{self.answers}', found {answer!r:.40}")
        if not answer or not answer.strip():
            raise DataError(f"{where}: has no answer in '{self.answers}'")
        before = _turns(row.get(self.history), f"{where}: {self.history}")
        return (*before, Message("user", JOINED_BY.join(given)), Message("assistant", answer))


def _form_of(table: Table, columns: TaskColumns) -> _Form:
    """Return the format of a table's conversations. Raises ``DataError`` listing the columns if there is
    none.
    """
    first = table.first_of
    listed = first(MESSAGES)
    if listed and not columns.texts and columns.target in ("", listed):
        return _Form(listed, (), "", first(SYSTEM), "")
    answers = columns.target or first(ANSWERED)
    asked = first(ASKED, answers)
    texts = columns.texts or tuple(name for name in (asked, first(GIVEN, asked, answers)) if name)
    if not texts or not answers:
        lacking = (
            "answers (output, response, ...)" if texts else "prompts (instruction, prompt, ...), nor messages"
        )
        raise DataError(f"{table.path}: has no column of {lacking}; there are {', '.join(table.columns)}")
    for name in (*texts, answers):
        table.column(name)
    return _Form("", texts, answers, first(SYSTEM, *texts, answers), first((HISTORY,), *texts, answers))


def _turns(history: Any, where: str) -> Conversation:
    """Return the earlier turns, given as pairs of a question and an answer or as messages."""
    history = decode_list(history)
    if history is None or history == [] or (isinstance(history, str) and not history.strip()):
        return ()
    if isinstance(history, list) and isinstance(history[0], Mapping):
        messages = read_messages(history, where)
        if messages[-1].role != "assistant":
            raise DataError(f"{where}: ends without an answer")
        return messages
    if not isinstance(history, list) or not all(
        isinstance(pair, list) and len(pair) == 2 for pair in history
    ):
        raise DataError(
            f"{where}: expected a list of pairs, a question and its answer, found {history!r:.60}"
        )
    sides = [
        {"role": role, "content": text} for pair in history for role, text in zip(ASKING, pair, strict=True)
    ]
    return read_messages(sides, where)
