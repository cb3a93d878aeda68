"""Conversations to learn from: read from tables in the common forms, divided, and kept in the run's folder.

======================  =====================================================================================
form                    columns
======================  =====================================================================================
messages                ``messages``: a list of ``role`` (system, user, assistant) and ``content``; or of ``from``
                        (system, human, gpt) and ``value``
instructions            ``instruction``, perhaps ``input``, ``output``
pairs                   ``prompt`` and ``response``, or other names of a text and what is to follow
======================  =====================================================================================
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wholegpt.config import Config
from wholegpt.data.chat_template import Conversation, Message, check_conversation
from wholegpt.data.example_files import open_examples, save_examples
from wholegpt.data.permutation import held_out_places
from wholegpt.data.tables import Table, read_table
from wholegpt.errors import ConfigError, DataError

MESSAGES = ("messages", "conversations", "conversation")
ASKED = ("instruction", "prompt", "question", "source", "document", "text", "input")
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

    @classmethod
    def read(cls, config: Config) -> "ConversationData":
        """From the tables that ``config.finetuning`` names. Raises ``DataError`` for tables that hold none."""
        settings, encoding = config.finetuning, config.data.encoding
        if not settings.data:
            raise ConfigError("no training examples are named; give --data FILE")
        asked, answered = settings.text_columns, settings.label_column
        train = read_conversations(read_table(Path(settings.data), encoding), asked, answered)
        if settings.validation:
            return cls(
                train, read_conversations(read_table(Path(settings.validation), encoding), asked, answered)
            )
        fraction = config.data.validation_fraction
        held_out = held_out_places(len(train), fraction, config.runtime.seed)
        if not 0 < len(held_out) < len(train):
            raise DataError(
                f"{settings.data}: has {len(train):,} conversations, too few to hold {fraction:.0%} of them out; give "
                "more, or held-out ones by --validation FILE"
            )
        sides = [[one for i, one in enumerate(train) if (i in held_out) is side] for side in (False, True)]
        return cls(*sides)

    @classmethod
    def open(cls, folder: Path) -> "ConversationData":
        """Back from ``save``. Raises ``DataError`` where a file is missing or not what it was."""
        _, train, validation = open_examples(folder, Conversation)
        return cls(train, validation)

    def save(self, folder: Path) -> str:
        """Write the conversations into a new ``folder``; returns the hash of all."""
        return save_examples(folder, {"conversations": True}, self.train, self.validation)


def holds_conversations(table: Table) -> bool:
    """Whether a table has columns of messages, or of questions and answers."""
    names = {column.lower() for column in table.columns}
    return not names.isdisjoint(MESSAGES) or not (names.isdisjoint(ASKED) or names.isdisjoint(ANSWERED))


def read_conversations(table: Table, asked: Sequence[str] = (), answered: str = "") -> list[Conversation]:
    """The conversations of a table; ``asked`` and ``answered`` name the columns of pairs, where they are not detected.

    Raises ``DataError`` naming the line of one without an answer, and listing the columns where none is an answer.
    """
    by_name = {column.lower(): column for column in table.columns}
    listed = next((by_name[name] for name in MESSAGES if name in by_name), "")
    if listed and not asked and not answered:
        return [_messages(table.rows[row].get(listed), table.where(row)) for row in range(len(table.rows))]
    answers = answered or next((by_name[name] for name in ANSWERED if name in by_name), "")
    names = [by_name[name] for name in ASKED if name in by_name and by_name[name] != answers]
    texts = list(asked) or names[:1]
    if not asked and "input" in by_name and by_name["input"] not in texts and by_name["input"] != answers:
        texts.append(by_name["input"])
    if not texts or not answers:
        lacking = (
            "answers (output, response, ...)" if texts else "prompts (instruction, prompt, ...), nor messages"
        )
        raise DataError(f"{table.path}: has no column of {lacking}; there are {', '.join(table.columns)}")
    for name in (*texts, answers):
        table.column(name)
    return [_pair(table, row, texts, answers) for row in range(len(table.rows))]


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
