"""Decompression bombs are read in bounded memory."""

import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from wholegpt.data.reading.compression import decompressed

MEGABYTES = 2**20


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".zst", zstandard.ZstdCompressor().compress), (".xz", lzma.compress)]
)
def test_decompression_memory_is_bounded(
    suffix: str, compress: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    """A few kilobytes that expand to 100 MB are read with at most 32 MiB in memory."""
    path = tmp_path / f"bomb{suffix}"
    path.write_bytes(compress(bytes(100 * MEGABYTES)))
    assert path.stat().st_size < 20_000
    held, total = 0, 0
    with path.open("rb") as raw:
        frames: Any = decompressed(raw, path).raw
        buffer = bytearray(MEGABYTES)
        while size := frames.readinto(buffer):
            total += size
            held = max(held, len(frames._ready))
    assert total == 100 * MEGABYTES
    assert held <= 32 * MEGABYTES
