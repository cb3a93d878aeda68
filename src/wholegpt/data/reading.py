"""Documents out of text files, folders and JSON lines. A file is a document; so is a JSON line."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from wholegpt.data.shards import PreparedData
from wholegpt.errors import DataError

TEXT_SUFFIXES = frozenset(
    (
        *(".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org", ".html", ".htm", ".xml", ".srt"),
        *(".csv", ".tsv", ".json", ".yaml", ".yml", ".toml", ".ini"),
        *(".py", ".pyi", ".js", ".ts", ".jsx", ".tsx", ".css", ".c", ".h", ".cc", ".cpp", ".hpp", ".rs"),
        *(".go", ".java", ".kt", ".scala", ".rb", ".pl", ".php", ".lua", ".sh", ".bash", ".sql", ".r"),
        *(".jl", ".hs", ".ml", ".lisp", ".el", ".swift", ".m"),
    )
)
JSON_LINES_SUFFIXES = frozenset((".jsonl", ".ndjson"))


@dataclass
class ReadingReport:
    """What was read and what was passed over."""

    files: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    """Reason -> how many files or folders."""

    def skip(self, reason: str, count: int = 1) -> None:
        """Count something as passed over."""
        self.skipped[reason] = self.skipped.get(reason, 0) + count

    def add(self, other: "ReadingReport") -> None:
        """Count what another report counted."""
        self.files += other.files
        for reason, count in other.skipped.items():
            self.skip(reason, count)

    def __str__(self) -> str:
        skipped = ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items()))
        return f"{self.files} file{'s' * (self.files != 1)}" + (f"; skipped {skipped}" if skipped else "")


def read_documents(path: Path, encoding: str, text_field: str, report: ReadingReport) -> Iterator[str]:
    """The documents of a text file, a JSON-lines file, or all such files of a folder in name order.

    Raises ``DataError`` naming the file, and the line or byte, for what cannot be read.
    """
    if path.is_dir():
        for file in _files_below(path, report):
            yield from _read_file(file, encoding, text_field, report)
    else:
        yield from _read_file(path, encoding, text_field, report)


def read_text(path: Path, encoding: str) -> str:
    """A whole text file, line ends untouched. Raises ``DataError`` with the offset of a bad byte."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} (0x{content[error.start]:02x}) is not {encoding}; "
            "name the file's encoding, for example --encoding latin-1"
        ) from None
    except LookupError:
        raise DataError(
            f"data.encoding is '{encoding}', which Python does not know; try utf-8 or latin-1"
        ) from None


def _files_below(folder: Path, report: ReadingReport) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            report.skip("hidden")
        elif path.is_dir():
            if path.is_symlink():
                report.skip("linked folders")
            elif PreparedData.exists(path) or (path / "lineage.json").exists():
                report.skip("folders made by wholegpt")
            else:
                yield from _files_below(path, report)
        elif path.suffix.lower() in TEXT_SUFFIXES | JSON_LINES_SUFFIXES:
            yield path
        else:
            report.skip(path.suffix.lower() or "without a suffix")


def _read_file(path: Path, encoding: str, text_field: str, report: ReadingReport) -> Iterator[str]:
    if path.suffix.lower() in JSON_LINES_SUFFIXES:
        report.files += 1
        yield from _read_json_lines(path, encoding, text_field)
        return
    text = read_text(path, encoding)
    if "\0" in text[:8192]:
        raise DataError(f"{path}: holds NUL bytes, so it is not a text file")
    report.files += 1
    if text:
        yield text


def read_lines(path: Path, encoding: str = "utf-8") -> list[str]:
    """The lines of a file of JSON lines, whose strings may hold U+2028 and its like as they are."""
    return read_text(path, encoding).split("\n")


def _read_json_lines(path: Path, encoding: str, text_field: str) -> Iterator[str]:
    for number, line in enumerate(read_lines(path, encoding), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: line {number} is not JSON: {error}") from None
        if not isinstance(record, dict) or not isinstance(record.get(text_field), str):
            found = ", ".join(record) if isinstance(record, dict) else type(record).__name__
            raise DataError(
                f"{path}: line {number} has no text in field '{text_field}' (found: {found}); "
                "name the field with --text-field"
            )
        try:
            record[text_field].encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{path}: line {number} holds half of a surrogate pair, which is no character"
            ) from None
        if record[text_field]:
            yield record[text_field]
