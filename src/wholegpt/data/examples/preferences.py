"""Preference pairs: two answers to one prompt, of which one is preferred. Shapes: N pairs of a split.

A table has a column of the preferred answers (``chosen``, ``preferred_output``) and one of the others (``rejected``,
``non_preferred_output``). Both hold texts or lists of messages. The prompt is

- a text in ``prompt``, ``instruction``, ``question`` and so on, optionally with its ``input``, as in
  ``data.examples.conversations``;
- a list of messages, also within an object (``{"messages": [...]}``), as OpenAI writes it;
- or the messages that ``chosen`` and ``rejected`` have in common, as in TRL's implicit prompts. They may also repeat a
  prompt that is given.

For reward models, ``margin`` may say by how much the chosen answer is better.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from jaxtyping import Float
from torch import Tensor

from wholegpt.console import QUIET, Console
from wholegpt.data.chat.messages import (
    SYSTEM,
    checked_conversation,
    is_message_list,
    messages_of,
    prompt_of,
    refuse_tools_and_media,
    with_system,
)
from wholegpt.data.chat.template import Conversation, Message
from wholegpt.data.examples.built_in import refuse_built_in
from wholegpt.data.examples.columns import TaskColumns
from wholegpt.data.examples.conversations import ASKED, GIVEN
from wholegpt.data.examples.files import open_examples, save_examples
from wholegpt.data.examples.splits import read_split
from wholegpt.data.reading.decoding import ReadingReport
from wholegpt.data.reading.tables import Reading, Table, number_of
from wholegpt.errors import DataError
from wholegpt.settings.schema import Config

CHOSEN = ("chosen", "preferred", "preferred_output")
REJECTED = ("rejected", "non_preferred", "non_preferred_output", "dispreferred")
MARGIN = ("margin",)


@dataclass(frozen=True)
class PreferencePair:
    """A prompt, and two answers to it."""

    prompt: Conversation
    chosen: str
    rejected: str
    reference: tuple[float, float] = (0.0, 0.0)
    """ln π_ref of ``chosen`` and ``rejected``, in nats; 0 if no reference is needed."""
    margin: float = 0.0
    """The margin m of a reward model (E18)."""
    mismatched_reference: tuple[float, float] = (0.0, 0.0)
    """For kto: ln π_ref of two answers to another prompt (``mismatched``), in nats."""
    reference_answer: str = ""
    """What the reference answers; empty if it was not asked."""


@dataclass(frozen=True)
class PreferenceData:
    """Pairs of the training and the validation split, which have no prompt in common."""

    train: list[PreferencePair]
    validation: list[PreferencePair]
    columns: TaskColumns
    """Those of the prompt (``texts``), of the chosen and the rejected answer (``answers``), and of the margin
    (``target``)."""

    @classmethod
    def read(cls, config: Config, console: Console = QUIET, margins: bool = False) -> "PreferenceData":
        """Read the tables that ``config.finetuning`` names, with ``margins`` if asked for.

        Rows that are not a pair are skipped if ``data.on_bad_line`` is skip. Raises ``DataError`` for tables without
        pairs, and if the validation examples have a prompt of the training examples.
        """
        refuse_built_in(config.finetuning.data, "pairs of a chosen and a rejected answer")
        read = partial(read_pairs, margins=margins)
        return cls(*read_split(config, read, lambda one: one.prompt, "pairs", console))

    @classmethod
    def open(cls, folder: Path) -> "PreferenceData":
        """Load what ``save`` wrote. Raises ``DataError`` if a file is missing or has changed."""
        about, train, validation = open_examples(folder, PreferencePair)
        return cls(train, validation, msgspec.convert(about, TaskColumns))

    def save(self, folder: Path) -> str:
        """Write the pairs into a new ``folder``; return the hash of all."""
        return save_examples(folder, self.columns, self.train, self.validation)


def holds_pairs(path: Path, reading: Reading) -> bool:
    """Return whether a file is a table with columns of chosen and of rejected answers."""
    try:
        table = replace(reading, report=ReadingReport()).table(path)
    except DataError:
        return False
    return bool(table.first_of(CHOSEN) and table.first_of(REJECTED))


def read_pairs(
    table: Table, reading: Reading, console: Console = QUIET, margins: bool = False
) -> tuple[list[PreferencePair], TaskColumns]:
    """Read the pairs of a table, with their ``margins`` if asked for; also return the columns that hold them.

    Raises ``DataError`` naming the line of a row that is not a pair, unless ``reading`` skips such rows, and listing
    the columns if none holds answers.
    """
    first = table.first_of
    chosen, rejected = first(CHOSEN), first(REJECTED)
    if not (chosen and rejected):
        lacking = "chosen" if rejected else "rejected" if chosen else "chosen and rejected"
        raise DataError(
            f"{table.path}: has no column of {lacking} answers; the columns are {', '.join(table.columns)} (prompts "
            "without pairs are for --method grpo and ppo)"
        )
    asked = first(ASKED)
    given, margin = first(GIVEN, asked), first(MARGIN) if margins else ""
    texts = tuple(name for name in (asked, given) if name)
    columns, system = TaskColumns(texts, (chosen, rejected), margin), first(SYSTEM)
    pairs = reading.examples(table, lambda row, where: _pair(row, columns, system, where), "a pair")
    table.note_unused((*columns.texts, *columns.answers, system, margin), console)
    return pairs, columns


def _pair(row: Mapping[str, Any], columns: TaskColumns, system: str, where: str) -> PreferencePair:
    refuse_tools_and_media(row, where)
    prompt = prompt_of([row.get(name) for name in columns.texts], where)
    chosen, rejected = (
        _whole(prompt, _answer(row.get(name), f"{where}: {name}")) for name in columns.answers
    )
    if chosen[:-1] != rejected[:-1]:
        raise DataError(f"{where}: {columns.answers[0]} and {columns.answers[1]} answer different prompts")
    if len(chosen) == 1:
        raise DataError(f"{where}: has no prompt")
    if chosen == rejected:
        raise DataError(f"{where}: the two answers are equal, so neither is preferred")
    checked_conversation(chosen, where)
    if chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
        raise DataError(f"{where}: the last message of a side must be the assistant's")
    whole = with_system(chosen[:-1], row.get(system), system, where)
    margin = _margin(row.get(columns.target), where) if columns.target else 0.0
    return PreferencePair(whole, chosen[-1].content, rejected[-1].content, margin=margin)


def _margin(value: Any, where: str) -> float:
    """Return a margin; 0 if there is none. Raises ``DataError`` unless it is a finite number of at least 0."""
    if value is None or value == "":
        return 0.0
    margin = None if isinstance(value, bool) else number_of(str(value))
    if margin is None or margin < 0:
        raise DataError(f"{where}: the margin is {value!r:.40}; expected a finite number of at least 0")
    return margin


def _whole(prompt: Conversation, side: Conversation) -> Conversation:
    """Return the prompt followed by the messages of a side, which may repeat it; drop empty system messages."""
    told = side[:1] if side[0].role == "system" and prompt[:1] != side[:1] else ()
    repeated = side[len(told) : len(told) + len(prompt)] == prompt
    whole = side if repeated else (*prompt, *side)
    return tuple(one for one in whole if one.content.strip() or one.role != "system")


def _answer(value: Any, where: str) -> Conversation:
    """Return the messages of one side; a text is the assistant's answer."""
    if isinstance(value, str) and not is_message_list(value):
        if not value.strip():
            raise DataError(f"{where}: is empty")
        return (Message("assistant", value),)
    if value is None:
        raise DataError(f"{where}: is missing")
    listed = [value] if isinstance(value, Mapping) else value
    return messages_of(listed, where, "a text or a list of messages")


def mismatched(pairs: Sequence[PreferencePair], donors: Sequence[PreferencePair]) -> list[PreferencePair]:
    """Return each prompt with both answers of the next donor that has a different prompt; the first follows the last.

    KTO estimates a KL divergence from them (Ethayarajh et al. 2024, section 4.2). Raises ``DataError`` if there is no
    such donor.
    """
    found: list[PreferencePair] = []
    for index, pair in enumerate(pairs):
        after = (donors[(index + step) % len(donors)] for step in range(1, len(donors) + 1))
        donor = next((one for one in after if one.prompt != pair.prompt), None)
        if donor is None:
            raise DataError(
                "all training pairs have the same prompt, and kto needs answers to other prompts; use another "
                "--alignment.loss"
            )
        found.append(PreferencePair(pair.prompt, donor.chosen, donor.rejected, pair.mismatched_reference))
    return found


def with_mismatched_references(
    pairs: Sequence[PreferencePair], references: Float[Tensor, "N 2"]
) -> list[PreferencePair]:
    """Return the pairs with the reference log-probabilities of their ``mismatched`` answers."""
    return [
        replace(one, mismatched_reference=(chosen, rejected))
        for one, (chosen, rejected) in zip(pairs, references.tolist(), strict=True)
    ]
