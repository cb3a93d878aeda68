"""Rows of separated values: detect the separator, and whether the first row names the columns."""

import contextlib
import csv
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from wholegpt.data.reading import decoding as formats
from wholegpt.data.reading.decoding import Source, skip_record
from wholegpt.data.reading.row import Row, TableText, check_names

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
SEPARATOR_LINE = re.compile(r'"?sep=([^\w\s"]|\t)"?\r?(?:\n|$)', re.IGNORECASE)
"""A first line that names the separator, as Excel reads and writes it."""
SPACE_BEFORE_QUOTE = re.compile(r' +"')
PROBLEMS = {
    "new-line character": "has an unquoted carriage return within a line",
    "unexpected end of data": "opens a quotation mark that is not closed",
}
"""Start of an error of Python's reader, and the message shown."""
MOST_WORDS = 3
"""Maximum words in the name of a single column."""
UNNAMED = "unnamed"
"""Name of a column without a name, such as the index that pandas writes."""
KNOWN_NAMES = (
    {"id", "text", "texts", "content", "label", "labels"}
    | {"prompt", "completion", "instruction", "output", "response", "premise", "hypothesis"}
    | {"sentence", "sentence1", "sentence2", "sentence_a", "sentence_b", "text1", "text2", "text_a", "text_b"}
)
"""Column names that are rarely values."""


def separated_rows(source: Source, expected: Sequence[str]) -> Iterator[Row]:
    """Yield rows with the names of their columns, or with column indices if the first row has no names."""
    text = TableText.of(source)
    dialect, named = _dialect(source, text, expected)
    rows = csv.reader((line + "\n" for _, line in text.lines(source)), **dialect)
    names: list[str] = []
    width = 0
    while True:
        before = rows.line_num
        location = f"line {before + 1}"
        try:
            row = next(rows, None)
        except csv.Error as error:
            # An unclosed quotation mark consumes all lines after it.
            problem = next(
                (said for start, said in PROBLEMS.items() if str(error).startswith(start)), str(error)
            )
            skip_record(source, f": {location}", problem, rows.line_num - before)
            continue
        if row is None:
            return
        if not before and SEPARATOR_LINE.match(text.head):
            continue
        row = [cell.removesuffix("\r") for cell in row]
        if not any(row) and len(row) != 1:
            continue  # a line of separators only is not a row
        if not width:
            width = len(row)
            names = _column_names(source, row) if named else [str(i) for i in range(width)]
            if named:
                continue
        if len(row) != width:
            problem = f"has {len(row)} columns, the first row {width}"
            skip_record(source, f": {location}", problem, rows.line_num - before)
            continue
        yield Row(location, dict(zip(names, row, strict=True)))


def _column_names(source: Source, row: Sequence[str]) -> list[str]:
    names = [cell.strip() for cell in row]
    empty = [i for i, name in enumerate(names) if not name]
    for i in empty:
        names[i] = UNNAMED if len(empty) == 1 else f"{UNNAMED} {i}"
    check_names(source.where, names)
    return names


def _dialect(source: Source, text: TableText, expected: Sequence[str]) -> tuple[dict[str, Any], bool]:
    """Return how values are separated and quoted, and whether the first row names the columns."""
    usual = "\t" if source.format == ".tsv" else ","
    told = SEPARATOR_LINE.match(text.head)
    choices = [told[1]] if told else [usual, *(one for one in DELIMITERS if one != usual)]
    dialects: dict[str, dict[str, Any]] = {
        delimiter: {
            "delimiter": delimiter,
            "strict": True,
            # Tab-separated values have no quotation marks, except in .csv files written by spreadsheets.
            "quoting": csv.QUOTE_NONE if source.format == ".tsv" and delimiter == "\t" else csv.QUOTE_MINIMAL,
        }
        for delimiter in choices
    }
    csv.field_size_limit(formats.LONGEST_RECORD)
    samples = {delimiter: _sample(text, dialect) for delimiter, dialect in dialects.items()}
    chosen = told[1] if told else _delimiter(samples, usual)
    if chosen != usual:
        source.report.note(f"columns are separated by {DELIMITERS.get(chosen, chosen)}")
    rows, dialect = samples[chosen], dialects[chosen]
    if any(SPACE_BEFORE_QUOTE.match(cell) for row in rows for cell in row[1:]):
        spaced = _sample(text, {**dialect, "skipinitialspace": True})
        if len({len(row) for row in spaced}) == 1 and len(spaced) >= len(rows):
            rows, dialect = spaced, {**dialect, "skipinitialspace": True}
    named = bool(rows) and _names_columns(rows, expected)
    if rows and not named:
        source.report.note("the first row does not name the columns, so they are numbered from 0")
    return dialect, named


def _sample(text: TableText, dialect: Mapping[str, Any]) -> list[list[str]]:
    """Return the first rows, without the last one if the file is longer."""
    lines = text.head.split(text.line_end)
    if not text.whole:
        lines.pop()
    if SEPARATOR_LINE.match(text.head):
        del lines[0]
    rows: list[list[str]] = []
    with contextlib.suppress(csv.Error):
        for row in csv.reader((line + "\n" for line in lines), **dialect):
            cells = [cell.removesuffix("\r") for cell in row]
            if any(cells) or len(cells) == 1:
                rows.append(cells)
    return rows


def _delimiter(samples: Mapping[str, list[list[str]]], usual: str) -> str:
    """Return the separator of the columns: the usual one of the format if it fits, else another one that
    fits.

    A separator fits if it splits the first row, and all other rows into as many columns. If none fits, the
    result is the one that agrees with the first row most often; the other rows then count as bad.
    """

    def alike(delimiter: str) -> float:
        rows = samples[delimiter]
        if not rows or len(rows[0]) < 2:
            return 0.0
        return sum(len(row) == len(rows[0]) for row in rows) / len(rows)

    fits = [delimiter for delimiter in samples if alike(delimiter) == 1]
    if fits:
        return fits[0]
    best = max(samples, key=lambda delimiter: (alike(delimiter), delimiter == usual))
    return best if alike(best) > 0.5 else usual


def _names_columns(rows: list[list[str]], expected: Sequence[str]) -> bool:
    """Return whether the first row holds names: all expected ones, or else known ones, or values of no other
    row.

    The name of a single column has few words; a line of text is not a name.
    """
    first = [cell.strip() for cell in rows[0]]
    if expected and {*expected} <= {*first}:
        return True
    if expected and all(name.isdecimal() for name in expected):
        return False
    if any(cell.lower() in KNOWN_NAMES for cell in first):
        return True
    if len(first) == 1 and len(first[0].split()) > MOST_WORDS:
        return False
    if not all(first[1:]) or any(number_of(cell) is not None for cell in first):
        return False
    counts = [Counter(row[i].strip() for row in rows if len(row) > i) for i in range(len(first))]
    return all(count[cell] == 1 for cell, count in zip(first, counts, strict=True))


def number_of(text: str) -> float | None:
    """Return the finite number that a text spells, or ``None``."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
