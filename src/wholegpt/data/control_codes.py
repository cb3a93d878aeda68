"""Control codes: attributes of documents that condition generation (Keskar et al. 2019).

A header line before a document's text lists them: ``sentiment: positive, domain: news``. It is plain text, so
that every tokenizer can encode it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from wholegpt.data.words import words_of
from wholegpt.errors import ConfigError, DataError
from wholegpt.settings.serialization import nearest

Attributes = tuple[tuple[str, str], ...]
"""The fields of a document with their values, in the order of ``data.control``."""
Values = Mapping[str, Mapping[str, int]]
NO_CONTROL: Values = {}
"""Field -> value -> number of training documents with it."""

MOST_VALUES, MOST_CHARACTERS = 100, 100
"""Maximum distinct values of a field, and characters of a value: more is not a category."""
LENGTH = "length"
"""The field that is derived from the text if records have no field of this name."""
SHORT_WORDS, MEDIUM_WORDS = 20, 200
"""A text of fewer words is short, or medium; any other is long."""


def header(attributes: Iterable[tuple[str, str]]) -> str:
    """Return the line before a text; empty if there are no attributes."""
    written = ", ".join(f"{name}: {value}" for name, value in attributes)
    return f"{written}\n" if written else ""


def attributes_of(record: Mapping[str, Any], text: str, fields: Sequence[str]) -> Attributes:
    """Return those of ``fields`` that a record has.

    Raises ``ValueError`` for a bad value, with a message to append to its location.
    """
    found: list[tuple[str, str]] = []
    for name in fields:
        if name == LENGTH and name not in record:
            found.append((name, length_of(text)))
            continue
        value = record.get(name)
        if not isinstance(value, str | bool | int | float | None):
            raise ValueError(
                f"has in field '{name}' a value that is not text, number or boolean but {type(value).__name__}"
            )
        written = value_text(value)
        _check_value(name, written)
        if written:
            found.append((name, written))
    return tuple(found)


def value_text(value: object) -> str:
    """Return a value as in headers: texts without surrounding white space, other values as in JSON, ``None``
    as empty.
    """
    if value is None or value != value:  # tables represent a missing value as NaN
        return ""
    return value.strip() if isinstance(value, str) else json.dumps(value, default=str)


def _check_value(name: str, value: str) -> None:
    if len(value) > MOST_CHARACTERS:
        raise ValueError(
            f"has in field '{name}' {len(value):,} characters, and a value for control at most {MOST_CHARACTERS}"
        )
    if len(f"{value}.".splitlines()) > 1:
        raise ValueError(f"has in field '{name}' a line break, and a value for control must be on one line")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"has in field '{name}' bytes or characters that are not text") from None


def length_of(text: str) -> str:
    """Return ``short`` below 20 words, ``medium`` below 200, else ``long``."""
    words = len(words_of(text))
    return "short" if words < SHORT_WORDS else "medium" if words < MEDIUM_WORDS else "long"


class AttributeIndex:
    """Indices of distinct attributes, in order of appearance; 0 for none."""

    def __init__(self) -> None:
        self._numbers: dict[Attributes, int] = {(): 0}
        self._values: dict[str, set[str]] = {}

    def number(self, attributes: Attributes) -> int:
        """Return the index of ``attributes``. Raises ``DataError`` for a field with too many values to be a
        category.
        """
        if attributes not in self._numbers:
            for name, value in attributes:
                values = self._values.setdefault(name, set())
                values.add(value)
                if len(values) > MOST_VALUES:
                    raise DataError(
                        f"data.control names '{name}', for which the documents have more than {MOST_VALUES} different "
                        f"values ('{value}' is one more); leave it out, or give each a category instead"
                    )
            self._numbers[attributes] = len(self._numbers)
        return self._numbers[attributes]

    @property
    def attributes(self) -> list[Attributes]:
        """Return all attributes, by index."""
        return list(self._numbers)


def count_values(
    fields: Sequence[str], attributes: Sequence[Attributes], documents: Int[np.ndarray, " A"]
) -> dict[str, dict[str, int]]:
    """Return how many documents have each value, given the counts of ``attributes``; most frequent first."""
    counts: dict[str, dict[str, int]] = {name: {} for name in fields}
    for pairs, count in zip(attributes, documents.tolist(), strict=True):
        for name, value in pairs:
            counts[name][value] = counts[name].get(value, 0) + count
    return {
        name: dict(sorted(((v, n) for v, n in of_field.items() if n), key=lambda one: (-one[1], one[0])))
        for name, of_field in counts.items()
    }


def header_for(control: Mapping[str, object], known: Values) -> str:
    """Return the header for ``control``, with its fields in the order of those ``known`` from training.

    Raises ``ConfigError`` for a field or a value that the model was not trained on, naming the nearest or
    all.
    """
    if not known:
        raise ConfigError("this model was trained without control codes; train one with --data.control FIELD")
    for name, value in control.items():
        if name not in known:
            raise ConfigError(f"control: no field '{name}' in training; {nearest(name, list(known))}")
        if value_text(value) not in known[name]:
            hint = nearest(value_text(value), list(known[name]))
            raise ConfigError(f"control: '{name}' had no value '{value_text(value)}' in training; {hint}")
    return header((name, value_text(control[name])) for name in known if name in control)
