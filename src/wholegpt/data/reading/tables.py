"""Tables of examples, read whole into memory."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wholegpt.console import Console
from wholegpt.data.reading.decoding import ReadingReport, Source, pass_over
from wholegpt.data.reading.file_types import TABLES, is_table
from wholegpt.data.reading.files import check_options, table_rows, useful_options
from wholegpt.data.reading.row import LoneValue
from wholegpt.data.reading.separated_rows import number_of
from wholegpt.errors import DataError
from wholegpt.settings.choices import OnBadLine, OnBadText
from wholegpt.settings.schema import DataConfig

__all__ = ["Reading", "Table", "is_table", "number_of", "read_table"]

LARGEST_TABLE = 2**30
"""Bytes of a table that is read, decompressed."""


@dataclass(frozen=True)
class Reading:
    """How tables of examples are read, and what was left out of them."""

    encoding: str = "utf-8"
    on_bad_text: OnBadText = "stop"
    on_bad_line: OnBadLine = "stop"
    report: ReadingReport = field(default_factory=ReadingReport)

    @classmethod
    def of(cls, data: DataConfig, *paths: str) -> "Reading":
        """As ``data`` says, of the tables at ``paths``. Raises ``ConfigError`` for an option that changes nothing."""
        tables = [Path(path) for path in paths if path]
        check_options(
            data, lambda: set[str]().union(*(useful_options(one, data) for one in tables)), paths[0]
        )
        return cls(data.encoding, data.on_bad_text, data.on_bad_line)

    @property
    def config(self) -> DataConfig:
        """These options as settings."""
        return DataConfig(encoding=self.encoding, on_bad_text=self.on_bad_text, on_bad_line=self.on_bad_line)

    def table(self, path: Path, expected: Sequence[str] = ()) -> "Table":
        """Read the table at ``path`` by ``read_table`` with these options."""
        return read_table(path, expected=expected, **vars(self))

    def pass_over(self, error: DataError) -> None:
        """Count a row that is no example, such as one without a label, or raise the ``error`` that names the row."""
        if self.on_bad_line == "stop":
            raise DataError(f"{error}; --on-bad-line skip leaves such rows out") from error
        self.report.skip("rows that are no examples", what=str(error))

    def show(self, console: Console) -> None:
        """Say what was left out, and how the columns were found."""
        self.report.show(console)


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


def read_table(
    path: Path,
    encoding: str = "utf-8",
    expected: Sequence[str] = (),
    *,
    on_bad_text: OnBadText = "stop",
    on_bad_line: OnBadLine = "stop",
    report: ReadingReport | None = None,
) -> Table:
    """The table in a file of any format that ``rows`` reads, compressed or not; its name says which.

    The first row of separated values names the columns where it has all that are ``expected``, and not where those are
    numbers; else where it looks like names. The ``report`` counts what ``on_bad_text`` and ``on_bad_line`` leave out.
    Raises ``DataError`` naming file and line.
    """
    if not is_table(path):
        raise DataError(
            f"{path}: is no table; expected a name that ends in {', '.join(TABLES)}, or in these and .gz, .bz2, .xz or "
            ".zst"
        )
    config = DataConfig(encoding=encoding, on_bad_text=on_bad_text, on_bad_line=on_bad_line)
    report = report if report is not None else ReadingReport()
    source = Source(str(path), io.BytesIO(), config, report)
    rows: list[dict[str, Any]] = []
    places: list[str] = []
    for place, value in table_rows(path, config, report, expected, LARGEST_TABLE):
        if isinstance(value, LoneValue):
            raise DataError(f"{path}: holds one value; expected a list of objects, or one object a line")
        if not isinstance(value, Mapping):
            pass_over(source, f": {place}", f"is no object with named fields but {str(value)[:40]!r}")
            continue
        record = _text_only(source, place, dict(value))
        if record is not None:
            rows.append(record)
            places.append(place)
    if not rows:
        skipped = f"; skipped {report.skipped_text()}" if report.skipped else ""
        raise DataError(f"{path}: holds no rows{skipped}")
    return Table(path, tuple(dict.fromkeys(name for row in rows for name in row)), rows, places)


def _text_only(source: Source, place: str, record: dict[str, Any]) -> dict[str, Any] | None:
    """A record that UTF-8 can express; another is left out, repaired or refused, as ``on_bad_text`` says."""
    written = json.dumps(record, ensure_ascii=False, default=str)
    try:
        written.encode()
    except UnicodeEncodeError:
        where = f"{source.where}: {place}"
        if source.config.on_bad_text == "stop":
            raise DataError(
                f"{where} holds half of a surrogate pair, which is no character; --on-bad-text skip leaves it out"
            ) from None
        if source.config.on_bad_text == "skip":
            source.report.skip("rows with bytes or characters that are no text", what=where)
            return None
        source.report.skip("rows with half characters, replaced by ?", what=where)
        return json.loads(written.encode(errors="replace"))
    return record
