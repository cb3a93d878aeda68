"""Task examples from tables, and their token sequences (Radford et al. 2018, figure 1).

==============  ====================================================================
=========================
task            columns, by these names or detected                                    sequences of an example
==============  ====================================================================
=========================
classification  a text, a label                                                        text
entailment      two texts (premise, hypothesis), a label                               premise $ hypothesis
similarity      two texts, a label or a score                                          both orders
choice          ``context`` (optionally ``question``), choices, the correct one        context $ choice, for
each
==============  ====================================================================
=========================

A sequence is ``start text [delimiter text] classify``, where all three tokens are new in the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from wholegpt.data.examples.columns import TaskColumns, columns_in, detect_choices, detect_columns, only_texts
from wholegpt.data.reading.tables import Reading, Table, number_of
from wholegpt.errors import DataError
from wholegpt.settings.choices import TaskKind
from wholegpt.settings.serialization import nearest
from wholegpt.tokenizers import Tokenizer

START, DELIMITER, CLASSIFY = "<|start|>", "<|delimiter|>", "<|classify|>"
SPECIAL_TOKENS = (START, DELIMITER, CLASSIFY)
MOST_LABELS = 1000
SCORE_VALUES = 10
"""Numbers with more distinct values, or with decimals, are scores and not labels."""
MOST_MISTAKES = 0.1
"""Largest share of a score column that may be not numeric; the first such value is an error."""
LARGEST_SCORE = 1e9


@dataclass(frozen=True)
class Task:
    """What a model with a head predicts, and the meaning of its outputs."""

    kind: TaskKind
    labels: tuple[str, ...] = ()
    """The class of each output; empty for choices, which have one output each, and for scores."""
    mean: float = 0.0
    """Mean of the training scores: the output is (score − mean) / standard deviation."""
    standard_deviation: float = 1.0
    columns: TaskColumns = field(default_factory=TaskColumns)
    """The columns of the training examples."""

    @property
    def scores(self) -> bool:
        """Return whether the prediction is a score or a reward, not a label or a choice."""
        return self.kind is TaskKind.reward or (self.kind is TaskKind.similarity and not self.labels)

    @property
    def outputs(self) -> int:
        """Return O, the number of outputs of the head."""
        return len(self.labels) or 1

    def target(self, example: "TaskExample") -> int | float:
        """Return the target of the outputs: the class, the index of the correct choice, or the scaled score."""
        if isinstance(example.target, str):
            return self.labels.index(example.target)
        return (example.target - self.mean) / self.standard_deviation if self.scores else int(example.target)


@dataclass(frozen=True)
class TaskExample:
    """One example, as texts."""

    parts: tuple[tuple[str, ...], ...]
    """The texts of each sequence."""
    target: str | float
    """The label, the score, or the index of the correct choice, from 0."""


def read_examples(
    table: Table,
    task: TaskKind,
    columns: TaskColumns | None = None,
    scores: bool | None = None,
    labels: Sequence[str] = (),
    reading: Reading | None = None,
) -> tuple[list[TaskExample], TaskColumns]:
    """Read the examples of a table; also return the columns that hold them.

    ``scores`` says whether a similarity is a number or a label; ``None``: a number if there are decimals or
    more than ten distinct values. ``labels`` are the allowed labels, those of the training examples. Raises
    ``DataError`` naming the line of an empty text, a missing or unknown label, or a choice out of range,
    unless ``reading`` skips such rows, and listing the columns if none fits.
    """
    found, reading = detect_columns(table, task, columns or TaskColumns()), reading or Reading()
    values = [_cell(value) for value in table.column(found.target)]
    given = [value for value in values if value]
    numeric = task is TaskKind.similarity and (_are_scores(given) if scores is None else scores)
    examples: list[TaskExample] = []
    for row, value in enumerate(values):
        try:
            example = (
                _choice(table, row, found)
                if task is TaskKind.choice
                else _labeled(table, row, task, found, value, numeric)
            )
            if labels:
                check_label(example, labels, table.where(row))
        except DataError as error:
            reading.skip_record(error)
        else:
            examples.append(example)
    if not examples:
        raise DataError(f"{table.path}: holds no examples; skipped {reading.report.skipped_text()}")
    return examples, found


def _labeled(
    table: Table, row: int, task: TaskKind, columns: TaskColumns, value: str, numeric: bool
) -> TaskExample:
    texts = tuple(_text(table, row, name) for name in columns.texts)
    if not value:
        raise DataError(f"{table.where(row)}: has no {'score' if numeric else 'label'} in '{columns.target}'")
    target = _score(table, row, value, columns.target) if numeric else value
    return TaskExample(_parts(table, row, task, texts), target)


def read_parts(table: Table, task: Task, reading: Reading) -> list[tuple[tuple[str, ...], ...]]:
    """Read the texts of each sequence of examples without labels.

    They come from the columns of the training examples, or from the only text columns of the table. Raises
    ``DataError`` like ``read_examples``, and if there are other text columns.
    """
    columns = columns_in(table, task.columns)
    choices = detect_choices(table, columns) if task.kind is TaskKind.choice else None
    names = (
        ()
        if choices
        else columns.texts or only_texts(table, task.kind, task.columns.texts, (task.columns.target,))
    )
    parts: list[tuple[tuple[str, ...], ...]] = []
    for row in range(len(table.rows)):
        try:
            texts = (
                _choice_texts(table, row, choices) if choices else [_text(table, row, name) for name in names]
            )
            parts.append(_parts(table, row, task.kind, texts))
        except DataError as error:
            reading.skip_record(error)
    return parts


def _parts(table: Table, row: int, kind: TaskKind, texts: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    try:
        return parts_of(kind, *texts)
    except DataError as error:
        raise DataError(f"{table.where(row)}: {error}") from None


def parts_of(kind: TaskKind, *texts: str) -> tuple[tuple[str, ...], ...]:
    """Return the sequences of an example's texts; for multiple choice, the first text is the context.

    Raises ``DataError`` for a number of texts that does not fit the task, and for an empty text.
    """
    wanted = {TaskKind.classification: "one text", TaskKind.choice: "a context and at least two answers"}
    fits = {TaskKind.classification: len(texts) == 1, TaskKind.choice: len(texts) > 2}.get(
        kind, len(texts) == 2
    )
    if not fits:
        raise DataError(f"{kind} needs {wanted.get(kind, 'two texts')}, found {len(texts)}")
    if not all(text.strip() for text in texts):
        raise DataError("an empty text")
    if kind is TaskKind.choice and len(set(texts[1:])) < len(texts) - 1:
        raise DataError("two of the answers are the same")
    if kind is TaskKind.choice:
        return tuple((texts[0], answer) for answer in texts[1:])
    return (texts, texts[::-1]) if kind is TaskKind.similarity else (texts,)


def label_names(examples: Sequence[TaskExample], where: str) -> list[str]:
    """Return the labels of training examples in order: numerically if all are numbers, else by name.

    Raises ``DataError`` for a single label, for one with a single example, and for more than ``MOST_LABELS``
    labels.
    """
    counts: dict[str, int] = {}
    for example in examples:
        assert isinstance(example.target, str)
        counts[example.target] = counts.get(example.target, 0) + 1
    if len(counts) < 2:
        raise DataError(
            f"{where}: every example has the label '{next(iter(counts), '')}'; there is nothing to learn"
        )
    if len(counts) > MOST_LABELS:
        raise DataError(
            f"{where}: has {len(counts):,} different labels; at most {MOST_LABELS:,} are supported; for numeric scores "
            "use --task similarity"
        )
    alone = sorted(label for label, count in counts.items() if count == 1)
    if alone:
        raise DataError(f"{where}: the label '{alone[0]}' has a single example; give more, or leave it out")
    numbers = {label: number_of(label) for label in counts}
    if all(number is not None for number in numbers.values()):
        return sorted(counts, key=lambda label: (numbers[label] or 0.0, label))
    return sorted(counts)


def check_label(example: TaskExample, labels: Sequence[str], where: str) -> None:
    """Raise ``DataError`` for a label that no training example has."""
    if example.target not in labels:
        raise DataError(
            f"{where}: the label '{example.target}' is not in the training examples; "
            f"{nearest(str(example.target), list(labels))}"
        )


@dataclass(frozen=True)
class EncodedExample:
    """The token sequences of an example."""

    sequences: tuple[tuple[int, ...], ...]
    cut: int
    """Tokens that were removed to make the sequences fit."""
    second: tuple[int, ...]
    """Position of the second text of each sequence; the length of the sequence if it has one text."""


def encode_example(
    parts: Sequence[Sequence[str]], tokenizer: Tokenizer, context_length: int
) -> EncodedExample:
    """Return ``start text [delimiter text] classify`` of each sequence, at most τ tokens.

    A sequence that is too long loses tokens at the end of its longest text, one at a time, until it fits.
    """
    start, delimiter, classify = (_required(tokenizer, name) for name in SPECIAL_TOKENS)
    token_ids = {text: tokenizer.encode(text) for text in {text for texts in parts for text in texts}}
    sequences: list[tuple[int, ...]] = []
    cut, second = 0, list[int]()
    for texts in parts:
        encoded = [token_ids[text] for text in texts]
        lengths = _fitting([len(ids) for ids in encoded], context_length - len(texts) - 1)
        cut += sum(len(ids) for ids in encoded) - sum(lengths)
        sequence = [start]
        for number, (ids, length) in enumerate(zip(encoded, lengths, strict=True)):
            sequence += [*([delimiter] if number else []), *ids[:length]]
        sequences.append((*sequence, classify))
        second.append(2 + lengths[0] if len(texts) > 1 else len(sequences[-1]))
    return EncodedExample(tuple(sequences), cut, tuple(second))


def _fitting(lengths: Sequence[int], room: int) -> list[int]:
    """Return lengths of at most ``room`` in total, taking from the longest one token at a time."""
    if sum(lengths) <= room:
        return list(lengths)
    # The longest are cut to one length; the first of them get one more, if there is room.
    level = max(n for n in range(room + 1) if sum(min(n, length) for length in lengths) <= room)
    fitted = [min(level, length) for length in lengths]
    for index, length in enumerate(lengths):
        if length > level and sum(fitted) < room:
            fitted[index] += 1
    return fitted


def _required(tokenizer: Tokenizer, name: str) -> int:
    token_id = tokenizer.id_of(name)
    assert token_id is not None, f"{name} is in the vocabulary of models for tasks"
    return token_id


def _choice(table: Table, row: int, columns: TaskColumns) -> TaskExample:
    context, *texts = _choice_texts(table, row, columns)
    right = _right(table, row, columns.target, texts)
    return TaskExample(_parts(table, row, TaskKind.choice, [context, *texts]), right)


def _choice_texts(table: Table, row: int, columns: TaskColumns) -> list[str]:
    """Return the context, with the question, and the choices."""
    record = table.rows[row]
    context = " ".join(_text(table, row, name) for name in columns.texts)
    answers = [record.get(name) for name in columns.answers]
    if len(answers) == 1 and isinstance(answers[0], list):
        answers = answers[0]
    texts = [answer for answer in answers if isinstance(answer, str) and answer.strip()]
    if len(texts) < 2 or len(texts) < len(answers):
        raise DataError(
            f"{table.where(row)}: expected at least two answers, none empty, found {answers!r:.80}"
        )
    expected = len(columns.answers) if len(columns.answers) > 1 else _first_count(table, columns)
    if len(texts) != expected:
        raise DataError(f"{table.where(row)}: has {len(texts)} answers, and the first example {expected}")
    return [context, *texts]


def _first_count(table: Table, columns: TaskColumns) -> int:
    lists = (row.get(columns.answers[0]) for row in table.rows)
    return next((len(answers) for answers in lists if isinstance(answers, list) and len(answers) > 1), 0)


def _right(table: Table, row: int, name: str, answers: Sequence[str]) -> int:
    """Return the index of the correct choice, given as an index from 0, as a letter from A, or as its text.

    A value that could be both is the text, unless it is a JSON number.
    """
    given = table.rows[row].get(name)
    written = _cell(given)
    if isinstance(given, str) and written in answers:
        return list(answers).index(written)
    if len(written) == 1 and written.isalpha():
        index = ord(written.upper()) - ord("A")
    else:
        number = number_of(written)
        index = -1 if number is None or number % 1 else int(number)
    if not 0 <= index < len(answers):
        raise DataError(
            f"{table.where(row)}: the answer is {given!r}; expected 0 to {len(answers) - 1}, "
            f"A to {chr(ord('A') + len(answers) - 1)}, or one of the answers"
        )
    return index


def _text(table: Table, row: int, name: str) -> str:
    value = table.rows[row].get(name)
    if not isinstance(value, str) or not value.strip():
        kind = "an empty text" if value is None or isinstance(value, str) else f"no text but {value!r:.40}"
        raise DataError(f"{table.where(row)}: has {kind} in '{name}'")
    return value


def _cell(value: Any) -> str:
    if value is None or isinstance(value, list | dict | bytes):
        return ""
    if isinstance(value, bool):
        return str(value).lower()  # as in JSON
    return str(int(value)) if isinstance(value, float) and value % 1 == 0 else str(value).strip()


def _are_scores(values: Sequence[str]) -> bool:
    """Return whether nearly all values are numbers; the others are then errors."""
    numbers = [number for number in map(number_of, values) if number is not None]
    if len(numbers) < len(values) * (1 - MOST_MISTAKES):
        return False
    return len(set(numbers)) > SCORE_VALUES or any(number % 1 for number in numbers)


def _score(table: Table, row: int, value: str, name: str) -> float:
    number = number_of(value)
    if number is None:
        raise DataError(
            f"{table.where(row)}: '{value}' in '{name}' is not a number, unlike nearly all others"
        )
    if abs(number) > LARGEST_SCORE:
        raise DataError(
            f"{table.where(row)}: the score {value} is beyond ±{LARGEST_SCORE:,.0f}; scale the scores down"
        )
    return number
