"""Prompts for reinforcement learning: what a model completes, optionally with the right answer.

A table has

- a column of prompts: texts in ``prompt``, ``instruction``, ``question`` and so on, optionally with their ``input``, as
  in ``data.examples.conversations``, or lists of messages;
- or a column ``messages``, each a conversation; a last message of the assistant is the right answer.

A column ``answer``, ``solution``, ``ground_truth`` and so on holds the right answers.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from wholegpt.console import QUIET, Console
from wholegpt.data.chat.messages import (
    MESSAGES,
    SYSTEM,
    checked_conversation,
    conversation_of,
    prompt_of,
    refuse_tools_and_media,
    with_system,
)
from wholegpt.data.chat.template import ChatTemplate, Conversation, Message
from wholegpt.data.examples.built_in import built_in_exercises
from wholegpt.data.examples.columns import TaskColumns
from wholegpt.data.examples.conversations import ANSWERED, ASKED, GIVEN
from wholegpt.data.examples.files import open_examples, save_examples
from wholegpt.data.examples.preferences import CHOSEN, REJECTED
from wholegpt.data.examples.splits import read_split
from wholegpt.data.reading.tables import Reading, Table
from wholegpt.errors import DataError, counted
from wholegpt.settings.schema import Config
from wholegpt.tokenizers import Tokenizer

RIGHT_ANSWERS = ("answer", "solution", "ground_truth", *ANSWERED, "label")
"""Columns of right answers."""


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends with a message of the user."""

    messages: Conversation
    answer: str = ""
    """The right answer; empty if it is not known."""


@dataclass(frozen=True)
class PromptData:
    """Prompts of the training and the validation split, which have none in common."""

    train: list[Prompt]
    validation: list[Prompt]
    columns: TaskColumns
    """Those of the prompt (``texts``) and of the right answer (``target``, empty if there is none)."""

    @classmethod
    def read(cls, config: Config, console: Console = QUIET) -> "PromptData":
        """Read the tables or the built-in task that ``config.finetuning`` names.

        Training prompts that occur more than once are kept, with a note. Rows without a prompt are skipped if
        ``data.on_bad_line`` is skip. Raises ``DataError`` for tables without prompts, and if the validation examples
        have a prompt of the training examples.
        """
        if exercises := built_in_exercises(config):
            train, validation = (
                [Prompt((Message("user", one.prompt),), one.answer) for one in side] for side in exercises
            )
            return cls(train, validation, TaskColumns(("prompt",), (), "answer"))
        data = cls(*read_split(config, read_prompts, lambda one: one.messages, "prompts", console))
        repeated = len(data.train) - len({one.messages for one in data.train})
        if repeated:
            console.note(
                f"{config.finetuning.data}: {repeated:,} of {len(data.train):,} training prompts repeat an earlier "
                "one; these are used more often"
            )
        return data

    @classmethod
    def open(cls, folder: Path) -> "PromptData":
        """Load what ``save`` wrote. Raises ``DataError`` if a file is missing or has changed."""
        about, train, validation = open_examples(folder, Prompt)
        return cls(train, validation, msgspec.convert(about, TaskColumns))

    def save(self, folder: Path) -> str:
        """Write the prompts into a new ``folder``; return the hash of all."""
        return save_examples(folder, self.columns, self.train, self.validation)


def read_prompts(
    table: Table, reading: Reading, console: Console = QUIET
) -> tuple[list[Prompt], TaskColumns]:
    """Read the prompts of a table; also return the columns that hold them and their answers.

    Raises ``DataError`` naming the line of a row without a prompt, unless ``reading`` skips such rows, and listing the
    columns if none holds prompts.
    """
    first = table.first_of
    listed = first(MESSAGES)
    asked = listed or first(ASKED)
    if not asked:
        raise DataError(
            f"{table.path}: has no column of prompts (prompt, instruction, question, messages, ...); the columns are "
            f"{', '.join(table.columns)}"
        )
    if first(CHOSEN) and first(REJECTED):
        raise DataError(
            f"{table.path}: has pairs of a chosen and a rejected answer, which are for --method dpo and reward"
        )
    given = "" if listed else first(GIVEN, asked)
    texts = tuple(name for name in (asked, given) if name)
    columns = TaskColumns(texts, (), first(RIGHT_ANSWERS, *texts))
    system = first(SYSTEM, *texts)

    def read(row: Mapping[str, Any], where: str) -> Prompt:
        refuse_tools_and_media(row, where)
        values = [row.get(name) for name in texts]
        messages = conversation_of(values[0], where) if listed else _asked(values, where)
        return _prompt(with_system(messages, row.get(system), system, where), row, columns.target, where)

    prompts = reading.examples(table, read, "a prompt")
    table.note_unused((*texts, columns.target, system), console)
    return prompts, columns


def _asked(values: Sequence[Any], where: str) -> Conversation:
    messages = prompt_of(values, where)
    if not messages:
        raise DataError(f"{where}: has no prompt")
    return checked_conversation(messages, where)


def _prompt(messages: Conversation, row: Mapping[str, Any], column: str, where: str) -> Prompt:
    """Return the prompt of a conversation, whose last message may be the right answer."""
    answer = _right_answer(row.get(column), f"{where}: {column}")
    if messages[-1].role == "assistant":
        messages, last = messages[:-1], messages[-1].content
        if answer and answer.strip() != last.strip():
            raise DataError(f"{where}: '{column}' differs from the last message, which is an answer, too")
        answer = last
    if not messages or messages[-1].role != "user":
        raise DataError(f"{where}: has no prompt")
    return Prompt(messages, answer)


def _right_answer(value: Any, where: str) -> str:
    """Return an answer as text; numbers as in JSON."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, float) and not math.isfinite(value):
        if math.isnan(value):  # a missing number in a table of numbers
            return ""
        raise DataError(f"{where}: expected a text or a finite number, found {value}")
    if isinstance(value, int | float):
        return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value)
    raise DataError(
        f"{where}: expected a text, found {value!r:.40}; rename or remove a column that holds no answers"
    )


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as token ids, up to the start of the answer."""

    prompt: Prompt
    token_ids: list[int]


def encode_prompts(
    prompts: Sequence[Prompt],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    context_length: int,
    console: Console | None = None,
) -> list[EncodedPrompt]:
    """Encode prompts; leave out those that fill the context, with a warning on ``console``.

    A prompt is kept if the context has room for one token after it, and the end of the completion. Raises ``DataError``
    if none is left.
    """
    encoded = [
        EncodedPrompt(one, template.encode(one.messages, tokenizer, generation_prompt=True).token_ids)
        for one in prompts
    ]
    fitting = [one for one in encoded if len(one.token_ids) < context_length]
    if not fitting:
        raise DataError(
            f"none of {len(prompts):,} prompts leaves room for a completion in the model's context of "
            f"{context_length:,} tokens; shorten them"
        )
    left_out = len(encoded) - len(fitting)
    if left_out and console:
        console.warn(
            f"left out, because they fill the model's context of {context_length:,} tokens: "
            f"{counted(left_out, 'prompts')}"
        )
    return fitting
