"""Stream documents from files of any common format: a text file is one document, a table one document per
row.

This module finds, opens, decompresses, hashes and watches files; ``decoding``, ``rows``, ``records``, ``markup``
and ``documents`` parse their content.
"""

import codecs
import contextlib
import dataclasses
import hashlib
import io
import math
import mimetypes
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from wholegpt.data.reading import decoding as formats
from wholegpt.data.reading.compression import decompressed, is_named, seekable
from wholegpt.data.reading.decoding import Piece, ReadingReport, Source
from wholegpt.data.reading.documents import read_document
from wholegpt.data.reading.file_types import (
    COMPRESSED,
    DOCUMENTS,
    HTML,
    NOTEBOOK,
    PARQUET,
    SNIFFED_BYTES,
    TABLES,
    NotTextError,
    OtherEncodingError,
    UndecodableError,
    UnreadableDocumentError,
    check_encoding,
    check_text,
    document_format,
    file_format,
    looks_like_text,
)
from wholegpt.data.reading.markup import read_notebook, read_page
from wholegpt.data.reading.records import read_table
from wholegpt.data.reading.row import Row
from wholegpt.data.reading.rows import read_rows
from wholegpt.data.reading.sources import without_text
from wholegpt.errors import ConfigError, DataError
from wholegpt.settings.schema import DataConfig

T = TypeVar("T")
READING_OPTIONS = ("text_field", "encoding", "on_bad_text", "on_bad_line")
BY_POSITION = (*PARQUET, *DOCUMENTS)
"""Formats that are not read from beginning to end."""
MOST_CHECKED, MOST_NAMED = 2**28, 10
"""After an unreadable file, other files of the folder are checked, up to so many bytes. At most so many are named."""


def read_pieces(
    path: Path, config: DataConfig, report: ReadingReport, advance: Callable[[int], None] = lambda read: None
) -> Iterator[Piece]:
    """Yield the documents of a file, or of all files of a folder in name order.

    Calls ``advance`` with the bytes read. Raises ``DataError`` naming the file, and the line or byte, of
    anything unreadable; of a folder, naming all unreadable files. Files of a folder that are not text in
    ``data.encoding``, and documents that cannot be read, are skipped if ``data.on_bad_text`` is skip. Those that are
    UTF-8 are read as such in any case.
    """
    check_encoding(config.encoding)
    if not path.is_dir():
        yield from _read_file(path, config, report, _read_documents, advance)
        return
    files = files_below(path, report, config.encoding)
    for file in files:
        try:
            yield from _read_file(file, _of_file(file, config, report), report, _read_documents, advance)
        except DataError as error:
            if not _may_skip(error, config):
                raise _with_the_others(error, path, files, config) from error
            report.files -= 1
            if isinstance(error, UnreadableDocumentError):
                report.skip("documents that cannot be read", what=str(error))
            else:
                report.skip(f"that are not {config.encoding} text", what=file.name)


def _of_file(file: Path, config: DataConfig, report: ReadingReport | None = None) -> DataConfig:
    """Return the settings for a file of a folder: one that is UTF-8 is read as such, whatever ``data.encoding`` is."""
    if _is_utf_8(config):
        return config
    decoder, beyond_ascii, holds = codecs.getincrementaldecoder("utf-8")(), False, False
    try:
        with file.open("rb") as raw, decompressed(raw, file) as stream:
            while block := stream.read(formats.BLOCK_BYTES):
                if b"\0" in block:  # ASCII in UTF-16
                    return config
                beyond_ascii, holds = beyond_ascii or not block.isascii(), True
                decoder.decode(block)
            decoder.decode(b"", final=True)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, DataError, ModuleNotFoundError):
        return config  # what cannot be read is named when it is read
    if not holds or (not beyond_ascii and "a".encode(config.encoding) == b"a"):
        return config  # ASCII is also itself in the encoding, or a form of it, such as UTF-7
    if report:
        report.as_utf_8 += 1
    return dataclasses.replace(config, encoding="utf-8")


def _may_skip(error: DataError, config: DataConfig) -> bool:
    return isinstance(error, NotTextError) and config.on_bad_text == "skip"


def _with_the_others(first: DataError, folder: Path, rest: Iterator[Path], config: DataConfig) -> DataError:
    """Return ``first``, or an error that also names the other unreadable files of the folder."""
    problems, read = [first], 0
    for file in rest:
        if read > MOST_CHECKED:
            break
        read += file.stat().st_size if file.exists() else 0
        try:
            for _ in _read_file(file, _of_file(file, config), ReadingReport(), _read_documents):
                pass
        except DataError as error:
            if not _may_skip(error, config):
                problems.append(error)
    advice = ""
    if sum(isinstance(one, OtherEncodingError | UndecodableError) for one in problems) > _is_utf_8(config):
        advice += "; besides UTF-8, a folder can have only one encoding: convert the other files to UTF-8"
    if any(isinstance(one, NotTextError) for one in problems):
        advice += "; --on-bad-text skip leaves out files that are not text"
    if len(problems) == 1:
        return DataError(f"{first}{advice}") if advice else first
    named = [str(one) for one in problems[:MOST_NAMED]]
    named += [f"and {len(problems) - MOST_NAMED:,} more"] if len(problems) > MOST_NAMED else []
    return DataError(f"{folder}: {len(problems):,} files cannot be read: {'; '.join(named)}{advice}")


def _is_utf_8(config: DataConfig) -> bool:
    return codecs.lookup(config.encoding).name in ("utf-8", "utf-8-sig")


def table_rows(
    path: Path,
    config: DataConfig,
    report: ReadingReport,
    expected: Sequence[str] = (),
    most_bytes: float = math.inf,
) -> Iterator[Row]:
    """Yield the rows of one table of any format and compression, as ``rows.read_rows`` reads them."""
    check_encoding(config.encoding)
    yield from _read_file(
        path, config, report, lambda source: read_rows(source, expected), most_bytes=most_bytes
    )


def read_documents(path: Path, config: DataConfig, report: ReadingReport) -> Iterator[str]:
    """Yield the documents of ``read_pieces`` with their pieces joined."""
    held: list[str] = []
    for piece in read_pieces(path, config, report):
        if piece.begins and held:
            yield "".join(held)
            held = []
        held.append(piece.text)
    if held:
        yield "".join(held)


def read_text(path: Path, encoding: str) -> str:
    """Return a whole text file, line ends unchanged. Raises ``DataError`` with the offset of an undecodable
    byte.
    """
    try:
        with path.open("rb") as stream:
            check_encoding(encoding)
            start = stream.read(SNIFFED_BYTES)
            stream.seek(0)
            check_text(start, encoding, str(path))
            source = Source(str(path), stream, DataConfig(encoding=encoding), ReadingReport())
            return "".join(formats.decoded(source))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def files_below(folder: Path, report: ReadingReport, encoding: str = "utf-8") -> Iterator[Path]:
    """Yield the files of a folder and its subfolders, in name order, without hidden, linked and binary ones."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror}") from None
    for path in entries:
        if path.name.startswith("."):
            report.skip("hidden")
        elif path.is_dir():
            if path.is_symlink():
                report.skip("linked folders", what=path.name)
            elif without_text(path):
                report.skip("folders of models and runs")
            else:
                yield from files_below(path, report, encoding)
        elif not path.is_file():
            report.skip("broken links, pipes and devices", what=path.name)
        elif _is_text(path, encoding):
            yield path
        else:
            report.skip(f"binary ({path.suffix.lower() or 'no suffix'})", what=path.name)


def _is_text(path: Path, encoding: str) -> bool:
    """Return whether a file of a folder is text or a document, by its name and its first bytes."""
    if file_format(path) in (*TABLES, *DOCUMENTS):
        return True
    kind = mimetypes.guess_type(path.with_suffix(file_format(path)))[0] or ""
    if kind.partition("/")[0] in ("image", "audio", "font"):
        return False
    try:
        with path.open("rb") as raw, decompressed(raw, path) as stream:
            start = stream.read(SNIFFED_BYTES)
    except (OSError, EOFError, zlib.error, DataError, ModuleNotFoundError):
        return path.suffix.lower() in COMPRESSED  # the error is raised when it is read
    named_text = kind.startswith("text/")
    return bool(document_format(start)) or any(
        looks_like_text(start, one, named_text) for one in (encoding, "utf-8")
    )


class _Watched(io.RawIOBase):
    """The bytes of a file, counted and hashed as they are read."""

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
    path: Path,
    config: DataConfig,
    report: ReadingReport,
    read: Callable[[Source], Iterator[T]],
    advance: Callable[[int], None] = lambda read: None,
    most_bytes: float = math.inf,
) -> Iterator[T]:
    """Yield the results of ``read`` on a file."""
    report.files += 1
    try:
        before = path.stat()
        with path.open("rb") as raw:
            yield from _read_stream(
                Source(str(path), raw, config, report, "", most_bytes), path, read, advance
            )
        after = path.stat()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder; name a file") from None
    except ModuleNotFoundError as error:
        library, extra = (error.name or "").partition(".")[0], "data"
        if file_format(path) in DOCUMENTS:
            extra = "documents"
        raise UnreadableDocumentError(
            f"{path}: {library} is not installed; pip install 'wholegpt[{extra}]'"
        ) from error
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path}: is damaged or cut short: {error}; replace or remove it") from None
    except OSError as error:
        problem = f"cannot be read: {error.strerror}" if error.errno else f"is damaged or cut short: {error}"
        raise DataError(f"{path}: {problem}") from None
    changed = (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns)
    if changed and path.is_file():
        raise _changed(path)


def _changed(path: Path) -> DataError:
    return DataError(f"{path}: changed while it was read; try again when nothing writes to it")


def _read_stream(
    source: Source, path: Path, read: Callable[[Source], Iterator[T]], advance: Callable[[int], None]
) -> Iterator[T]:
    watched = _Watched(source.stream, path, advance)
    with io.BufferedReader(watched, formats.BLOCK_BYTES) as buffered:
        with decompressed(buffered, path) as stream, contextlib.ExitStack() as stack:
            start = stream.peek(SNIFFED_BYTES)[:SNIFFED_BYTES]
            opened = dataclasses.replace(source, stream=stream, format=_format(path, start))
            if opened.format in BY_POSITION:
                opened.stream = stack.enter_context(seekable(path, stream))
            else:
                check_text(start, source.config.encoding, source.where)
            yield from read(opened)
        while buffered.read(formats.BLOCK_BYTES):
            pass  # the rest, so that the hash covers the whole file
    source.report.bytes += watched.read_bytes
    source.report.hashes.append(watched.sha256.digest())
    if not watched.read_bytes:
        source.report.files -= 1
        source.report.skip("empty files", what=path.name)


def _format(path: Path, start: bytes) -> str:
    """Return the format by the name, or by the content for documents; a pipe has no name and is JSON lines if
    it starts with an object.
    """
    named = file_format(path) if is_named(path) else ""
    if named in TABLES or not (found := document_format(start)):
        found = named
    if is_named(path) or found:
        return found
    return ".jsonl" if start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{" else ""


def _read_documents(source: Source) -> Iterator[Piece]:
    if source.format in TABLES:
        return read_table(source)
    if source.format in HTML:
        return read_page(source)
    if source.format == NOTEBOOK:
        return read_notebook(source)
    if source.format in DOCUMENTS:
        return read_document(source)
    return formats.read_text(source)


def useful_options(path: Path, config: DataConfig) -> set[str]:
    """Return those of ``READING_OPTIONS`` that affect how the files of a source are read.

    Raises ``DataError`` for an encoding that Python does not know.
    """
    check_encoding(config.encoding)
    files = files_below(path, ReadingReport(), config.encoding) if path.is_dir() else [path]
    useful: set[str] = set()
    for file in files:
        table = file_format(file) in TABLES or not is_named(file)
        useful |= {"on_bad_text", *(["text_field", "on_bad_line"] if table else [])}
        useful |= {"encoding"} if file_format(file) not in BY_POSITION else set()
        if len(useful) == len(READING_OPTIONS):
            break
    return useful


def check_options(config: DataConfig, useful: Callable[[], set[str]], where: str) -> None:
    """Raise ``ConfigError`` for a reading option that is set but has no effect."""
    given = [name for name in READING_OPTIONS if getattr(config, name) != getattr(DataConfig(), name)]
    changing = useful() if given else set()
    for name in given:
        if name not in changing:
            option = name.replace("_", "-")
            fields = (
                " has no fields and records" if name in ("text_field", "on_bad_line") else " does not use it"
            )
            raise ConfigError(f"--{option} has no effect here: {where}{fields}; leave it out")


def identity(path: Path, encoding: str = "utf-8") -> list[Any]:
    """Return names, sizes and modification times of what ``read_pieces`` would read: a value that changes
    with the text.
    """
    if not path.is_dir() and not path.is_file():
        return [os.urandom(16).hex()]  # the content of a pipe is unknown before it is read
    files = files_below(path, ReadingReport(), encoding) if path.is_dir() else [path]
    return [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
