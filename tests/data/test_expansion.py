"""A few compressed bytes that stand for very many are read in bounded memory."""

from pathlib import Path

import zstandard

from wholegpt.data.reading import _Zstandard

MEGABYTES = 2**20


def test_a_block_of_zstd_expands_by_a_bounded_amount(tmp_path: Path) -> None:
    """Of a few KB that stand for 100 MB no more is held than 32 MiB."""
    path = tmp_path / "bomb.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress(bytes(100 * MEGABYTES)))
    assert path.stat().st_size < 16_384
    held, total = 0, 0
    with path.open("rb") as raw:
        stream = _Zstandard(raw)
        buffer = bytearray(MEGABYTES)
        while size := stream.readinto(buffer):
            total += size
            held = max(held, len(stream._ready))
    assert total == 100 * MEGABYTES
    assert held <= 32 * MEGABYTES
