"""Preference pairs: two answers to one prompt, of which one is preferred. Shapes: N pairs of a split.

A table has a column of the preferred answers (``chosen``, ``preferred_output``) and one of the others (``rejected``,
``non_preferred_output``). Both hold texts or lists of messages. The prompt is

- a text in ``prompt``, ``instruction``, ``question`` and so on, optionally with its ``input``, as in
  ``data.chat.conversations``;
- a list of messages, also within an object (``{"messages": [...]}``), as OpenAI writes it;
- or the messages that ``chosen`` and ``rejected`` have in common, as in TRL's implicit prompts. They may also repeat a
  prompt that is given.

For reward models, ``margin`` may say by how much the chosen answer is better.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
from jaxtyping import Float
from torch import Tensor

from wholegpt.console import Console
from wholegpt.data.chat.conversations import ASKED, GIVEN, JOINED_BY, held_out_by_prompt
from wholegpt.data.chat.messages import (
    ROLE_FIELDS,
    SYSTEM,
    decode_list,
    read_message,
    refuse_tools_and_media,
    with_system,
)
from wholegpt.data.chat.template import Conversation, Message, check_conversation
from wholegpt.data.examples.columns import TaskColumns
from wholegpt.data.examples.files import open_examples, save_examples
from wholegpt.data.reading.row import by_lower_name
from wholegpt.data.reading.tables import Reading, Table, number_of
from wholegpt.errors import ConfigError, DataError
from wholegpt.settings.choices import TaskKind
from wholegpt.settings.schema import Config

CHOSEN = ("chosen", "preferred", "preferred_output")
REJECTED = ("rejected", "non_preferred", "non_preferred_output", "dispreferred")
MARGIN = ("margin",)
QUIET = Console(quiet=True)


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


@dataclass(frozen=True)
class PreferenceData:
    """Pairs of the training and the validation split, which have no prompt in common."""

    train: list[PreferencePair]
    validation: list[PreferencePair]
    columns: TaskColumns
    """Those of the prompt (``texts``), of the chosen and the rejected answer (``answers``), and of the margin
    (``target``)."""

    @classmethod
    def read(cls, config: Config, console: Console = QUIET) -> "PreferenceData":
        """Read the tables that ``config.finetuning`` names; margins only for a reward model.

        Rows that are not a pair are skipped if ``data.on_bad_line`` is skip. Raises ``DataError`` for tables without
        pairs, and if the validation examples have a prompt of the training examples.
        """
        settings = config.finetuning
        if not settings.data:
            raise ConfigError("no training examples are named; give --data FILE")
        reading = Reading.of(config.data, settings.data, settings.validation)
        margins = settings.task is TaskKind.reward
        pairs, columns = read_pairs(reading.table(Path(settings.data)), reading, console, margins)
        if settings.validation:
            validation, _ = read_pairs(reading.table(Path(settings.validation)), reading, console, margins)
            reading.show(console)
            common = {one.prompt for one in pairs} & {one.prompt for one in validation}
            if common:
                raise DataError(
                    f"{settings.validation}: {len(common):,} of its prompts are in {settings.data}, too, so the "
                    "results of validation would be too optimistic; remove them, or leave out --validation"
                )
            return cls(pairs, validation, columns)
        reading.show(console)
        train, validation = held_out_by_prompt(settings.data, pairs, lambda one: one.prompt, config, "pairs")
        return cls(train, validation, columns)

    @classmethod
    def open(cls, folder: Path) -> "PreferenceData":
        """Load what ``save`` wrote. Raises ``DataError`` if a file is missing or has changed."""
        about, train, validation = open_examples(folder, PreferencePair)
        return cls(train, validation, msgspec.convert(about, TaskColumns))

    def save(self, folder: Path) -> str:
        """Write the pairs into a new ``folder``; return the hash of all."""
        return save_examples(folder, self.columns, self.train, self.validation)


def read_pairs(
    table: Table, reading: Reading, console: Console = QUIET, margins: bool = False
) -> tuple[list[PreferencePair], TaskColumns]:
    """Read the pairs of a table, with their ``margins`` if asked for; also return the columns that hold them.

    Raises ``DataError`` naming the line of a row that is not a pair, unless ``reading`` skips such rows, and listing
    the columns if none holds answers.
    """
    by_name = by_lower_name(table.columns)

    def first(names: Sequence[str]) -> str:
        return next((by_name[name] for name in names if name in by_name), "")

    chosen, rejected = first(CHOSEN), first(REJECTED)
    if not (chosen and rejected):
        lacking = "chosen" if rejected else "rejected" if chosen else "chosen and rejected"
        raise DataError(
            f"{table.path}: has no column of {lacking} answers; the columns are {', '.join(table.columns)}"
        )
    asked = first(ASKED)
    given = first([name for name in GIVEN if by_name.get(name) != asked])
    texts, margin = tuple(name for name in (asked, given) if name), first(MARGIN) if margins else ""
    columns = TaskColumns(texts, (chosen, rejected), margin)
    system, pairs, problem = first(SYSTEM), list[PreferencePair](), ""
    for number in range(len(table.rows)):
        try:
            pairs.append(_pair(table.rows[number], columns, system, table.where(number)))
        except DataError as error:
            reading.skip_record(error)
            problem = problem or str(error)
    if not pairs:
        raise DataError(f"{table.path}: none of {len(table.rows):,} rows is a pair; {problem}")
    used = [name for name in (*columns.texts, *columns.answers, system, margin) if name]
    if unused := [name for name in table.columns if name not in used]:
        console.note(f"{table.path}: columns {', '.join(used)}; not used: {', '.join(unused)}")
    return pairs, columns


def _pair(row: Mapping[str, Any], columns: TaskColumns, system: str, where: str) -> PreferencePair:
    refuse_tools_and_media(row, where)
    prompt = _prompt([row.get(name) for name in columns.texts], where)
    chosen, rejected = (
        _whole(prompt, _answer(row.get(name), f"{where}: {name}")) for name in columns.answers
    )
    if chosen[:-1] != rejected[:-1]:
        raise DataError(f"{where}: {columns.answers[0]} and {columns.answers[1]} answer different prompts")
    if len(chosen) == 1:
        raise DataError(f"{where}: has no prompt")
    if chosen == rejected:
        raise DataError(f"{where}: the two answers are equal, so neither is preferred")
    try:
        check_conversation(chosen, where)
    except ConfigError as error:
        raise DataError(str(error)) from None
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
    """Return a prompt with the messages of a side, which may begin with the prompt; without empty system messages."""
    told = side[:1] if side[0].role == "system" and prompt[:1] != side[:1] else ()
    repeated = side[len(told) : len(told) + len(prompt)] == prompt
    whole = side if repeated else (*prompt, *side)
    return tuple(one for one in whole if one.content.strip() or one.role != "system")


def _prompt(values: Sequence[Any], where: str) -> Conversation:
    """Return the messages of a prompt: a text and its input, or messages; none if there is neither."""
    first = values[0] if values else None
    if isinstance(first, Mapping) and "messages" in first:
        first = first["messages"]
    if (first is not None and not isinstance(first, str)) or (isinstance(first, str) and _is_list(first)):
        return _messages(first, f"{where}: the prompt")
    texts = [one for one in values if isinstance(one, str) and one.strip()]
    return (Message("user", JOINED_BY.join(texts)),) if texts else ()


def _answer(value: Any, where: str) -> Conversation:
    """Return the messages of one side; a text is the assistant's answer."""
    if isinstance(value, str) and not _is_list(value):
        if not value.strip():
            raise DataError(f"{where}: is empty")
        return (Message("assistant", value),)
    if value is None:
        raise DataError(f"{where}: is missing")
    return _messages([value] if isinstance(value, Mapping) else value, where)


def _is_list(text: str) -> bool:
    """Return whether a text is the JSON of a list of messages, and not a text that happens to be JSON."""
    listed = decode_list(text) if text.lstrip().startswith("[") else None
    return (
        isinstance(listed, list)
        and bool(listed)
        and all(isinstance(one, Mapping) and not {*ROLE_FIELDS}.isdisjoint(one) for one in listed)
    )


def _messages(value: Any, where: str) -> Conversation:
    listed = decode_list(value)
    if not isinstance(listed, list) or not listed:
        raise DataError(f"{where}: expected a text or a list of messages, found {value!r:.60}")
    return tuple(read_message(one, f"{where}: message {number}") for number, one in enumerate(listed, 1))


def mismatched(pairs: Sequence[PreferencePair], donors: Sequence[PreferencePair]) -> list[PreferencePair]:
    """Return each prompt with the answers of the next donor, in a circle, that has another prompt.

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
