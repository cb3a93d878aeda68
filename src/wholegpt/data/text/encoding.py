"""Encode documents to shards of token ids: on all cores, in order, each shard whole or not at all."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from wholegpt.console import Progress
from wholegpt.data.text.documents import DocumentStore
from wholegpt.data.text.shards import Shard, SplitManifest
from wholegpt.data.text.splitting import Side, SplitPlan
from wholegpt.files import read_json, write_json_atomic, writing
from wholegpt.tokenizers import Tokenizer

SHARD_BYTES = 64_000_000
"""Approximate bytes of text per shard."""
FLUSHED_TOKENS = 2**20


@dataclass(frozen=True)
class ShardRecord:
    """A finished shard and statistics of its text."""

    shard: Shard
    documents: int
    characters: int
    bytes: int
    source_tokens: dict[int, int]


def encode_side(
    store: DocumentStore,
    plan: SplitPlan,
    side: Side,
    tokenizer: Tokenizer,
    folder: Path,
    dtype: np.dtype,
    sources: int,
    progress: Progress,
) -> SplitManifest:
    """Write the shards of one split into ``folder``; existing ones, with their record, are kept.

    Documents are separated by end-of-text; the one before a source's first document counts as the source's.
    ``sources`` is the number of sources.
    """
    records: list[ShardRecord] = []
    for number, (first, last) in enumerate(_shards(store, plan.numbers(side))):
        file = f"{side}-{number:05d}.bin"
        record_path = folder / f"{file}.json"
        if record_path.exists():
            # JSON keys are strings
            record = msgspec.convert(read_json(record_path), ShardRecord, strict=False)
            progress.advance(record.bytes)
        else:
            record = _encode_shard(
                store, plan, side, (first, last), tokenizer, folder / file, dtype, progress
            )
            write_json_atomic(record_path, msgspec.to_builtins(record))
        records.append(record)
    return SplitManifest(
        documents=sum(record.documents for record in records),
        characters=sum(record.characters for record in records),
        bytes=sum(record.bytes for record in records),
        tokens=sum(record.shard.tokens for record in records),
        shards=tuple(record.shard for record in records),
        source_tokens=tuple(
            sum(record.source_tokens.get(source, 0) for record in records) for source in range(sources)
        ),
    )


def _shards(store: DocumentStore, numbers: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield the index of the first piece of each shard and of the piece after its last; one shard if there is
    no text.
    """
    first = size = 0
    for index, number in enumerate(numbers):
        size += store.piece_bytes(int(number))
        if size >= SHARD_BYTES:
            yield first, index + 1
            first, size = index + 1, 0
    if first < len(numbers) or not len(numbers):
        yield first, len(numbers)


def _encode_shard(
    store: DocumentStore,
    plan: SplitPlan,
    side: Side,
    indices: tuple[int, int],
    tokenizer: Tokenizer,
    path: Path,
    dtype: np.dtype,
    progress: Progress,
) -> ShardRecord:
    within = slice(*indices)
    begins, sources = plan.begins(store, side)[within], store.pieces["source"][plan.numbers(side)[within]]
    end_of_text = np.array([tokenizer.end_of_text_id], np.uint32)
    digest = hashlib.sha256()
    tokens = documents = characters = n_bytes = 0
    of_source: dict[int, int] = {}
    buffer: list[np.ndarray] = [np.empty(0, np.uint32)]
    buffered = 0

    def texts() -> Iterator[str]:
        nonlocal characters, n_bytes
        for index in range(*indices):
            text = plan.headed_text(store, side, index)
            size = len(text.encode())
            characters, n_bytes = characters + len(text), n_bytes + size
            yield text
            progress.advance(size)

    with writing(path) as file:

        def flush() -> None:
            nonlocal buffered, tokens
            content = np.concatenate(buffer).astype(dtype).tobytes()
            digest.update(content)
            file.write(content)
            tokens += len(content) // dtype.itemsize
            buffer.clear()
            buffered = 0

        encoded = tokenizer.encode_all(texts(), map(bool, begins))
        for index, token_ids in enumerate(encoded):
            documents += bool(begins[index])
            added = [end_of_text, token_ids] if begins[index] and index + within.start else [token_ids]
            buffer += added
            source = int(sources[index])
            of_source[source] = of_source.get(source, 0) + sum(map(len, added))
            buffered += len(token_ids) + 1
            if buffered >= FLUSHED_TOKENS:
                flush()
        buffer.append(np.empty(0, np.uint32))
        flush()
    return ShardRecord(
        Shard(path.name, tokens, digest.hexdigest()), documents, characters, n_bytes, of_source
    )
