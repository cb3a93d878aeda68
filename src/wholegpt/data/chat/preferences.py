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
from wholegpt.data.chat.conversations import ASKED, GIVEN
from wholegpt.data.chat.messages import (
    SYSTEM,
    checked_conversation,
    is_message_list,
    messages_of,
    prompt_of,
    refuse_tools_and_media,
    with_system,
)
from wholegpt.data.chat.packing import PADDING
from wholegpt.data.chat.splits import read_split
from wholegpt.data.chat.template import ChatTemplate, Conversation, EncodedConversation, Message
from wholegpt.data.examples.built_in import refuse_built_in
from wholegpt.data.examples.columns import TaskColumns
from wholegpt.data.examples.files import open_examples, save_examples
from wholegpt.data.permutation import endless_order
from wholegpt.data.reading.tables import Reading, Table
from wholegpt.errors import DataError
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
        refuse_built_in(config.finetuning.data, "pairs of a chosen and a rejected answer")
        return cls(*read_split(config, read_pairs, lambda one: one.prompt, "pairs", console))

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
    first = table.first_of
    chosen, rejected = first(CHOSEN), first(REJECTED)
    if not (chosen and rejected):
        lacking = "chosen" if rejected else "rejected" if chosen else "chosen and rejected"
        raise DataError(
            f"{table.path}: has no column of {lacking} answers; the columns are {', '.join(table.columns)}"
        )
    asked = first(ASKED)
    given = first(GIVEN, asked)
    columns = TaskColumns(tuple(name for name in (asked, given) if name), (chosen, rejected))
    system = first(SYSTEM)
    pairs = reading.examples(table, lambda row, where: _pair(row, columns, system, where), "a pair")
    table.note_unused((*columns.texts, *columns.answers, system), console)
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
    return PreferencePair(whole, chosen[-1].content, rejected[-1].content)


def _whole(prompt: Conversation, side: Conversation) -> Conversation:
    """Return a prompt with the messages of a side, which may begin with the prompt; without empty system messages."""
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
