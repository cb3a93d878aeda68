"""Preference pairs: two answers to one prompt, of which one is preferred. Shapes: B pairs, T positions.

A table has a column of the preferred answers (``chosen``, ``preferred_output``) and one of the others (``rejected``,
``non_preferred_output``). Both hold texts or lists of messages. The prompt is

- a text in ``prompt``, ``instruction``, ``question`` and so on, optionally with its ``input``, as in
  ``data.chat.conversations``;
- a list of messages, also within an object (``{"messages": [...]}``), as OpenAI writes it;
- or the messages that ``chosen`` and ``rejected`` have in common, as in TRL's implicit prompts. They may also repeat a
  prompt that is given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from jaxtyping import Float, Int
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
from wholegpt.data.chat.packing import PADDING
from wholegpt.data.chat.template import (
    ChatTemplate,
    Conversation,
    EncodedConversation,
    Message,
    check_conversation,
)
from wholegpt.data.examples.columns import TaskColumns
from wholegpt.data.examples.files import open_examples, save_examples
from wholegpt.data.permutation import endless_order
from wholegpt.data.reading.row import by_lower_name
from wholegpt.data.reading.tables import Reading, Table
from wholegpt.errors import ConfigError, DataError
from wholegpt.losses import IGNORED
from wholegpt.settings.schema import Config
from wholegpt.tokenizers import Tokenizer

CHOSEN = ("chosen", "preferred", "preferred_output")
REJECTED = ("rejected", "non_preferred", "non_preferred_output", "dispreferred")
QUIET = Console(quiet=True)


@dataclass(frozen=True)
class PreferencePair:
    """A prompt, and two answers to it."""

    prompt: Conversation
    chosen: str
    rejected: str
    reference: tuple[float, float] = (0.0, 0.0)
    """ln π_ref of ``chosen`` and ``rejected``, in nats; 0 if no reference is needed."""


@dataclass(frozen=True)
class PreferenceData:
    """Pairs of the training and the validation split, which have no prompt in common."""

    train: list[PreferencePair]
    validation: list[PreferencePair]
    columns: TaskColumns
    """Those of the prompt (``texts``), and of the chosen and the rejected answer (``answers``)."""

    @classmethod
    def read(cls, config: Config, console: Console = QUIET) -> "PreferenceData":
        """Read the tables that ``config.finetuning`` names.

        Rows that are not a pair are skipped if ``data.on_bad_line`` is skip. Raises ``DataError`` for tables without
        pairs, and if the validation examples have a prompt of the training examples.
        """
        settings = config.finetuning
        if not settings.data:
            raise ConfigError("no training examples are named; give --data FILE")
        reading = Reading.of(config.data, settings.data, settings.validation)
        pairs, columns = read_pairs(reading.table(Path(settings.data)), reading, console)
        if settings.validation:
            validation, _ = read_pairs(reading.table(Path(settings.validation)), reading, console)
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
    table: Table, reading: Reading, console: Console = QUIET
) -> tuple[list[PreferencePair], TaskColumns]:
    """Read the pairs of a table; also return the columns that hold them.

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
    columns = TaskColumns(tuple(name for name in (asked, given) if name), (chosen, rejected))
    system, pairs, problem = first(SYSTEM), list[PreferencePair](), ""
    for number in range(len(table.rows)):
        try:
            pairs.append(_pair(table.rows[number], columns, system, table.where(number)))
        except DataError as error:
            reading.skip_record(error)
            problem = problem or str(error)
    if not pairs:
        raise DataError(f"{table.path}: none of {len(table.rows):,} rows is a pair; {problem}")
    used = {*columns.texts, *columns.answers, system}
    if unused := [name for name in table.columns if name not in used]:
        shown = ", ".join([*columns.texts, *columns.answers, *([system] if system else [])])
        console.note(f"{table.path}: columns {shown}; not used: {', '.join(unused)}")
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
    return PreferencePair(whole, chosen[-1].content, rejected[-1].content)


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


@dataclass(frozen=True)
class EncodedPair:
    """A pair as token ids; only the answers are scored."""

    pair: PreferencePair
    sides: tuple[EncodedConversation, EncodedConversation]
    """The prompt with the chosen answer, and with the rejected one."""
    cut: bool
    """Whether a part of an answer is beyond the window."""


def encode_pairs(
    pairs: Sequence[PreferencePair], template: ChatTemplate, tokenizer: Tokenizer, length: int
) -> list[EncodedPair]:
    """Encode pairs, cut to at most ``length`` + 1 tokens; leave out those whose prompt fills these.

    Raises ``DataError`` if none is left.
    """
    encoded: list[EncodedPair] = []
    for pair in pairs:
        asked = len(template.encode(pair.prompt, tokenizer, generation_prompt=True).token_ids)
        if asked > length:
            continue
        wholes = [
            template.encode((*pair.prompt, Message("assistant", answer)), tokenizer)
            for answer in (pair.chosen, pair.rejected)
        ]
        chosen, rejected = (
            EncodedConversation(
                one.token_ids[: length + 1],
                [counts and i >= asked for i, counts in enumerate(one.scored[: length + 1])],
            )
            for one in wholes
        )
        cut = any(len(one.token_ids) > length + 1 for one in wholes)
        encoded.append(EncodedPair(pair, (chosen, rejected), cut))
    if not encoded:
        raise DataError(
            f"none of {len(pairs):,} pairs has a prompt that leaves room for an answer in {length:,} tokens; shorten "
            "the prompts, or raise that limit (--windows.length, or the model's context)"
        )
    return encoded


@dataclass(frozen=True)
class PairBatch:
    """A batch of pairs, padded at the end to the longest side; the chosen side is the first."""

    token_ids: Int[Tensor, "B 2 T"]
    targets: Int[Tensor, "B 2 T"]
    """The next token where it belongs to the answer, ``IGNORED`` elsewhere."""
    reference: Float[Tensor, "B 2"]
    """ln π_ref of both answers, in nats."""

    def __len__(self) -> int:
        return len(self.token_ids)

    def rows(self, start: int, end: int) -> "PairBatch":
        """Return pairs ``start`` to ``end`` − 1: a micro-batch."""
        return PairBatch(self.token_ids[start:end], self.targets[start:end], self.reference[start:end])

    def to(self, device: torch.device) -> "PairBatch":
        """Return the batch on ``device``."""
        return PairBatch(self.token_ids.to(device), self.targets.to(device), self.reference.to(device))


def collate_pairs(pairs: Sequence[EncodedPair]) -> PairBatch:
    """Collate pairs of different lengths."""
    longest = max(len(side.token_ids) for pair in pairs for side in pair.sides) - 1
    token_ids = torch.full((len(pairs), 2, longest), PADDING)
    targets = torch.full((len(pairs), 2, longest), IGNORED)
    for row, pair in enumerate(pairs):
        for column, side in enumerate(pair.sides):
            ids, scored = torch.tensor(side.token_ids), torch.tensor(side.scored[1:])
            token_ids[row, column, : len(ids) - 1] = ids[:-1]
            targets[row, column, : len(ids) - 1] = ids[1:].masked_fill(~scored, IGNORED)
    reference = torch.tensor([one.pair.reference for one in pairs], dtype=torch.float32)
    return PairBatch(token_ids, targets, reference)


class PairLoader:
    """Yields batches of pairs, in a new order in every epoch; each batch is a function of (seed, step)."""

    def __init__(self, pairs: Sequence[EncodedPair], batch_size: int, seed: int) -> None:
        self.pairs, self.batch_size, self.seed = pairs, batch_size, seed

    def batch(self, step: int) -> PairBatch:
        """Return the pairs of optimizer step ``step`` (from 0)."""
        chosen = endless_order(step * self.batch_size, self.batch_size, len(self.pairs), self.seed)
        return collate_pairs([self.pairs[i] for i in chosen])


def with_references(pairs: Sequence[EncodedPair], references: Float[Tensor, "N 2"]) -> list[PreferencePair]:
    """Return the pairs with their reference log-probabilities."""
    return [
        replace(one.pair, reference=(chosen, rejected))
        for one, (chosen, rejected) in zip(pairs, references.tolist(), strict=True)
    ]
