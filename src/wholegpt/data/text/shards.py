"""Token ids on disk: raw little-endian shards, read through memory maps, and a manifest."""

import contextlib
import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from wholegpt.console import Console
from wholegpt.errors import DataError, TokenizerError
from wholegpt.files import file_inside, is_file, read_json, sha256_file, write_json_atomic
from wholegpt.tokenizers import Tokenizer

FORMAT_VERSION = 1
MANIFEST, CARD, DUPLICATES, TOKENIZER = "manifest.json", "card.json", "duplicates.jsonl", "tokenizer.json"
_SHARDS = tuple(f"{side}-{5 * '[0-9]'}.bin" for side in ("train", "validation"))
PREPARED_FILES = (MANIFEST, CARD, "card.md", DUPLICATES, TOKENIZER, *_SHARDS)
"""Patterns of the files of prepared data."""
RENAMED_ENTRIES = {
    "alphabets": "unicode_scripts",
    "licence": "license",
    "overlapping": "contaminated",
    "mostly_overlapping": "mostly_contaminated",
}
"""Entries of data cards that older versions wrote with another name."""
DTYPES = ("<u2", "<u4")
ENOUGH_DOCUMENTS = 50
"""From how many training documents a model learns how a document starts."""
START_TOKENS = 2**20
"""How many training tokens are searched for ``start_text``."""


@dataclass(frozen=True)
class Shard:
    """One file of token ids."""

    file: str
    tokens: int
    sha256: str


@dataclass(frozen=True)
class SplitManifest:
    """One side of the split."""

    documents: int
    characters: int
    bytes: int
    tokens: int
    shards: tuple[Shard, ...]
    source_tokens: tuple[int, ...] = ()
    """Tokens from each source; sources follow one after another."""


@dataclass(frozen=True)
class Manifest:
    """Description of a folder of prepared data."""

    format_version: int
    corpus: str
    provenance: dict[str, str]
    split: str
    tokenizer_sha256: str
    vocab_size: int
    dtype: str
    train: SplitManifest
    validation: SplitManifest
    control: dict[str, dict[str, int]] = field(default_factory=dict)
    """Field -> value -> number of training documents with it, for the fields in ``data.control``."""


@dataclass(frozen=True)
class TextSizes:
    """The length of a text."""

    bytes: int
    """Bytes in UTF-8."""
    characters: int


class TokenShards:
    """A sequence of token ids in one or more memory-mapped files."""

    def __init__(self, parts: list[np.ndarray], text: TextSizes | None = None) -> None:
        """Join ``parts``. ``text`` are the sizes of the text that was encoded, if known."""
        self._parts, self.text = parts, text
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, start: int, length: int) -> np.ndarray:
        """Return ``length`` ids from ``start`` on, as int64; fewer at the end."""
        pieces: list[np.ndarray] = []
        part = int(np.searchsorted(self._ends, start, side="right"))
        while length > 0 and part < len(self._parts):
            begin = start - (int(self._ends[part]) - len(self._parts[part]))
            pieces.append(self._parts[part][begin : begin + length])
            start, length, part = start + len(pieces[-1]), length - len(pieces[-1]), part + 1
        return np.concatenate(pieces).astype(np.int64) if pieces else np.empty(0, np.int64)

    @cached_property
    def counts(self) -> np.ndarray:
        """Return how often each id occurs, up to the largest."""
        counts = [np.bincount(part) for part in self._parts]
        return np.sum([np.pad(one, (0, max(map(len, counts)) - len(one))) for one in counts], axis=0)

    def positions_of(self, token_id: int) -> list[int]:
        """Return the positions of one token."""
        firsts = self._ends - [len(part) for part in self._parts]
        found = [
            first + np.flatnonzero(part == token_id) for first, part in zip(firsts, self._parts, strict=True)
        ]
        return np.concatenate(found).tolist()


def _check_counts(split: SplitManifest) -> None:
    """Raise ``ValueError`` for impossible counts of a split; metrics per byte are divided by them."""
    if min(split.documents, split.characters, split.bytes) < 0 or split.bytes < split.characters:
        raise ValueError("impossible counts of documents, characters and bytes")
    if split.tokens != sum(shard.tokens for shard in split.shards):
        raise ValueError(f"{split.tokens} tokens, which is not the sum of its shards")


class PreparedData:
    """A folder of token shards with their tokenizer."""

    def __init__(self, folder: Path, manifest: Manifest, tokenizer: Tokenizer) -> None:
        self.folder, self.manifest, self.tokenizer = folder, manifest, tokenizer
        self.train = self._map(manifest.train)
        self.validation = self._map(manifest.validation)

    @staticmethod
    def exists(folder: Path) -> bool:
        """Return whether ``folder`` holds prepared data."""
        return all(is_file(folder / name) for name in (MANIFEST, TOKENIZER))

    @staticmethod
    def is_ours(folder: Path) -> bool:
        """Return whether ``folder`` provably holds data that wholegpt prepared, complete or damaged."""
        try:
            return read_json(folder / MANIFEST).keys() >= {"format_version", "tokenizer_sha256", "provenance"}
        except (OSError, ValueError, AttributeError):
            return False

    @classmethod
    def open(cls, folder: Path) -> "PreparedData":
        """Open a prepared folder. Raises ``DataError`` if it is damaged or of a newer version."""
        path = folder / MANIFEST
        try:
            content: dict[str, Any] = read_json(path)
            version = content["format_version"]
            if version > FORMAT_VERSION:
                raise DataError(
                    f"{path}: format version {version} is newer than this program's {FORMAT_VERSION}; update wholegpt"
                )
            manifest = msgspec.convert(content, Manifest)
            if manifest.dtype not in DTYPES:
                raise ValueError(f"dtype is {manifest.dtype!r}; expected one of {', '.join(DTYPES)}")
            for split in (manifest.train, manifest.validation):
                _check_counts(split)
                for shard in split.shards:
                    file_inside(folder, shard.file)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not a readable manifest ({error}); prepare the data again") from None
        tokenizer = Tokenizer.load(folder / TOKENIZER)
        if tokenizer.sha256 != manifest.tokenizer_sha256:
            raise DataError(
                f"{folder}: tokenizer.json is not the one the tokens were made with; prepare the data again"
            )
        return cls(folder, manifest, tokenizer)

    @property
    def fingerprint(self) -> str:
        """Return the hashes of all shards, which change with any token."""
        shards = (*self.manifest.train.shards, *self.manifest.validation.shards)
        return "-".join(shard.sha256[:16] for shard in shards)

    @cached_property
    def card(self) -> dict[str, Any]:
        """Return the data card, with current names of its entries. Raises ``DataError`` if it is unreadable."""
        path = self.folder / CARD
        try:
            card = read_json(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({error}); prepare the data again") from None
        if not isinstance(card, dict) or not card.keys() >= {"sha256", "origin", "sources", "text"}:
            raise DataError(f"{path}: is not a data card; prepare the data again")
        return with_current_names(card)

    def warn_unless(self, card: str, console: Console) -> None:
        """Warn if this is not the data that a config names by the SHA-256 of its ``card``."""
        if card not in ("", self.card["sha256"]):
            console.warn(f"this is not the data that data.card names ({card[:12]}…), so a run will differ")

    @property
    def start_text(self) -> str:
        """Return the default prompt if the training text has too few documents to learn how one starts; else empty.

        It is a line break, or else a space, if it is a token of the text; otherwise the text's first token.
        """
        if self.manifest.train.documents >= ENOUGH_DOCUMENTS or not len(self.train):
            return ""
        token_ids = self.train.read(0, START_TOKENS)
        first = self.tokenizer.decode([int(token_ids[0])])
        for text in ("\n", "\n\n", " ", first):
            with contextlib.suppress(TokenizerError):
                encoded = self.tokenizer.encode(text)
                if len(encoded) == 1 and encoded[0] in token_ids:
                    return text
        return ""

    def verify(self) -> None:
        """Raise ``DataError`` if a shard's bytes have changed."""
        for shard in (*self.manifest.train.shards, *self.manifest.validation.shards):
            if sha256_file(self.folder / shard.file) != shard.sha256:
                raise DataError(
                    f"{self.folder / shard.file}: damaged (sha256 differs); prepare the data again"
                )

    def _map(self, split: SplitManifest) -> TokenShards:
        dtype, parts = np.dtype(self.manifest.dtype), []
        for shard in split.shards:
            path = self.folder / shard.file
            size = path.stat().st_size if path.exists() else -1
            if size != shard.tokens * dtype.itemsize:
                raise DataError(f"{path}: missing or truncated; prepare the data again")
            parts.append(np.memmap(path, dtype, mode="r") if size else np.empty(0, dtype))
        return TokenShards(parts, TextSizes(split.bytes, split.characters))


def with_current_names(card: dict[str, Any]) -> dict[str, Any]:
    """Return a data card, or one section of it, with the ``RENAMED_ENTRIES`` renamed."""
    current = {RENAMED_ENTRIES.get(name, name): value for name, value in card.items()}
    if "contamination" in current:
        current["contamination"] = with_current_names(current["contamination"])
    return current


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest``; a folder without one is not prepared data."""
    write_json_atomic(folder / MANIFEST, dataclasses.asdict(manifest))
