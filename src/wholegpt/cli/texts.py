"""TEXT arguments of commands: from the command line, or from standard input if missing or ``-``."""

import os
import select
import stat
import sys

from wholegpt.console import write_error
from wholegpt.errors import DataError
from wholegpt.files import is_file

LARGEST_BYTES = 2**24
"""Maximum size of a text on standard input."""
NOTE_SECONDS, MOST_SECONDS = 2.0, 30.0
"""Waiting time for an empty pipe before a note, and before an error."""
WHERE = "standard input"
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")


def text_or_input(text: str | None) -> str:
    """Return ``text``, or standard input if it is ``None``; an empty string if there is neither.

    ``-`` means standard input, or a text of one hyphen if nothing is piped in.

    Raises ``DataError`` if ``text`` is the name of a file, because its content was probably meant.
    """
    if text is None:
        return piped_text()
    if text == "-":
        return piped_text() or text
    check_no_file(text)
    return text


def required_text(text: str | None) -> str:
    """Return ``text_or_input``. Raises ``DataError`` if there is neither."""
    chosen = text_or_input(text)
    if text is None and not chosen:
        raise DataError("no text given; give one, or pipe it in")
    return chosen


def check_no_file(text: str, option: str = "") -> None:
    """Raise ``DataError`` if ``text`` is the name of a file, or looks like a table where ``option`` accepts tables."""
    if is_file(text):
        table = f"`{option} {text}` for the table in it, " if option else ""
        raise DataError(
            f"{text}: is a file, but a text is expected here; use {table}`< {text}` for the text in it, or "
            f"`printf %s {text} | wholegpt ...` for its name as the text"
        )
    if option and text.lower().endswith(TABLE_SUFFIXES) and not any(map(str.isspace, text)):
        raise DataError(
            f"{text}: no such file; use `{option} FILE` for a table, or `printf %s {text} | wholegpt ...` for the "
            "name as the text"
        )


def piped_text() -> str:
    """Return the text in a pipe or a file on standard input, without a final line break; otherwise "".

    Terminals and devices are not read. Raises ``DataError`` if the text is not UTF-8 or too long, and if a pipe stays
    open and empty.
    """
    try:
        descriptor = sys.stdin.fileno()
        mode = os.fstat(descriptor).st_mode
    except (OSError, ValueError):  # a Python stream without a descriptor, or none
        return ""
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISREG(mode)):
        return ""
    _wait_for_input(descriptor)
    content = sys.stdin.buffer.read(LARGEST_BYTES + 1)
    if len(content) > LARGEST_BYTES:
        raise DataError(f"{WHERE}: contains more than {LARGEST_BYTES:,} bytes, the maximum of a text")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{WHERE}: byte {error.start} is not UTF-8; convert it, for example with iconv"
        ) from None
    return text.removesuffix("\n").removesuffix("\r")


def _wait_for_input(descriptor: int) -> None:
    """Wait for the first byte or the end of the input. Raises ``DataError`` after a time limit."""
    if select.select([descriptor], [], [], NOTE_SECONDS)[0]:
        return
    write_error(f"no text given; waiting for {WHERE} (a pipe)")
    if not select.select([descriptor], [], [], MOST_SECONDS - NOTE_SECONDS)[0]:
        raise DataError(
            f'{WHERE}: no input from the pipe within {MOST_SECONDS:.0f} s; give a text ("" for none), or </dev/null'
        )
