"""Comparison of two models on the same text or examples, and the choice of the data to evaluate a model on."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

from wholegpt.console import Console
from wholegpt.data.examples.conversations import holds_conversations
from wholegpt.data.reading.sources import check_sources
from wholegpt.data.reading.tables import Reading, is_table
from wholegpt.errors import ConfigError, DataError
from wholegpt.evaluation import Difference, compare_tasks, compare_texts, is_task_file
from wholegpt.language_model import LanguageModel
from wholegpt.settings.keywords import (
    EvaluationSettings,
    TaskEvaluationSettings,
    TextEvaluationSettings,
    checked_keywords,
)


@checked_keywords
def compare(
    first: LanguageModel,
    second: LanguageModel,
    *sources: str | Path,
    console: Console | None = None,
    **settings: Unpack[EvaluationSettings],
) -> dict[str, Difference]:
    """Compare two models on the same text or file of examples: each figure of both, and the interval of its difference.

    ``settings`` are those of ``evaluate``, or of ``evaluate_task`` if the source is a file of examples.
    """
    check_sources(sources)
    reading = reading_of(settings)
    asks = [answers_examples(lm, *sources, reading=reading) for lm in (first, second)]
    asked = any(asks)
    if asked and not all(asks):
        which = ("first", "second")[asks.index(False)]
        raise ConfigError(
            f"the {which} model was not fine-tuned for the task of these examples, only the other one, so there is "
            "nothing to compare"
        )
    if asked or task_file(*sources, text_field=settings.get("text_field"), encoding=reading.encoding):
        if len(sources) != 1:
            raise DataError("models with heads are compared on one table of examples; name one")
        chosen = _applicable(settings, TaskEvaluationSettings, "a file of examples")
        return compare_tasks(
            *(lm.evaluate_task(*sources, console=console, **chosen) for lm in (first, second))
        )
    chosen = _applicable(settings, TextEvaluationSettings, "text")
    return compare_texts(*(lm.evaluate(*sources, console=console, **chosen) for lm in (first, second)))


def _applicable(settings: EvaluationSettings, kind: type, measured: str) -> dict[str, Any]:
    """Return the settings. Raises ``ConfigError`` for one that an evaluation of this kind does not have."""
    for name in settings:
        if name not in inspect.get_annotations(kind):
            raise ConfigError(f"{name} does not apply to {measured}; leave it out")
    return dict(settings)


def reading_of(settings: Mapping[str, Any]) -> Reading:
    """Return the settings of an evaluation that say how tables are read."""
    names = ("encoding", "on_bad_text", "on_bad_line")
    return Reading(**{name: settings[name] for name in names if name in settings})


def answers_examples(lm: LanguageModel, *sources: str | Path, reading: Reading) -> bool:
    """Return whether a model is evaluated on examples (by its head, or its answers to questions), not on text."""
    if lm.task or not sources:
        return lm.task is not None or lm.chat_template is not None
    path = Path(sources[0])
    return (
        lm.chat_template is not None
        and is_table(path)
        and path.is_file()
        and holds_conversations(path, reading, lm.columns)
    )


def task_file(*sources: str | Path, text_field: str | None = None, encoding: str = "utf-8") -> bool:
    """Return whether the source is a file of examples. Raises ``DataError`` if there are other sources besides it."""
    tasks = [source for source in sources if is_task_file(Path(source), text_field or "", encoding)]
    if tasks and len(sources) > 1:
        raise DataError(
            f"{tasks[0]}: is a file of examples; it is evaluated by itself, without other sources"
        )
    return bool(tasks)
