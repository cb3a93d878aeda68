"""Documents out of files of any common form, as a stream: a file's text is a document, and so is a record of a table.

``formats`` reads one form each; here files are found, opened, decompressed, hashed and watched.
"""

import codecs
import gzip
import hashlib
import importlib
import io
import math
import mimetypes
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wholegpt.config import DataConfig
from wholegpt.data import formats
from wholegpt.data.formats import Piece, Source
from wholegpt.data.sources import without_text
from wholegpt.errors import DataError

TABLES: dict[str, formats.Reader] = {
    ".jsonl": formats.read_json_lines,
    ".ndjson": formats.read_json_lines,
    ".json": formats.read_json,
    ".csv": formats.read_separated,
    ".tsv": formats.read_separated,
}
PARQUET = (".parquet", ".pq")
JSON_LINES_SUFFIXES = frozenset((".jsonl", ".ndjson"))
COMPRESSED = (".gz", ".zst")
SNIFFED_BYTES = 8192
COMPRESSED_BLOCK_BYTES = 16_384
"""Small, since a few bytes can stand for many."""


@dataclass
class ReadingReport:
    """What was read and what was passed over."""

    files: int = 0
    bytes: int = 0
    """As they lie on disk."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Reason -> how many files, folders, lines or documents."""
    fields: dict[str, int] = field(default_factory=dict)
    """Field that a text was taken from, where it was found and not named -> how many files."""
    other_fields: dict[str, None] = field(default_factory=dict)
    """Of records that lack a field for control: what they have, in order."""
    hashes: list[Any] = field(default_factory=list)
    """SHA-256 of each file read, in order."""

    def skip(self, reason: str, count: int = 1) -> None:
        """Count something as passed over."""
        self.skipped[reason] = self.skipped.get(reason, 0) + count

    def add(self, other: "ReadingReport") -> None:
        """Count what another report counted."""
        self.files += other.files
        self.bytes += other.bytes
        self.hashes += other.hashes
        for reason, count in other.skipped.items():
            self.skip(reason, count)
        self.other_fields.update(other.other_fields)
        for name, count in other.fields.items():
            self.fields[name] = self.fields.get(name, 0) + count

    @property
    def sha256(self) -> str:
        """Of the one file, or of the SHA-256s of all, in order."""
        return (
            self.hashes[0].hex()
            if len(self.hashes) == 1
            else hashlib.sha256(b"".join(self.hashes)).hexdigest()
        )

    def __str__(self) -> str:
        skipped = ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items()))
        found = ", ".join(f"'{name}'" for name in sorted(self.fields))
        return (
            f"{self.files} file{'s' * (self.files != 1)}"
            + (f"; text taken from {found}" if found else "")
            + (f"; skipped {skipped}" if skipped else "")
        )


def read_pieces(
    path: Path, config: DataConfig, report: ReadingReport, advance: Callable[[int], None] = lambda read: None
) -> Iterator[Piece]:
    """The documents of a file, or of all files of a folder in name order.

    ``advance`` is told the bytes read. Raises ``DataError`` naming the file, and the line or byte, for what cannot be
    read.
    """
    if path.is_dir():
        for file in files_below(path, report):
            yield from _read_file(file, config, report, advance)
    else:
        yield from _read_file(path, config, report, advance)


def read_documents(path: Path, config: DataConfig, report: ReadingReport) -> Iterator[str]:
    """``read_pieces`` with the pieces of each document joined."""
    held: list[str] = []
    for piece in read_pieces(path, config, report):
        if piece.begins and held:
            yield "".join(held)
            held = []
        held.append(piece.text)
    if held:
        yield "".join(held)


def read_text(path: Path, encoding: str) -> str:
    """A whole text file, line ends untouched. Raises ``DataError`` with the offset of a bad byte."""
    try:
        with path.open("rb") as stream:
            source = Source(str(path), stream, DataConfig(encoding=encoding), ReadingReport())
            return "".join(formats.decoded(source))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def read_lines(path: Path, encoding: str = "utf-8") -> list[str]:
    """The lines of a file of JSON lines, whose strings may hold U+2028 and its like as they are."""
    return read_text(path, encoding).split("\n")


def files_below(folder: Path, report: ReadingReport) -> Iterator[Path]:
    """The files of a folder and of those in it, in name order; hidden, linked and foreign ones are passed over."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror}") from None
    for path in entries:
        if path.name.startswith("."):
            report.skip("hidden")
        elif path.is_dir():
            if path.is_symlink():
                report.skip("linked folders")
            elif without_text(path):
                report.skip("folders of models and runs")
            else:
                yield from files_below(path, report)
        elif not path.is_file():
            report.skip("broken links, pipes and devices")
        elif form(path) in TABLES or form(path) in PARQUET or _looks_like_text(path):
            yield path
        else:
            report.skip(f"binary ({path.suffix.lower() or 'no suffix'})")


def form(path: Path) -> str:
    """The suffix that tells a file's form, without that of its compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _looks_like_text(path: Path) -> bool:
    """By its name and its first bytes."""
    kind = mimetypes.guess_type(path.with_suffix(form(path)))[0] or ""
    if kind.partition("/")[0] in ("image", "audio", "font"):
        return False
    try:
        with path.open("rb") as raw, _decompressed(raw, path) as stream:
            start = stream.read(SNIFFED_BYTES)
    except (OSError, EOFError, zlib.error):
        return path.suffix.lower() in COMPRESSED  # damaged: reading it says so
    if b"\0" in start:
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return kind.startswith("text/")
    return True


class _Watched(io.RawIOBase):
    """A file's bytes as they are read, counted and hashed."""

    def __init__(self, raw: io.BufferedIOBase, path: Path, advance: Callable[[int], None]) -> None:
        self._raw, self._path, self._advance = raw, path, advance
        self._size = path.stat().st_size if path.is_file() else math.inf
        self.read_bytes = 0
        self.sha256 = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._raw.read(len(buffer))
        buffer[: len(content)] = content
        self.sha256.update(content)
        self.read_bytes += len(content)
        if self.read_bytes > self._size:
            raise _changed(self._path)
        self._advance(len(content))
        return len(content)


def _read_file(
    path: Path, config: DataConfig, report: ReadingReport, advance: Callable[[int], None]
) -> Iterator[Piece]:
    report.files += 1
    try:
        before = path.stat()
        if form(path) in PARQUET:
            source = Source(str(path), io.BytesIO(), config, report)
            yield from formats.read_parquet(path, source)
            advance(before.st_size)
            report.bytes += before.st_size
            with path.open("rb") as raw:
                report.hashes.append(hashlib.file_digest(raw, "sha256").digest())
        else:
            with path.open("rb") as raw:
                yield from _read_stream(path, raw, config, report, advance)
        after = path.stat()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: is damaged or cut short: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    changed = (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns)
    if changed and path.is_file():
        raise _changed(path)


def _changed(path: Path) -> DataError:
    return DataError(f"{path}: changed while it was read; try again when it is at rest")


def _read_stream(
    path: Path,
    raw: io.BufferedIOBase,
    config: DataConfig,
    report: ReadingReport,
    advance: Callable[[int], None],
) -> Iterator[Piece]:
    watched = _Watched(raw, path, advance)
    with io.BufferedReader(watched, formats.BLOCK_BYTES) as buffered:
        with _decompressed(buffered, path) as stream:
            reader = TABLES.get(form(path), formats.read_text)
            if not path.is_file() and stream.peek(1).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{":
                reader = formats.read_json_lines  # a pipe has no name to tell its form by
            yield from reader(Source(str(path), stream, config, report))
        while buffered.read(formats.BLOCK_BYTES):
            pass  # what a reader left, so that the hash is the whole file's
    report.bytes += watched.read_bytes
    report.hashes.append(watched.sha256.digest())
    if not watched.read_bytes:
        report.skip("empty files")


def _decompressed(stream: io.BufferedIOBase, path: Path) -> io.BufferedReader:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=stream), formats.BLOCK_BYTES)
    if suffix == ".zst":
        return io.BufferedReader(_Zstandard(stream), formats.BLOCK_BYTES)
    return io.BufferedReader(_Shared(stream), formats.BLOCK_BYTES)


class _Shared(io.RawIOBase):
    """A stream whose closing leaves the one below open."""

    def __init__(self, below: io.BufferedIOBase) -> None:
        self._below = below

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._below.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


class _Zstandard(io.RawIOBase):
    """Decompressed frames; one that is cut short or damaged is an error."""

    def __init__(self, below: io.BufferedIOBase) -> None:
        self._below, self._ready = below, b""
        self._library = importlib.import_module("zstandard")
        self._frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            block = self._below.read(COMPRESSED_BLOCK_BYTES)
            if not block:
                if self._frame is not None:
                    raise EOFError("it ends in the middle of a frame")
                return 0
            while block:
                self._frame = self._frame or self._library.ZstdDecompressor().decompressobj()
                try:
                    self._ready += self._frame.decompress(block)
                except self._library.ZstdError as error:
                    raise EOFError(str(error)) from None
                block = self._frame.unused_data if self._frame.eof else b""
                self._frame = None if self._frame.eof else self._frame
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size


def identity(path: Path) -> list[Any]:
    """Names, sizes and times of change of what ``read_pieces`` would read: equal ones, equal text."""
    if not path.is_dir() and not path.is_file():
        return [os.urandom(16).hex()]  # nothing is known of a pipe before it is read
    files = files_below(path, ReadingReport()) if path.is_dir() else [path]
    return [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
