"""Decompression of gzip, bzip2, xz and Zstandard, chosen by the file name's suffix; and seekable files."""

import bz2
import contextlib
import gzip
import importlib
import io
import lzma
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from wholegpt.data.reading.file_types import COMPRESSED, SNIFFED_BYTES, compression
from wholegpt.errors import DataError

BUFFERED_BYTES = 2**20
COMPRESSED_BLOCK_BYTES = 1024
"""Compressed bytes per step. The value is small because few bytes can expand a lot: Zstandard's to 33 MB,
xz's to 7 MB.
"""
MOST_DICTIONARY_BYTES = 2**28
"""Memory that an xz file may request."""
LARGEST_UNPACKED = 2**36
"""Maximum bytes of a compressed Parquet file or document, which is unpacked to disk."""
STANDARD_INPUT = (Path("/dev/stdin"), Path("/dev/fd/0"), Path("/proc/self/fd/0"))


def is_named(path: Path) -> bool:
    """Return whether a path is that of a file, whose name tells its format, rather than of a pipe."""
    return path.is_file() and path not in STANDARD_INPUT


def decompressed(stream: io.BufferedIOBase, path: Path) -> io.BufferedReader:
    """Return the bytes of a file, decompressed by its suffix; closing the result leaves ``stream`` open.

    Reading raises ``EOFError`` or ``OSError`` for damaged or truncated content.
    """
    suffix = path.suffix.lower()
    if suffix not in COMPRESSED:
        return io.BufferedReader(_Shared(stream), BUFFERED_BYTES)
    inner = io.BufferedReader(_Shared(stream), BUFFERED_BYTES)
    start = inner.peek(SNIFFED_BYTES)[:SNIFFED_BYTES]
    if start and compression(start) != suffix:
        found = compression(start)
        raise DataError(
            f"{path}: is damaged or cut short, or not {COMPRESSED[suffix]}-compressed as its name says"
            + (f" but {COMPRESSED[found]}-compressed; give it a name that ends in {found}" if found else "")
        )
    if suffix == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=inner), BUFFERED_BYTES)
    if suffix == ".bz2":
        raw: Any = bz2.BZ2File(inner)  # a RawIOBase, though its type does not say so
        return io.BufferedReader(raw, BUFFERED_BYTES)
    if suffix == ".xz":
        return io.BufferedReader(_Frames(inner, _xz, lzma.LZMAError, padding=b"\0"), BUFFERED_BYTES)
    library = importlib.import_module("zstandard")
    frames = _Frames(inner, lambda: library.ZstdDecompressor().decompressobj(), library.ZstdError)
    return io.BufferedReader(frames, BUFFERED_BYTES)


@contextlib.contextmanager
def seekable(path: Path, stream: io.BufferedIOBase) -> Iterator[Any]:
    """Return a seekable file with the content of ``stream``: the file at ``path`` itself unless it is
    compressed or a pipe.
    """
    if path.suffix.lower() not in COMPRESSED and is_named(path):
        with path.open("rb") as file:
            yield file
        return
    with tempfile.TemporaryFile() as file:
        while block := stream.read(BUFFERED_BYTES):
            file.write(block)
            if file.tell() > LARGEST_UNPACKED:
                raise DataError(f"{path}: unpacks to more than {LARGEST_UNPACKED:,} bytes; it is not read")
        file.seek(0)
        yield file


def _xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MOST_DICTIONARY_BYTES)


class _Shared(io.RawIOBase):
    """A stream that leaves the underlying one open when it is closed."""

    def __init__(self, below: io.BufferedIOBase) -> None:
        self._below = below

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._below.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


class _Frames(io.RawIOBase):
    """Decompressed frames, one after another; a truncated or damaged frame is an error."""

    def __init__(
        self, below: io.BufferedIOBase, make: Callable[[], Any], error: type[Exception], padding: bytes = b""
    ) -> None:
        self._below, self._make, self._error, self._padding = below, make, error, padding
        self._frame: Any = None
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            block = self._below.read(COMPRESSED_BLOCK_BYTES)
            if not block:
                if self._frame is not None:
                    raise EOFError("it ends in the middle of a frame")
                return 0
            self._ready = memoryview(self._decompress(block))
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

    def _decompress(self, block: bytes) -> bytes:
        found = b""
        while block:
            if self._frame is None:
                block = block.lstrip(self._padding) if self._padding else block
                if not block:
                    break
                self._frame = self._make()
            try:
                found += self._frame.decompress(block)
            except self._error as error:
                raise EOFError(str(error)) from None
            block = self._frame.unused_data if self._frame.eof else b""
            self._frame = None if self._frame.eof else self._frame
        return found
