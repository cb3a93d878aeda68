"""Small tables, read whole: comma- or tab-separated values, JSON lines, JSON."""

import csv
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from wholegpt.data.reading import read_text
from wholegpt.errors import DataError

LARGEST_TABLE = 2**30
"""Bytes of a file that is read."""
LONGEST_CELL = 2**24
"""Characters of one."""
UNNAMED = "unnamed"
"""A first column without a name, as pandas writes its index."""


@dataclass(frozen=True)
class Table:
    """Records with the same columns."""

    path: Path
    columns: tuple[str, ...]
    """Their names; their numbers, from 0, where the file names none."""
    rows: list[dict[str, Any]]
    places: list[str]
    """Where each row stands: "line 3"."""

    def column(self, name: str) -> list[Any]:
        """The values of a column. Raises ``DataError`` that lists the columns where there is none of this name."""
        if name not in self.columns:
            raise DataError(f"{self.path}: has no column '{name}'; there are {', '.join(self.columns)}")
        return [row.get(name) for row in self.rows]

    def where(self, row: int) -> str:
        """The file and the place of a row, as errors name them."""
        return f"{self.path}: {self.places[row]}"


def read_table(path: Path, encoding: str = "utf-8", expected: Sequence[str] = ()) -> Table:
    """The table in a file, by the end of its name: .csv, .tsv (without quoting), .jsonl or .json (a list).

    The first row of separated values names the columns where it has all that are ``expected``, and not where those are
    numbers. Else it does unless one of its cells is a number or stands in its column again: then it is a row like the
    others. Values that no comma separates may be separated by semicolons. Raises ``DataError`` naming file and line.
    """
    if not is_table(path):
        raise DataError(f"{path}: is no table; expected a name that ends in {', '.join(READERS)}")
    if path.is_file() and path.stat().st_size > LARGEST_TABLE:
        raise DataError(f"{path}: larger than {LARGEST_TABLE:,} bytes; tables of examples are read whole")
    text = read_text(path, encoding)
    found = list(READERS[path.suffix.lower()](path, text, expected))
    if not found:
        raise DataError(f"{path}: holds no rows")
    columns = tuple(dict.fromkeys(name for _, row in found for name in row))
    return Table(path, columns, [row for _, row in found], [place for place, _ in found])


def is_table(path: Path) -> bool:
    """Whether a file's name says that it is one."""
    return path.suffix.lower() in READERS


def number_of(text: str) -> float | None:
    """The finite number that a text spells; none where it spells none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _separated(path: Path, text: str, expected: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    tabs = path.suffix.lower() == ".tsv"
    csv.field_size_limit(LONGEST_CELL)
    quoting = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    lines_of_text = text.split("\n" if "\n" in text else "\r")
    semicolons = ";" in lines_of_text[0] and "," not in lines_of_text[0]
    lines = csv.reader(
        (line + "\n" for line in lines_of_text),
        delimiter="\t" if tabs else ";" if semicolons else ",",
        strict=not tabs,
        quoting=quoting,
    )
    rows: list[tuple[str, list[str]]] = []
    try:
        for row in lines:
            row = [cell.removesuffix("\r") for cell in row]
            if any(row) or len(row) == 1:  # what is empty but for separators is no row
                rows.append((f"line {lines.line_num}", row))
    except csv.Error as error:
        raise DataError(f"{path}: line {lines.line_num}: {error}") from None
    if not rows:
        return
    first = rows[0][1]
    for place, row in rows:
        if len(row) != len(first):
            raise DataError(f"{path}: {place}: has {len(row)} columns, the first row {len(first)}")
    named = _names_columns([row for _, row in rows], expected)
    names = [name.strip() or UNNAMED for name in first] if named else [str(i) for i in range(len(first))]
    if len(set(names)) < len(names):
        raise DataError(f"{path}: two columns have the same name: {', '.join(names)}")
    for place, row in rows[named:]:
        yield place, dict(zip(names, row, strict=True))


def _names_columns(rows: list[list[str]], expected: Sequence[str]) -> bool:
    first = [cell.strip() for cell in rows[0]]
    if expected and ({*expected} <= {*first} or all(name.isdigit() for name in expected)):
        return {*expected} <= {*first}
    if not all(first[1:]) or any(number_of(cell) is not None for cell in first):
        return False
    counts = [Counter(cell.strip() for cell in column) for column in zip(*rows, strict=True)]
    return all(count[cell] == 1 for cell, count in zip(first, counts, strict=True))


def _json_lines(path: Path, text: str, _expected: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}", _record(path, f"line {number}", line)


def _record(path: Path, place: str, line: str) -> dict[str, Any]:
    try:
        record = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError) as error:
        raise DataError(f"{path}: {place}: is not JSON: {error}") from None
    return _checked(path, place, record)


def _checked(path: Path, place: str, record: Any) -> dict[str, Any]:
    if not isinstance(record, Mapping):
        raise DataError(f"{path}: {place}: expected an object with named fields, found {str(record)[:40]!r}")
    return dict(record)


def _json(path: Path, text: str, _expected: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        records = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON: {error}") from None
    if not isinstance(records, list):
        raise DataError(f"{path}: expected a list of objects")
    for number, record in enumerate(records, 1):
        yield f"entry {number}", _checked(path, f"entry {number}", record)


READERS: dict[str, Callable[[Path, str, Sequence[str]], Iterator[tuple[str, dict[str, Any]]]]] = {
    ".csv": _separated,
    ".tsv": _separated,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
}
"""By the ends of names."""
