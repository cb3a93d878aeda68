"""Detect which columns of a table hold the texts and the labels of a task."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from wholegpt.data.reading.row import by_lower_name
from wholegpt.data.reading.tables import Table, number_of
from wholegpt.errors import DataError
from wholegpt.settings.choices import TaskKind

TEXT_NAMES = (
    *(
        "text",
        "sentence",
        "review",
        "content",
        "context",
        "premise",
        "sentence1",
        "sentence_a",
        "text1",
        "text_a",
    ),
    *("#1 string", "hypothesis", "sentence2", "sentence_b", "text2", "text_b", "#2 string"),
)
LABEL_NAMES = (
    *("label", "labels", "class", "category", "target", "gold_label", "entailment_judgment", "judgment"),
    *("sentiment", "quality"),
)
SCORE_NAMES = ("score", "similarity", "relatedness_score", "rating", "label", "quality")
CONTEXTS = ("context", "passage", "story", "article", "question", "prompt")
ANSWERS, ANSWER = ("choices", "answers", "options"), ("answer", "label", "correct", "gold")


@dataclass(frozen=True)
class TaskColumns:
    """The column of each part of an example; empty entries are detected."""

    texts: tuple[str, ...] = ()
    """One or two text columns; for multiple choice, the context and the question."""
    answers: tuple[str, ...] = ()
    """For multiple choice: one column with lists of texts, or one column per choice."""
    target: str = ""
    """The label, the score, or the correct choice."""


DETECTED = TaskColumns()
"""All columns are detected."""


def columns_in(table: Table, columns: TaskColumns) -> TaskColumns:
    """Return those of another table's ``columns`` that this table also has; the others are left to detection."""

    def known(names: tuple[str, ...]) -> tuple[str, ...]:
        return names if {*names} <= {*table.columns} else ()

    return TaskColumns(known(columns.texts), known(columns.answers), "".join(known((columns.target,))))


def detect_columns(table: Table, task: TaskKind, columns: TaskColumns) -> TaskColumns:
    """Fill in missing ``columns``, by usual names, by the length of texts and the number of distinct labels.

    Raises ``DataError`` listing the columns if none fits.
    """
    return _choice_columns(table, columns) if task is TaskKind.choice else _text_columns(table, task, columns)


def only_texts(
    table: Table, task: TaskKind, expected: Sequence[str], others: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return the text columns except ``others``, of a table without the ``expected`` ones.

    Raises ``DataError`` if their number does not fit the task.
    """
    wanted = 1 if task is TaskKind.classification else 2
    texts = tuple(
        name
        for name in table.columns
        if name not in others
        and any(isinstance(value, str) and number_of(value) is None for value in table.column(name))
    )
    if len(texts) != wanted:
        raise DataError(
            f"{table.path}: has no {' and '.join(expected)}, as the training examples have, and not {wanted} "
            f"column{'s' * (wanted > 1)} of texts that could take its place; rename a column: there are "
            f"{', '.join(table.columns)}"
        )
    return texts


def detect_choices(table: Table, columns: TaskColumns) -> TaskColumns:
    """Return the columns of a context and its choices, without the label. Raises ``DataError`` if there are
    none.
    """
    by_name = by_lower_name(table.columns)
    texts = columns.texts or tuple(by_name[name] for name in CONTEXTS if name in by_name)
    letters = [by_name[letter] for letter in "abcdefgh" if letter in by_name]
    lists = [by_name[name] for name in ANSWERS if name in by_name][:1]
    answers = columns.answers or tuple(lists or letters)
    for name in (*texts, *answers):
        table.column(name)
    if not texts or not answers:
        lacking = "choices" if texts else "context or question"
        raise DataError(f"{table.path}: has no column for {lacking}; there are {', '.join(table.columns)}")
    return replace(columns, texts=texts, answers=answers)


def _text_columns(table: Table, task: TaskKind, columns: TaskColumns) -> TaskColumns:
    wanted = 1 if task is TaskKind.classification else 2
    names = SCORE_NAMES if task is TaskKind.similarity else LABEL_NAMES
    target = columns.target or table.first_of(names) or _fewest_values(table, columns.texts)
    table.column(target)
    texts = columns.texts or _longest(table, wanted, target)
    for name in texts:
        table.column(name)
    if len(texts) != wanted or target in texts:
        raise DataError(
            f"{table.path}: {task} needs {wanted} column{'s' * (wanted > 1)} of texts and one of labels; found "
            f"{', '.join(texts) or 'none'} and '{target}' among {', '.join(table.columns)}"
        )
    return replace(columns, texts=tuple(texts), target=target)


def _fewest_values(table: Table, texts: Sequence[str]) -> str:
    """Return the column that looks most like labels: the fewest distinct values, and of these the shortest."""
    others = [name for name in table.columns if name not in texts]
    if not others:
        raise DataError(f"{table.path}: has no column for labels; there are {', '.join(table.columns)}")
    texts_of = {name: [str(value) for value in table.column(name)] for name in others}
    return min(others, key=lambda name: (len(set(texts_of[name])), sum(map(len, texts_of[name]))))


def _longest(table: Table, wanted: int, target: str) -> list[str]:
    """Return the columns with usual names, or else those with the longest texts, in the order of the table."""
    by_name = by_lower_name(column for column in table.columns if column != target)
    likely = [by_name[name] for name in TEXT_NAMES if name in by_name]
    if len(likely) >= wanted:
        return likely[:wanted]
    sizes = {
        name: sum(
            len(value) for value in table.column(name) if isinstance(value, str) and number_of(value) is None
        )
        for name in table.columns
        if name != target
    }
    longest = sorted((name for name in sizes if sizes[name]), key=lambda name: -sizes[name])[:wanted]
    return [name for name in table.columns if name in longest]


def _choice_columns(table: Table, columns: TaskColumns) -> TaskColumns:
    target = columns.target or table.first_of(ANSWER)
    found = detect_choices(table, columns)
    if not target:
        raise DataError(f"{table.path}: has no column for answer; there are {', '.join(table.columns)}")
    table.column(target)
    return replace(found, target=target)
