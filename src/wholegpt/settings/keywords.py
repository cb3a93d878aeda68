"""Keyword arguments of the Python interface: their types, and errors for wrong names and values."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypedDict, TypeVar, get_args, get_origin

from wholegpt.errors import ConfigError
from wholegpt.settings.choices import Dtype, OnBadLine, OnBadText
from wholegpt.settings.schema import Config, GenerationConfig
from wholegpt.settings.serialization import nearest, settings_named

P = ParamSpec("P")
R = TypeVar("R")


class GenerationSettings(TypedDict, total=False):
    """The fields of ``GenerationConfig``, where their defaults and meanings are."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    no_repeat_ngram: int
    logit_bias: Sequence[tuple[int, float]]
    banned: str | Sequence[str]
    forced: str | Sequence[str]
    min_tokens: int
    stop: str | Sequence[str]
    regex: str
    json_schema: str | Mapping[str, Any]
    """The schema, or its JSON text."""
    max_seconds: float
    alternatives: int
    seed: int


class ReadingSettings(TypedDict, total=False):
    """How text files are read: fields of ``DataConfig``."""

    encoding: str
    text_field: str
    on_bad_text: OnBadText
    on_bad_line: OnBadLine


class TextEvaluationSettings(ReadingSettings, total=False):
    """Parameters of ``LanguageModel.evaluate``."""

    stride: int
    context: int
    detokenize: str
    dtype: Dtype


class TaskEvaluationSettings(TypedDict, total=False):
    """Parameters of ``LanguageModel.evaluate_task``."""

    shots: int
    examples: str | Path
    seed: int
    generation: GenerationConfig
    encoding: str
    on_bad_text: OnBadText
    on_bad_line: OnBadLine
    dtype: Dtype


class EvaluationSettings(TextEvaluationSettings, TaskEvaluationSettings, total=False):
    """Parameters of either evaluation."""


def checked_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function raise ``ConfigError`` for a wrong keyword argument.

    The error for a name that the function does not have gives the closest one. The error for a value that is not in the
    argument's ``Literal`` type lists the values that are.

    The fields of a typed dictionary in ``**settings: Unpack[...]`` are keyword arguments, too.
    """
    types: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            types |= inspect.get_annotations(get_args(parameter.annotation)[0])
        elif parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            types[parameter.name] = parameter.annotation

    @functools.wraps(function)
    def checked(*arguments: P.args, **keywords: P.kwargs) -> R:
        for name, value in keywords.items():
            if name not in types:
                hint = nearest(name, [one for one in types if one != "self"])
                if "config" in types and (meant := settings_named(name, Config)):
                    section, _, field = meant[0].partition(".")
                    hint = f"give config=wg.configure({{'{section}': {{'{field}': {value!r}}}}})"
                raise ConfigError(f"{function.__name__}() has no parameter '{name}'; {hint}")
            values = get_args(types[name]) if get_origin(types[name]) is Literal else (value,)
            if value not in values:
                raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(map(str, values))}")
        return function(*arguments, **keywords)

    return checked
