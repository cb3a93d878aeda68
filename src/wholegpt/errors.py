"""Errors that a user can cause.

Each message is one line: what was found, where, what was expected, and what to do next. The command line
prints that line and exits with ``exit_code``; Python callers catch ``WholeGPTError``.
"""

import re

BIDIRECTIONAL = "\u202a-\u202e\u2066-\u2069"
"""Characters that reorder the text around them, as a range of a regular expression; they can hide text."""
_CONTROL = re.compile(rf"[\x00-\x1f\x7f-\x9f\u2028\u2029{BIDIRECTIONAL}]+")


def one_line(text: str) -> str:
    """Return ``text`` on one line, with a space in place of control characters."""
    return " ".join(_CONTROL.sub(" ", text).split())


def shortened(text: str, longest: int = 60) -> str:
    """Return ``one_line`` of ``text``, with its middle elided beyond ``longest`` characters."""
    line = one_line(text)
    half = longest // 2
    return line if len(line) <= longest else f"{line[: longest - half - 1]}…{line[-half:]}"


class WholeGPTError(Exception):
    """An error that the user can fix. The message says how, in one line whatever foreign text it quotes."""

    exit_code = 2

    def __init__(self, message: str = "") -> None:
        super().__init__(_CONTROL.sub(" ", message))


_PLURAL = re.compile(
    r"\b(completion|conversation|document|example|file|folder|line|pair|prompt|question|row|thread)s\b"
    r"( that are\b)?|^that are\b"
)
"""The nouns that are counted in messages, with the beginning of a relative clause."""


def counted(count: int, what: str) -> str:
    """Return a count and what is counted, given in the plural: "1 file", "2,000 files that are empty"."""

    def singular(found: re.Match[str]) -> str:
        return " ".join(filter(None, (found[1], "that is" if found[2] or not found[1] else "")))

    return f"{count:,} {_PLURAL.sub(singular, what, count=1) if count == 1 else what}"


class ConfigError(WholeGPTError):
    """A setting is unknown, has the wrong type, or contradicts another one."""


class RenamedSettingWarning(FutureWarning):
    """A file or a mapping uses the former name of a setting."""


class DataError(WholeGPTError):
    """A text source is missing, empty, unreadable or too short."""


class TokenizerError(WholeGPTError):
    """A tokenizer cannot be loaded, or cannot encode a text."""


class CheckpointError(WholeGPTError):
    """A model or checkpoint folder is missing, damaged, too new, or cannot be written."""


class RunError(WholeGPTError):
    """A run folder cannot be used as requested."""


class NumericsError(WholeGPTError):
    """A recorded numerical choice is not available here, or training produced NaN or infinity."""


class QueueFull(WholeGPTError):
    """A scheduler has as many queued requests as it accepts."""


class SchedulerClosed(WholeGPTError):
    """A scheduler accepts no more requests: it was closed, or its engine failed."""


class Interrupted(WholeGPTError):
    """The user pressed Ctrl-C. The message says what was saved and how to continue."""

    exit_code = 130
