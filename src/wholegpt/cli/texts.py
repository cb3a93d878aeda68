"""The TEXT arguments of commands: given on the command line, or as standard input where none is, or ``-``."""

import os
import select
import stat
import sys

from wholegpt.console import write_error
from wholegpt.errors import DataError
from wholegpt.files import is_file

LARGEST_BYTES = 2**24
"""Of a text on standard input."""
NOTE_SECONDS, MOST_SECONDS = 2.0, 30.0
"""After which a pipe in which nothing comes is spoken of, and given up."""
WHERE = "standard input"
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")


def text_or_input(text: str | None) -> str:
    """``text``, or what is piped in where none is given; empty where there is neither.

    ``-`` is what is piped in, and a text of one hyphen where nothing is.

    Raises ``DataError`` where ``text`` is the name of a file, whose text was probably meant.
    """
    if text is None:
        return piped_text()
    if text == "-":
        return piped_text() or text
    check_no_file(text)
    return text


def required_text(text: str | None) -> str:
    """``text_or_input``; raises ``DataError`` where there is neither."""
    chosen = text_or_input(text)
    if text is None and not chosen:
        raise DataError("no text given; name one, or pipe it in")
    return chosen


def check_no_file(text: str, option: str = "") -> None:
    """Raise ``DataError`` where ``text`` is the name of a file, or, with an ``option`` that takes tables, looks so."""
    if is_file(text):
        table = f"`{option} {text}` for the table in it, " if option else ""
        raise DataError(
            f"{text}: is a file, but a text is expected here; give {table}`< {text}` for the text in it, or "
            f"`printf %s {text} | wholegpt ...` for its name as the text"
        )
    if option and text.lower().endswith(TABLE_SUFFIXES) and not any(map(str.isspace, text)):
        raise DataError(
            f"{text}: no such file; `{option} FILE` names a table, and `printf %s {text} | wholegpt ...` gives the "
            "name as the text"
        )


def piped_text() -> str:
    """The text in a pipe or a file on standard input, without one end of a line at its end; else nothing.

    Nothing is read from a terminal or from a device. Raises ``DataError`` for what is not UTF-8 or too long, and
    where a pipe stays open and empty.
    """
    try:
        descriptor = sys.stdin.fileno()
        mode = os.fstat(descriptor).st_mode
    except (OSError, ValueError):  # a stream of Python's alone, or none
        return ""
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISREG(mode)):
        return ""
    _wait_for_input(descriptor)
    content = sys.stdin.buffer.read(LARGEST_BYTES + 1)
    if len(content) > LARGEST_BYTES:
        raise DataError(f"{WHERE}: holds more than {LARGEST_BYTES:,} bytes, too many for one text")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{WHERE}: byte {error.start} is not UTF-8; convert it, as by iconv") from None
    return text.removesuffix("\n").removesuffix("\r")


def _wait_for_input(descriptor: int) -> None:
    """Wait for the first byte or the end; raises ``DataError`` where neither comes."""
    if select.select([descriptor], [], [], NOTE_SECONDS)[0]:
        return
    write_error(f"no text is given, so it is read from {WHERE}, a pipe; waiting")
    if not select.select([descriptor], [], [], MOST_SECONDS - NOTE_SECONDS)[0]:
        raise DataError(
            f'{WHERE}: nothing came through the pipe in {MOST_SECONDS:.0f} s; give a text ("" for none), or </dev/null'
        )
