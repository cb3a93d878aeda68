"""Tables of examples, read whole into memory."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from wholegpt.console import Console
from wholegpt.data.reading.decoding import ReadingReport, Source, skip_record
from wholegpt.data.reading.file_types import TABLES, is_table
from wholegpt.data.reading.files import check_options, table_rows, useful_options
from wholegpt.data.reading.row import LoneValue, by_lower_name
from wholegpt.data.reading.separated_rows import number_of
from wholegpt.errors import DataError
from wholegpt.settings.choices import OnBadLine, OnBadText
from wholegpt.settings.schema import DataConfig

__all__ = ["Reading", "Table", "is_table", "number_of", "read_table"]

LARGEST_TABLE = 2**30
"""Maximum bytes of a decompressed table."""
T = TypeVar("T")


@dataclass(frozen=True)
class Reading:
    """Options for reading tables of examples, and the report of skipped rows."""

    encoding: str = "utf-8"
    on_bad_text: OnBadText = "stop"
    on_bad_line: OnBadLine = "stop"
    report: ReadingReport = field(default_factory=ReadingReport)

    @classmethod
    def of(cls, data: DataConfig, *paths: str) -> "Reading":
        """Return the options of ``data`` for the tables at ``paths``. Raises ``ConfigError`` for an option
        without effect.
        """
        tables = [Path(path) for path in paths if path]
        check_options(
            data, lambda: set[str]().union(*(useful_options(one, data) for one in tables)), paths[0]
        )
        return cls(data.encoding, data.on_bad_text, data.on_bad_line)

    @property
    def config(self) -> DataConfig:
        """Return these options as settings."""
        return DataConfig(encoding=self.encoding, on_bad_text=self.on_bad_text, on_bad_line=self.on_bad_line)

    def table(self, path: Path, expected: Sequence[str] = ()) -> "Table":
        """Read the table at ``path`` with these options."""
        return read_table(path, expected=expected, **vars(self))

    def skip_record(self, error: DataError) -> None:
        """Count a row that is not an example as skipped, or raise the ``error`` that names it."""
        if self.on_bad_line == "stop":
            raise DataError(f"{error}; --on-bad-line skip leaves such rows out") from error
        self.report.skip("rows without an example", what=str(error))

    def examples(self, table: "Table", read: Callable[[Mapping[str, Any], str], T], what: str) -> list[T]:
        """Return the result of ``read``, given a row and its location, for each row of a table.

        Rows for which it raises ``DataError`` are skipped, or are errors (``skip_record``). Raises ``DataError`` if
        none is left; ``what`` names an example in it.
        """
        found, problem = list[T](), ""
        for number, row in enumerate(table.rows):
            try:
                found.append(read(row, table.where(number)))
            except DataError as error:
                self.skip_record(error)
                problem = problem or str(error)
        if not found:
            raise DataError(f"{table.path}: none of {len(table.rows):,} rows is {what}; {problem}")
        return found

    def show(self, console: Console) -> None:
        """Report skipped rows and detected columns."""
        self.report.show(console)


@dataclass(frozen=True)
class Table:
    """Records with the same columns."""

    path: Path
    columns: tuple[str, ...]
    """The column names; indices from 0 if the file has no names."""
    rows: list[dict[str, Any]]
    locations: list[str]
    """The location of each row, for example "line 3"."""

    def column(self, name: str) -> list[Any]:
        """Return the values of a column. Raises ``DataError`` listing the columns if there is none of this
        name.
        """
        if name not in self.columns:
            raise DataError(f"{self.path}: has no column '{name}'; there are {', '.join(self.columns)}")
        return [row.get(name) for row in self.rows]

    def first_of(self, names: Sequence[str], *others: str) -> str:
        """Return the first column with one of the ``names``, in upper or lower case, except ``others``; empty if there
        is none.
        """
        by_name = by_lower_name(self.columns)
        return next((by_name[name] for name in names if name in by_name and by_name[name] not in others), "")

    def note_unused(self, used: Sequence[str], console: Console) -> None:
        """Note which columns are used and which are not, unless all are used."""
        if unused := [name for name in self.columns if name not in used]:
            shown = ", ".join(name for name in used if name)
            console.note(f"{self.path}: columns {shown}; not used: {', '.join(unused)}")

    def where(self, row: int) -> str:
        """Return the file and the location of a row for error messages."""
        return f"{self.path}: {self.locations[row]}"


def read_table(
    path: Path,
    encoding: str = "utf-8",
    expected: Sequence[str] = (),
    *,
    on_bad_text: OnBadText = "stop",
    on_bad_line: OnBadLine = "stop",
    report: ReadingReport | None = None,
) -> Table:
    """Read the table in a file of any format that ``rows`` reads, compressed or not. The file's name determines the
    format.

    The first row of separated values names the columns if it contains all ``expected`` names; it does not if
    those are indices; otherwise this is detected. The ``report`` counts what ``on_bad_text`` and
    ``on_bad_line`` skip. Raises ``DataError`` naming file and line.
    """
    if not is_table(path):
        raise DataError(
            f"{path}: is not a table; expected a name ending in {', '.join(TABLES)}, or in these and .gz, .bz2, .xz or "
            ".zst"
        )
    config = DataConfig(encoding=encoding, on_bad_text=on_bad_text, on_bad_line=on_bad_line)
    report = report if report is not None else ReadingReport()
    source = Source(str(path), io.BytesIO(), config, report)
    rows: list[dict[str, Any]] = []
    locations: list[str] = []
    for location, value in table_rows(path, config, report, expected, LARGEST_TABLE):
        if isinstance(value, LoneValue):
            raise DataError(f"{path}: holds one value; expected a list of objects, or one object a line")
        if not isinstance(value, Mapping):
            skip_record(
                source, f": {location}", f"is not an object with named fields but {str(value)[:40]!r}"
            )
            continue
        record = _text_only(source, location, dict(value))
        if record is not None:
            rows.append(record)
            locations.append(location)
    if not rows:
        skipped = f"; skipped {report.skipped_text()}" if report.skipped else ""
        raise DataError(f"{path}: holds no rows{skipped}")
    return Table(path, tuple(dict.fromkeys(name for row in rows for name in row)), rows, locations)


def _text_only(source: Source, location: str, record: dict[str, Any]) -> dict[str, Any] | None:
    """Return a record if UTF-8 can encode it; otherwise skip, repair or reject it, as ``on_bad_text`` says."""
    written = json.dumps(record, ensure_ascii=False, default=str)
    try:
        written.encode()
    except UnicodeEncodeError:
        where = f"{source.where}: {location}"
        if source.config.on_bad_text == "stop":
            raise DataError(
                f"{where} holds half of a surrogate pair, which is not a character; --on-bad-text skip leaves it out"
            ) from None
        if source.config.on_bad_text == "skip":
            source.report.skip("rows with bytes or characters that are not text", what=where)
            return None
        source.report.skip("rows with half characters, replaced by ?", what=where)
        return json.loads(written.encode(errors="replace"))
    return record
