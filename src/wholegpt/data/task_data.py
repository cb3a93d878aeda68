"""The examples that a model is fine-tuned on: read from tables, divided, and kept in the run's folder."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, pstdev

import msgspec
import numpy as np

from wholegpt.config import Config, TaskKind
from wholegpt.data.permutation import permute
from wholegpt.data.tables import Table, read_table
from wholegpt.data.task_columns import TaskColumns
from wholegpt.data.tasks import Task, TaskExample, check_labels, label_names, read_examples
from wholegpt.errors import ConfigError, DataError
from wholegpt.files import sha256_file, write_json_atomic, write_text_atomic
from wholegpt.runtime import mix_seed

TRAIN, VALIDATION, TASK = "train.jsonl", "validation.jsonl", "task.json"


@dataclass(frozen=True)
class TaskData:
    """Examples of one task, in training and held-out ones."""

    task: Task
    train: list[TaskExample]
    validation: list[TaskExample]

    @classmethod
    def read(cls, config: Config) -> "TaskData":
        """From the tables that ``config.finetuning`` names.

        Raises ``DataError`` for tables that do not hold what the task needs, and for too few examples.
        """
        settings, data = config.finetuning, config.data
        if not settings.data:
            raise ConfigError("no training examples are named; give --data FILE")
        columns = TaskColumns(settings.text_columns, settings.answer_columns, settings.label_column)
        table = read_table(Path(settings.data), data.encoding)
        train, columns = read_examples(table, settings.task, columns)
        task = _task(settings.task, train, columns, settings.data)
        if settings.validation:
            validation = read_labelled(read_table(Path(settings.validation), data.encoding), task)
        else:
            train, validation = _divide(train, settings.data, data.validation_fraction, config.runtime.seed)
        return cls(task, train, validation)

    @classmethod
    def open(cls, folder: Path) -> "TaskData":
        """Back from ``save``. Raises ``DataError`` where a file is missing or not what it was."""
        try:
            content = json.loads((folder / TASK).read_text(encoding="utf-8"))
            sides: list[list[TaskExample]] = []
            for name in (TRAIN, VALIDATION):
                if sha256_file(folder / name) != content["sha256"][name]:
                    raise DataError(f"{folder / name}: not the examples that the run began with")
                lines = (folder / name).read_bytes().splitlines()
                sides.append([msgspec.json.decode(line, type=TaskExample) for line in lines])
            return cls(msgspec.convert(content["task"], Task), *sides)
        except (OSError, ValueError, KeyError, TypeError, msgspec.MsgspecError) as error:
            raise DataError(f"{folder}: holds no examples of a run: {error}") from None

    def save(self, folder: Path) -> str:
        """Write the examples into ``folder``; returns the hash of all."""
        folder.mkdir()
        for name, examples in ((TRAIN, self.train), (VALIDATION, self.validation)):
            lines = (json.dumps(asdict(example), ensure_ascii=False) for example in examples)
            write_text_atomic(folder / name, "".join(f"{line}\n" for line in lines))
        checksums = {name: sha256_file(folder / name) for name in (TRAIN, VALIDATION)}
        task = msgspec.to_builtins(self.task)
        write_json_atomic(folder / TASK, {"format_version": 1, "task": task, "sha256": checksums})
        return self.fingerprint(folder)

    @staticmethod
    def fingerprint(folder: Path) -> str:
        """The hash of all that is in ``folder``."""
        return sha256_file(folder / TASK)


def read_labelled(table: Table, task: Task) -> list[TaskExample]:
    """The examples of a further table, in the columns of the training ones where it has those.

    Raises ``DataError`` as ``read_examples`` does, and for a label that no training example has.
    """
    named = (*task.columns.texts, *task.columns.answers, task.columns.target)
    known = task.columns if set(named) <= set(table.columns) else None
    examples, _ = read_examples(table, task.kind, known, task.scores)
    if task.labels:
        check_labels(examples, task.labels, table)
    return examples


def _task(kind: TaskKind, examples: Sequence[TaskExample], columns: TaskColumns, where: str) -> Task:
    if kind is TaskKind.choice:
        return Task(kind, columns=columns)
    if isinstance(examples[0].target, str):
        return Task(kind, tuple(label_names(examples, where)), columns=columns)
    scores = [float(example.target) for example in examples]
    spread = pstdev(scores)
    if not spread:
        raise DataError(f"{where}: every example has the score {scores[0]:g}; there is nothing to learn")
    return Task(kind, (), fmean(scores), spread, columns)


def _divide(
    examples: list[TaskExample], where: str, fraction: float, seed: int
) -> tuple[list[TaskExample], list[TaskExample]]:
    """Training and held-out examples, of each label the same share, each side in the order of the table."""
    groups: dict[str, list[int]] = {}
    for place, example in enumerate(examples):
        groups.setdefault(example.target if isinstance(example.target, str) else "", []).append(place)
    held_out: set[int] = set()
    for places in groups.values():
        order = permute(np.arange(len(places)), len(places), mix_seed(seed, 0, 5)).tolist()
        held_out |= {places[i] for i in order[: round(len(places) * fraction)]}
    if not held_out:
        raise DataError(
            f"{where}: has {len(examples):,} examples, too few to hold {fraction:.0%} of them out; give more, or "
            "held-out ones by --validation FILE"
        )
    sides = [[one for i, one in enumerate(examples) if (i in held_out) is side] for side in (False, True)]
    return sides[0], sides[1]
