"""The examples for fine-tuning: read from tables, split, and stored in the run's folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev

import msgspec

from wholegpt.console import QUIET, Console
from wholegpt.data.examples.built_in import refuse_built_in
from wholegpt.data.examples.columns import TaskColumns, columns_in
from wholegpt.data.examples.files import open_examples, save_examples
from wholegpt.data.examples.tasks import Task, TaskExample, label_names, read_examples
from wholegpt.data.permutation import held_out_indices
from wholegpt.data.reading.tables import Reading
from wholegpt.errors import ConfigError, DataError
from wholegpt.settings.choices import TaskKind
from wholegpt.settings.schema import Config


@dataclass(frozen=True)
class TaskData:
    """Examples of one task, split into training and validation."""

    task: Task
    train: list[TaskExample]
    validation: list[TaskExample]

    @classmethod
    def read(cls, config: Config, console: Console | None = None) -> "TaskData":
        """Read the tables that ``config.finetuning`` names; report skipped rows on ``console``.

        Raises ``DataError`` for tables that do not fit the task, and for too few examples.
        """
        settings, data = config.finetuning, config.data
        if not settings.data:
            raise ConfigError("no training examples are named; give --data FILE")
        refuse_built_in(settings.data, f"examples of {settings.task}")
        columns = TaskColumns(settings.text_columns, settings.answer_columns, settings.label_column)
        reading = Reading.of(data, settings.data, settings.validation)
        table = reading.table(Path(settings.data))
        train, columns = read_examples(table, settings.task, columns, reading=reading)
        task = _task(settings.task, train, columns, settings.data)
        if settings.validation:
            validation = read_labeled(Path(settings.validation), reading, task)
        else:
            train, validation = _divide(train, settings.data, data.validation_fraction, config.runtime.seed)
        reading.show(console or QUIET)
        return cls(task, train, validation)

    @classmethod
    def open(cls, folder: Path) -> "TaskData":
        """Load what ``save`` wrote. Raises ``DataError`` if a file is missing or has changed."""
        about, train, validation = open_examples(folder, TaskExample)
        return cls(msgspec.convert(about, Task), train, validation)

    def save(self, folder: Path) -> str:
        """Write the examples into a new ``folder``; return the hash of all."""
        return save_examples(folder, self.task, self.train, self.validation)


def read_labeled(path: Path, reading: Reading, task: Task) -> list[TaskExample]:
    """Read the examples of another table, from the columns of the training table if it has them.

    Raises ``DataError`` like ``read_examples``, and for a label that no training example has.
    """
    named = (*task.columns.texts, *task.columns.answers, task.columns.target)
    table = reading.table(path, [name for name in named if name])
    columns = columns_in(table, task.columns)
    return read_examples(table, task.kind, columns, task.scores, task.labels, reading)[0]


def _task(kind: TaskKind, examples: Sequence[TaskExample], columns: TaskColumns, where: str) -> Task:
    if kind is TaskKind.choice:
        return Task(kind, columns=columns)
    if isinstance(examples[0].target, str):
        try:
            return Task(kind, tuple(label_names(examples, where)), columns=columns)
        except DataError as error:
            if columns.target.isdigit():  # a row of column names would become a label with a single example
                raise DataError(f"{error}; the first row, too, was read as an example") from None
            raise
    scores = [float(example.target) for example in examples]
    spread = pstdev(scores)
    if not spread:
        raise DataError(f"{where}: every example has the score {scores[0]:g}; there is nothing to learn")
    return Task(kind, (), fmean(scores), spread, columns)


def _divide(
    examples: list[TaskExample], where: str, fraction: float, seed: int
) -> tuple[list[TaskExample], list[TaskExample]]:
    """Split examples into training and validation, stratified by label, each in the order of the table.

    Examples with equal texts stay on one side.
    """
    by_texts: dict[tuple[tuple[str, ...], ...], list[int]] = {}
    for index, example in enumerate(examples):
        by_texts.setdefault(example.parts, []).append(index)
    groups: dict[str, list[list[int]]] = {}
    for indices in by_texts.values():
        target = examples[indices[0]].target
        groups.setdefault(target if isinstance(target, str) else "", []).append(indices)
    held_out = {
        index
        for group, count in zip(groups.values(), shares([*map(len, groups.values())], fraction), strict=True)
        for i in held_out_indices(len(group), count / len(group), seed)
        for index in group[i]
    }
    if not 0 < len(held_out) < len(examples):
        different = f" of {len(by_texts):,} different texts" if len(by_texts) < len(examples) else ""
        raise DataError(
            f"{where}: has {len(examples):,} examples{different}, too few to hold {fraction:.0%} of them out; give "
            "more, or held-out ones by --validation FILE"
        )
    sides = [[one for i, one in enumerate(examples) if (i in held_out) is side] for side in (False, True)]
    return sides[0], sides[1]


def shares(sizes: Sequence[int], fraction: float) -> list[int]:
    """Return ``fraction`` of each group, in integers that add up to that of all groups (largest remainders)."""
    wanted = [size * fraction for size in sizes]
    taken = [min(int(one), size - 1) for one, size in zip(wanted, sizes, strict=True)]
    lacking = round(sum(wanted)) - sum(taken)
    for index in sorted(range(len(sizes)), key=lambda i: taken[i] - wanted[i])[: max(lacking, 0)]:
        taken[index] += taken[index] < sizes[index] - 1
    return taken
