"""Training and validation examples from tables, without common prompts."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from wholegpt.console import Console
from wholegpt.data.chat.template import Conversation
from wholegpt.data.examples.columns import TaskColumns
from wholegpt.data.examples.conversations import held_out_by_prompt
from wholegpt.data.reading.tables import Reading, Table
from wholegpt.errors import ConfigError, DataError
from wholegpt.settings.schema import Config

T = TypeVar("T")


def read_split(
    config: Config,
    read: Callable[[Table, Reading, Console], tuple[list[T], TaskColumns]],
    prompt_of: Callable[[T], Conversation],
    unit: str,
    console: Console,
) -> tuple[list[T], list[T], TaskColumns]:
    """Return the training and the validation examples of the tables in ``config.finetuning``, and the columns.

    ``read`` reads a table. Without validation examples, ``data.validation_fraction`` of the prompts are held out.
    ``unit`` names the examples in messages. Raises ``DataError`` if the validation examples have a prompt of the
    training examples, ``ConfigError`` if no table is named.
    """
    settings = config.finetuning
    if not settings.data:
        raise ConfigError("no training examples are named; give --data FILE")
    reading = Reading.of(config.data, settings.data, settings.validation)
    examples, columns = read(reading.table(Path(settings.data)), reading, console)
    if not settings.validation:
        reading.show(console)
        train, validation = held_out_by_prompt(settings.data, examples, prompt_of, config, unit)
        return train, validation, columns
    validation, _ = read(reading.table(Path(settings.validation)), reading, console)
    reading.show(console)
    common = {prompt_of(one) for one in examples} & {prompt_of(one) for one in validation}
    if common:
        raise DataError(
            f"{settings.validation}: {len(common):,} of its prompts are in {settings.data}, too, so the results of "
            "validation would be too optimistic; remove them, or leave out --validation"
        )
    return examples, validation, columns
