"""Rows of JSON: one per line, one per entry of a list, or one after another."""

import contextlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NoReturn

from wholegpt.data.reading import decoding as formats
from wholegpt.data.reading.decoding import Source, skip_record
from wholegpt.data.reading.row import LoneValue, Row, TableText
from wholegpt.errors import DataError

_WHITE_SPACE = re.compile(r"[ \t\r\n]*")


class _NotOneValueError(ValueError):
    """JSON that only Python accepts: a duplicate name, or a number that is infinite or NaN."""


class _Parser:
    """A parser of JSON as in RFC 8259, with unique names in each object."""

    def __init__(self) -> None:
        self._problem = ""
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_float=self._float, parse_constant=self._constant
        )

    def parse(self, text: str) -> Any:
        """Return the single value of a text. Raises ``ValueError`` or ``RecursionError``."""
        stripped = text.strip()
        value, end = self.parse_at(stripped, 0)
        if end != len(stripped):
            raise json.JSONDecodeError("Extra data", stripped, end)
        self.check()
        return value

    def parse_at(self, text: str, at: int) -> tuple[Any, int]:
        """Return the value at a position, and its end; call ``check`` afterwards to validate it."""
        self._problem = ""
        return self._decoder.raw_decode(text, at)

    def check(self) -> None:
        """Raise ``ValueError`` if the last value contains anything that JSON does not allow."""
        if self._problem:
            raise _NotOneValueError(self._problem)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
            self._problem = f"has the field '{twice}' twice"
        return found

    def _float(self, digits: str) -> float:
        number = float(digits)
        if math.isinf(number):
            self._problem = f"holds {digits}, which is beyond the largest number"
        return number

    def _constant(self, name: str) -> None:
        self._problem = f"holds {name}, which is not a JSON value"


def _problem_of(error: Exception) -> str:
    if isinstance(error, _NotOneValueError):
        return str(error)
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"is not JSON: {error}"
    return "holds a number with too many digits"  # a ValueError raised by Python


def _is_value(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def json_rows(source: Source) -> Iterator[Row]:
    """Yield values, one per line, from a list, or one after another, depending on the first line."""
    text = TableText.of(source)
    first, _, rest = text.head.lstrip().partition(text.line_end)
    complete = _is_value(first)
    if first.startswith("[") and not (complete and rest.strip()):
        entries = _entries(source, text)
        yield from list(entries) if text.whole else entries  # a small file that is not JSON has no rows
        return
    alone = text.whole and complete and not rest.strip()
    if alone and source.format == ".json":
        yield from _lone(source, text.head)
        return
    if first.startswith("{") and not complete:
        while not text.whole and len(text.head) <= formats.LONGEST_RECORD:
            block = next(text.blocks, "")
            text = TableText(text.head + block, not block, text.blocks)
        if text.whole and (values := _values(text.head)):
            if len(values) == 1 and source.format == ".json":
                yield from _lone(source, text.head)
                return
            for number, value in enumerate(values, 1):
                yield from _parsed(source, f"entry {number}", value)
            return
    for number, line in text.lines(source):
        if line.strip():
            yield from _parsed(source, f"line {number}", line)


def _lone(source: Source, text: str) -> Iterator[Row]:
    for row in _parsed(source, "entry 1", text):
        yield Row(row.location, LoneValue(text, row.record))


def _parsed(source: Source, location: str, text: str) -> Iterator[Row]:
    try:
        value = _Parser().parse(text)
    except (ValueError, RecursionError) as error:
        skip_record(source, f": {location}", _problem_of(error))
        return
    yield Row(location, value)


def _values(text: str) -> list[str]:
    """Return the texts of consecutive JSON values; an empty list for any other text."""
    parser, found, at = _Parser(), list[str](), 0
    while at < len(text):
        start = _WHITE_SPACE.match(text, at).end()  # pyright: ignore[reportOptionalMemberAccess]
        if start == len(text):
            break
        try:
            _, at = parser.parse_at(text, start)
        except (ValueError, RecursionError):
            return []
        found.append(text[start:at])
    return found


class _Entries:
    """The text of a list, of which only an entry and a block are in memory."""

    def __init__(self, source: Source, text: TableText) -> None:
        self.source, self.blocks = source, text.blocks
        self.buffer, self.ended, self.at = text.head, text.whole, 0
        self.number, self.lines_before = 0, 0

    def more(self) -> None:
        """Read on, about as much as is in memory of the entry already."""
        self.lines_before += self.buffer.count("\n", 0, self.at)
        held = [self.buffer[self.at :]]
        size = wanted = len(held[0]) + 1
        while size < 2 * wanted and not self.ended:
            block = next(self.blocks, "")
            self.ended = not block
            held.append(block)
            size += len(block)
        self.buffer, self.at = "".join(held), 0
        if len(self.buffer) > 2 * formats.LONGEST_RECORD:
            self.refuse(f"is longer than {formats.LONGEST_RECORD:,} characters; give JSON lines (.jsonl)")

    def skip(self) -> str:
        """Return the next character that is not white space; empty at the end."""
        while True:
            self.at = _WHITE_SPACE.match(self.buffer, self.at).end()  # pyright: ignore[reportOptionalMemberAccess]
            if self.at < len(self.buffer) or self.ended:
                return self.buffer[self.at : self.at + 1]
            self.more()

    def refuse(self, problem: str) -> NoReturn:
        """End the list here, as ``on_bad_line`` says: the position of the next entry is unknown."""
        line = self.lines_before + self.buffer.count("\n", 0, self.at) + 1
        where = f"{self.source.where}: entry {self.number}, line {line}"
        if self.source.config.on_bad_line == "stop":
            raise DataError(f"{where}, {problem}; --on-bad-line skip leaves out the rest of this file")
        self.source.report.skip("files cut at bad JSON", what=where)
        raise _EndOfListError


class _EndOfListError(Exception):
    """The rest of a list cannot be read and is skipped."""


def _entries(source: Source, text: TableText) -> Iterator[Row]:
    """Yield the entries of a list, one at a time."""
    with contextlib.suppress(_EndOfListError):
        yield from _read_entries(source, _Entries(source, text))


def _read_entries(source: Source, entries: _Entries) -> Iterator[Row]:
    parser = _Parser()
    entries.skip()
    entries.at += 1
    while (mark := entries.skip()) != "]":
        if entries.number:
            if mark != ",":
                entries.refuse("is not JSON: expected a comma or the end of the list after it")
            entries.at += 1
            entries.skip()
        entries.number += 1
        value, end = _entry(entries, parser)
        entries.at = end
        try:
            parser.check()
        except ValueError as error:
            skip_record(source, f": entry {entries.number}", str(error))
            continue
        yield Row(f"entry {entries.number}", value)
    entries.at += 1
    if entries.skip():
        entries.refuse("is not JSON: more follows after the end of the list")


def _entry(entries: _Entries, parser: _Parser) -> tuple[Any, int]:
    while True:
        try:
            value, end = parser.parse_at(entries.buffer, entries.at)
            if end < len(entries.buffer) or entries.ended:
                if end - entries.at > formats.LONGEST_RECORD:
                    entries.refuse(
                        f"is longer than {formats.LONGEST_RECORD:,} characters; give JSON lines (.jsonl)"
                    )
                return value, end
        except json.JSONDecodeError as error:
            if entries.ended:
                entries.refuse(f"is not JSON: {error.msg}")
        except (ValueError, RecursionError) as error:
            entries.refuse(f"is not JSON: {error}")
        entries.more()
