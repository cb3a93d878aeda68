"""Attributes of documents that a model learns to write by: control codes (Keskar et al. 2019).

They stand before a document's text as one line, ``sentiment: positive, domain: news``. It is plain text, so that every
tokenizer can express it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from wholegpt.data.text.words import words_of
from wholegpt.errors import ConfigError, DataError
from wholegpt.settings.serialization import nearest

Attributes = tuple[tuple[str, str], ...]
"""The fields that a document has, with their values, in the order of ``data.control``."""
Values = Mapping[str, Mapping[str, int]]
NO_CONTROL: Values = {}
"""Field -> value -> documents of the training text that have it."""

MOST_VALUES, MOST_CHARACTERS = 100, 100
"""Different values of a field, and characters of one: what has more is no category."""
LENGTH = "length"
"""The field that is derived from the text of records that have none of this name."""
SHORT_WORDS, MEDIUM_WORDS = 20, 200
"""A text of fewer words is short, or medium; any other is long."""


def header(attributes: Iterable[tuple[str, str]]) -> str:
    """The line before a text; nothing where there are no attributes."""
    written = ", ".join(f"{name}: {value}" for name, value in attributes)
    return f"{written}\n" if written else ""


def attributes_of(record: Mapping[str, Any], text: str, fields: Sequence[str]) -> Attributes:
    """Those of ``fields`` that a record has. Raises ``ValueError``, fit to follow its place, for a bad value."""
    found: list[tuple[str, str]] = []
    for name in fields:
        if name == LENGTH and name not in record:
            found.append((name, length_of(text)))
            continue
        value = record.get(name)
        if not isinstance(value, str | bool | int | float | None):
            raise ValueError(
                f"has in field '{name}' no text, number or truth value but {type(value).__name__}"
            )
        written = value_text(value)
        _check_value(name, written)
        if written:
            found.append((name, written))
    return tuple(found)


def value_text(value: object) -> str:
    """A value as headers write it: texts without white space around them, all else as in JSON; none as empty."""
    if value is None or value != value:  # tables write a missing value as the number that is not itself
        return ""
    return value.strip() if isinstance(value, str) else json.dumps(value, default=str)


def _check_value(name: str, value: str) -> None:
    if len(value) > MOST_CHARACTERS:
        raise ValueError(
            f"has in field '{name}' {len(value):,} characters, and a value for control at most {MOST_CHARACTERS}"
        )
    if len(f"{value}.".splitlines()) > 1:
        raise ValueError(f"has in field '{name}' a line break, and a value for control stands on one line")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"has in field '{name}' bytes or characters that are no text") from None


def length_of(text: str) -> str:
    """``short`` below 20 words, ``medium`` below 200, else ``long``."""
    words = len(words_of(text))
    return "short" if words < SHORT_WORDS else "medium" if words < MEDIUM_WORDS else "long"


class AttributeNumbers:
    """Numbers for what documents have of attributes, in the order they come; 0 for none."""

    def __init__(self) -> None:
        self._numbers: dict[Attributes, int] = {(): 0}
        self._values: dict[str, set[str]] = {}

    def number(self, attributes: Attributes) -> int:
        """That of ``attributes``. Raises ``DataError`` for a field with too many values to be a category."""
        if attributes not in self._numbers:
            for name, value in attributes:
                values = self._values.setdefault(name, set())
                values.add(value)
                if len(values) > MOST_VALUES:
                    raise DataError(
                        f"data.control names '{name}', of which the documents have more than {MOST_VALUES} different "
                        f"values ('{value}' is one more); leave it out, or give each a category instead"
                    )
            self._numbers[attributes] = len(self._numbers)
        return self._numbers[attributes]

    @property
    def attributes(self) -> list[Attributes]:
        """All, by number."""
        return list(self._numbers)


def count_values(
    fields: Sequence[str], attributes: Sequence[Attributes], documents: Int[np.ndarray, " A"]
) -> dict[str, dict[str, int]]:
    """How many documents have each value, from how many have each of ``attributes``; the most frequent first."""
    counts: dict[str, dict[str, int]] = {name: {} for name in fields}
    for pairs, count in zip(attributes, documents.tolist(), strict=True):
        for name, value in pairs:
            counts[name][value] = counts[name].get(value, 0) + count
    return {
        name: dict(sorted(((v, n) for v, n in of_field.items() if n), key=lambda one: (-one[1], one[0])))
        for name, of_field in counts.items()
    }


def header_for(control: Mapping[str, object], known: Values) -> str:
    """The header that asks a model for ``control``, its fields in the order of those ``known`` from training.

    Raises ``ConfigError`` for a field or a value that the model was not trained on, naming the nearest or all.
    """
    if not known:
        raise ConfigError(
            "control means nothing to this model: it was trained without; train one with --data.control FIELD"
        )
    for name, value in control.items():
        if name not in known:
            raise ConfigError(f"control: no field '{name}' in training; {nearest(name, list(known))}")
        if value_text(value) not in known[name]:
            hint = nearest(value_text(value), list(known[name]))
            raise ConfigError(f"control: '{name}' had no value '{value_text(value)}' in training; {hint}")
    return header((name, value_text(control[name])) for name in known if name in control)
