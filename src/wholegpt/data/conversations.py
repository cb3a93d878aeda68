"""Conversations to learn from: read from tables in the common forms, divided, and kept in the run's folder.

======================  =====================================================================================
form                    columns
======================  =====================================================================================
messages                ``messages``: a list of ``role`` (system, user, assistant) and ``content``; or of ``from``
                        (system, human, gpt) and ``value``
instructions            ``instruction``, perhaps ``input`` or ``context``, ``output``
pairs                   ``prompt`` and ``response``, or other names of a text and what is to follow
======================  =====================================================================================
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from wholegpt.config import Config
from wholegpt.data.chat_template import Conversation, Message, check_conversation
from wholegpt.data.example_files import open_examples, save_examples
from wholegpt.data.formats import ReadingReport
from wholegpt.data.permutation import held_out_places
from wholegpt.data.tables import Reading, Table
from wholegpt.data.task_columns import DETECTED, TaskColumns
from wholegpt.errors import ConfigError, DataError

MESSAGES = ("messages", "conversations", "conversation")
ASKED = ("instruction", "prompt", "question", "source", "document", "text", "input")
GIVEN = ("input", "context")
"""What an instruction may be about, in a column of its own."""
CHOICES = ("choices", "options", "answers")
"""Columns of questions with answers to choose from, which are no conversations."""
ANSWERED = ("output", "response", "completion", "answer", "target", "summary")
SPEAKERS = {"human": "user", "gpt": "assistant"}
"""Other names of roles."""
JOINED_BY = "\n\n"
"""Between an instruction and its input."""


@dataclass(frozen=True)
class ConversationData:
    """Training and held-out conversations."""

    train: list[Conversation]
    validation: list[Conversation]
    columns: TaskColumns
    """Where the training ones stood."""

    @classmethod
    def read(cls, config: Config) -> "ConversationData":
        """From the tables that ``config.finetuning`` names. Raises ``DataError`` for tables that hold none."""
        settings = config.finetuning
        if not settings.data:
            raise ConfigError("no training examples are named; give --data FILE")
        reading = Reading.of(config.data, settings.data, settings.validation)
        table = reading.table(Path(settings.data))
        columns = TaskColumns(settings.text_columns, (), settings.label_column)
        train, columns = read_conversations(table, columns)
        if settings.validation:
            return cls(train, read_like(Path(settings.validation), reading, columns), columns)
        fraction = config.data.validation_fraction
        copies: dict[Conversation, list[int]] = {}
        for place, one in enumerate(train):
            copies.setdefault(one[:-1], []).append(place)
        groups = list(copies.values())
        drawn = held_out_places(len(groups), fraction, config.runtime.seed)
        held_out = {place for i in drawn for place in groups[i]}  # who asks the same is on one side
        if not 0 < len(held_out) < len(train):
            raise DataError(
                f"{settings.data}: has {len(train):,} conversations, too few to hold {fraction:.0%} of them out; give "
                "more, or held-out ones by --validation FILE"
            )
        sides = [[one for i, one in enumerate(train) if (i in held_out) is side] for side in (False, True)]
        return cls(sides[0], sides[1], columns)

    @classmethod
    def open(cls, folder: Path) -> "ConversationData":
        """Back from ``save``. Raises ``DataError`` where a file is missing or not what it was."""
        about, train, validation = open_examples(folder, Conversation)
        return cls(train, validation, msgspec.convert(about, TaskColumns))

    def save(self, folder: Path) -> str:
        """Write the conversations into a new ``folder``; returns the hash of all."""
        return save_examples(folder, self.columns, self.train, self.validation)


def holds_conversations(path: Path, reading: Reading | None = None, known: TaskColumns = DETECTED) -> bool:
    """Whether a table has the ``known`` columns, or else some of messages, or of questions and answers."""
    uncounted = replace(reading, report=ReadingReport()) if reading else Reading()
    columns = uncounted.table(path, _named(known)).columns
    if known.target and {*_named(known)} <= {*columns}:
        return True
    names = {column.lower() for column in columns}
    if not names.isdisjoint(CHOICES):
        return False
    return not names.isdisjoint(MESSAGES) or not (names.isdisjoint(ASKED) or names.isdisjoint(ANSWERED))


def read_like(path: Path, reading: Reading, known: TaskColumns) -> list[Conversation]:
    """The conversations of a further table, in the ``known`` columns of the training ones where it has those."""
    table = reading.table(path, _named(known))
    return read_conversations(table, known if {*_named(known)} <= {*table.columns} else DETECTED)[0]


def _named(columns: TaskColumns) -> list[str]:
    return [name for name in (*columns.texts, columns.target) if name]


def read_conversations(
    table: Table, columns: TaskColumns = DETECTED
) -> tuple[list[Conversation], TaskColumns]:
    """The conversations of a table, and the columns that they were found in; ``columns`` names those of pairs.

    Raises ``DataError`` naming the line of one without an answer, and listing the columns where none is an answer.
    """
    by_name = {column.lower(): column for column in table.columns}
    listed = next((by_name[name] for name in MESSAGES if name in by_name), "")
    if listed and not columns.texts and columns.target in ("", listed):
        found = [_messages(table.rows[row].get(listed), table.where(row)) for row in range(len(table.rows))]
        return found, TaskColumns(target=listed)
    answers = columns.target or next((by_name[name] for name in ANSWERED if name in by_name), "")
    names = [by_name[name] for name in ASKED if name in by_name and by_name[name] != answers]
    about = [
        by_name[name] for name in GIVEN if name in by_name and by_name[name] not in (*names[:1], answers)
    ]
    texts = columns.texts or tuple(names[:1] + about[:1])
    if not texts or not answers:
        lacking = (
            "answers (output, response, ...)" if texts else "prompts (instruction, prompt, ...), nor messages"
        )
        raise DataError(f"{table.path}: has no column of {lacking}; there are {', '.join(table.columns)}")
    for name in (*texts, answers):
        table.column(name)
    pairs = [_pair(table, row, texts, answers) for row in range(len(table.rows))]
    return pairs, TaskColumns(texts, (), answers)


def _pair(table: Table, row: int, texts: Sequence[str], answers: str) -> Conversation:
    said = [table.rows[row].get(name) for name in texts]
    given = [one for one in said if isinstance(one, str) and one.strip()]
    if not given:
        raise DataError(f"{table.where(row)}: has an empty text in '{texts[0]}'")
    answer = table.rows[row].get(answers)
    if not isinstance(answer, str) or not answer.strip():
        raise DataError(f"{table.where(row)}: has no answer in '{answers}'")
    return (Message("user", JOINED_BY.join(given)), Message("assistant", answer))


def _messages(value: Any, where: str) -> Conversation:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: expected a list of messages, found {value!r:.60}")
    found: list[Message] = []
    for one in value:
        said = one if isinstance(one, dict) else {}
        role, content = said.get("role", said.get("from")), said.get("content", said.get("value"))
        role = SPEAKERS.get(role, role) if isinstance(role, str) else None
        if role is None or not isinstance(content, str) or not content.strip():
            raise DataError(f"{where}: a message needs a role and a content that is text, found {one!r:.60}")
        found.append(Message(role, content))
    try:
        check_conversation(found, where)
    except ConfigError as error:
        raise DataError(str(error)) from None
    if not any(one.role == "assistant" for one in found):
        raise DataError(f"{where}: has no answer, a message of the assistant")
    return tuple(found)
