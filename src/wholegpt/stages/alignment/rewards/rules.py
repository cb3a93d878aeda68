"""Rewards that are computed from the text of a completion.

A completion is compared without the white space around it.
"""

import json
import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from wholegpt.errors import ConfigError, DataError, shortened
from wholegpt.stages.alignment.rewards.interface import Reward, Sample


class Rule(Reward):
    """A reward of each completion by itself."""

    @abstractmethod
    def score(self, completion: str, answer: str) -> float:
        """Return the reward of a completion without white space around it, given the right answer."""

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Return the reward of each sample. Raises ``DataError`` for a sample that lacks the answer it needs."""
        for sample in samples:
            if self.needs_answers and not sample.answer.strip():
                raise DataError(
                    f"the reward {self.name} needs right answers, and the prompt '{shortened(sample.asked)}' has "
                    "none; give a column of answers (answer, solution, ...), or another reward"
                )
        return [self.score(sample.completion.strip(), sample.answer.strip()) for sample in samples]


class Exact(Rule):
    """1 if the completion equals the right answer, else 0."""

    name = "exact"
    needs_answers = True

    def score(self, completion: str, answer: str) -> float:
        """Return whether the two are equal."""
        return float(completion == answer)


@dataclass(frozen=True)
class Contains(Rule):
    """1 if a text occurs in the completion, else 0."""

    name = "contains"
    text: str

    def score(self, completion: str, answer: str) -> float:
        """Return whether the text occurs."""
        return float(self.text in completion)


@dataclass(frozen=True)
class Length(Rule):
    """Closeness of the number of words n to the wanted number w: −min(1, |n − w| / w), from −1 to 0.

    Words are separated by white space.
    """

    name = "length"
    words: int

    def score(self, completion: str, answer: str) -> float:
        """Return the closeness."""
        return -min(1.0, abs(len(completion.split()) - self.words) / self.words)

    @classmethod
    def of(cls, argument: str) -> "Length":
        """Parse the number of words. Raises ``ConfigError`` if it is not a positive integer."""
        if not (argument.isascii() and argument.isdigit() and len(argument) < 10 and int(argument)):
            raise ConfigError(f"expected a number of words, at least 1, found '{argument}'")
        return cls(int(argument))


@dataclass(frozen=True)
class Regex(Rule):
    """1 if the whole completion matches a regular expression of Python's ``re``, else 0."""

    name = "regex"
    pattern: re.Pattern[str]

    def score(self, completion: str, answer: str) -> float:
        """Return whether it matches."""
        return float(self.pattern.fullmatch(completion) is not None)

    @classmethod
    def of(cls, argument: str) -> "Regex":
        """Compile an expression. Raises ``ConfigError`` if it is not valid."""
        try:
            return cls(re.compile(argument))
        except (re.error, OverflowError, RecursionError) as error:
            raise ConfigError(f"not a regular expression of Python: {error}") from error


@dataclass(frozen=True)
class JsonSchema(Rule):
    """1 if the completion is JSON that satisfies a schema, else 0.

    The schema's ``$schema`` names its version; by default, it is 2020-12. ``format`` is not checked, and references to
    other files are not followed.
    """

    name = "json_schema"
    validator: Any
    """That of the library ``jsonschema``."""

    def score(self, completion: str, answer: str) -> float:
        """Return whether it is valid. Raises ``DataError`` for a reference to another file."""
        from referencing.exceptions import Unresolvable

        try:
            value = json.loads(completion, parse_constant=_refuse)
            return float(self.validator.is_valid(value))
        except Unresolvable as error:
            raise DataError(f"the JSON schema has a reference that cannot be resolved: {error}") from error
        except (ValueError, RecursionError):
            return 0.0

    @classmethod
    def of(cls, argument: str) -> "JsonSchema":
        """Read the schema in a file.

        Raises ``ConfigError`` if it is not a valid schema, ``ModuleNotFoundError`` without jsonschema.
        """
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import SchemaError
        from jsonschema.validators import validator_for
        from referencing import Registry

        try:
            schema = json.loads(Path(argument).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{argument}: cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{argument}: is not JSON: {error}") from error
        if not isinstance(schema, dict) or not isinstance(schema.get("$schema", ""), str):
            raise ConfigError(f"{argument}: is not a JSON schema: expected an object")
        kind: Any = validator_for(schema, default=Draft202012Validator)
        try:
            kind.check_schema(schema, format_checker=kind.FORMAT_CHECKER)
        except SchemaError as error:
            raise ConfigError(f"{argument}: is not a JSON schema: {error.message}") from error
        return cls(kind(schema, registry=Registry()))


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
