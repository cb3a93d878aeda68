"""Rewards by a function of the user."""

import contextlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wholegpt.errors import ConfigError, DataError, one_line
from wholegpt.settings.serialization import nearest
from wholegpt.stages.alignment.rewards.interface import Reward, Sample

FAILURES = (Exception, SystemExit)
"""What a function of the user can raise, other than Ctrl-C."""


@dataclass(frozen=True)
class UserFunction(Reward):
    """``function(prompts, completions)``, which returns a number for each completion.

    A prompt is the content of its last message. If the function has a parameter ``answers``, it also gets the right
    answers, which are empty where they are not known.
    """

    module: str
    name: str
    function: Callable[..., Any]

    @classmethod
    def of(cls, argument: str) -> "UserFunction":
        """Import the function MODULE:NAME; the module is also searched for in the current folder.

        Raises ``ConfigError`` if there is no such function, or if importing its module fails.
        """
        module, _, name = argument.rpartition(":")
        if not module or not name:
            raise ConfigError(f"expected MODULE:NAME of a Python function, found '{argument}'")
        try:
            with _current_folder_first():
                found = importlib.import_module(module)
        except FAILURES as error:
            if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
                dotted = module.removesuffix(".py").replace("/", ".")
                advice = f"; write {dotted}:{name}" if dotted != module else ""
                raise ConfigError(
                    f"there is no module '{module}' in the current folder or among the installed ones{advice}"
                ) from error
            raise ConfigError(f"importing the module '{module}' fails: {_described(error)}") from error
        function = getattr(found, name, None)
        if not callable(function):
            functions = [key for key, value in vars(found).items() if inspect.isfunction(value)]
            problem = "is not a function" if hasattr(found, name) else "does not exist"
            hint = f"; {nearest(name, functions)}" if functions else ""
            raise ConfigError(f"'{name}' in the module '{module}' {problem}{hint}")
        return cls(module, name, function)

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Return the numbers that the function returns.

        Raises ``DataError``, naming the completion that caused it, if the function fails, and for anything but one
        number for each completion.
        """
        try:
            values = list(self._call(samples))
        except FAILURES as error:
            raise self._failure(samples, error) from error
        if len(values) != len(samples):
            raise DataError(
                f"{self._where()} returned {len(values):,} values for {len(samples):,} completions; expected one each"
                f" (the first is {samples[0].shown()})"
            )
        return [self._number(value, sample) for value, sample in zip(values, samples, strict=True)]

    def _call(self, samples: Sequence[Sample]) -> Any:
        named = {"answers": [one.answer for one in samples]} if self._takes_answers() else {}
        with _current_folder_first():
            return self.function([one.asked for one in samples], [one.completion for one in samples], **named)

    def _takes_answers(self) -> bool:
        try:
            return "answers" in inspect.signature(self.function).parameters
        except (TypeError, ValueError):  # some built-in functions have no signature
            return False

    def _failure(self, samples: Sequence[Sample], error: BaseException) -> DataError:
        """Return the error for a failed call, with the first completion for which the function fails alone."""
        for sample in samples:
            try:
                list(self._call([sample]))
            except FAILURES as alone:
                return DataError(f"{self._where()} fails: {_described(alone)}, for {sample.shown()}")
        return DataError(
            f"{self._where()} fails: {_described(error)}, for {len(samples):,} completions together, but for none of "
            f"them alone (the first is {samples[0].shown()})"
        )

    def _number(self, value: Any, sample: Sample) -> float:
        try:
            if not isinstance(value, str | bytes):
                return float(value)
        except FAILURES:
            pass
        raise DataError(f"{self._where()} returned {value!r:.40}, for {sample.shown()}; expected a number")

    def _where(self) -> str:
        return f"the reward function {self.module}:{self.name}"


def _described(error: BaseException) -> str:
    return one_line(f"{type(error).__name__}: {error}")


@contextlib.contextmanager
def _current_folder_first() -> Iterator[None]:
    """Import modules of the current folder within the block."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
