"""From a corpus to a folder of token shards: split, tokenizer, encoding."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from wholegpt.config import DataConfig, Split, TokenizerConfig, TokenizerKind
from wholegpt.console import Console
from wholegpt.data.corpora import Corpus
from wholegpt.data.shards import (
    FORMAT_VERSION,
    Manifest,
    PreparedData,
    ShardWriter,
    SplitManifest,
    write_manifest,
)
from wholegpt.errors import DataError
from wholegpt.files import write_folder_atomic
from wholegpt.tokenizers import Tokenizer, byte_tokenizer, open_tokenizer, train_bpe, train_character

DOCUMENTS_FOR_SPLIT = 50
"""Documents from which on whole ones are held out, unless the corpus or the user says otherwise."""
ENCODE_CHARACTERS = 4_000_000
"""Characters encoded at once."""

Side = Literal["train", "validation"]


@dataclass(frozen=True)
class SplitPlan:
    """Which text is held out."""

    description: str
    held_out: np.ndarray
    """For a split by documents: one truth value a document."""
    boundary: int
    """For a split by fraction: the character at which validation begins; else −1."""
    documents: int
    characters: int


def plan_split(corpus: Corpus, config: DataConfig) -> SplitPlan:
    """Count the corpus and decide what is held out; the same corpus always gives the same split.

    By documents: each with probability ``validation_fraction``, from a fixed seed. By fraction: the
    last part of the characters, even in the middle of a document. Raises ``DataError`` for no text.
    """
    lengths = np.array([len(text) for text in corpus.documents()], dtype=np.int64)
    characters = int(lengths.sum())
    if characters == 0:
        raise DataError(f"{corpus.name}: holds no text ({corpus.report})")
    split = config.split if config.split is not Split.automatic else corpus.split
    if split is Split.automatic:
        split = Split.documents if len(lengths) >= DOCUMENTS_FOR_SPLIT else Split.fraction
    if split is Split.fraction:
        boundary = int(characters * (1 - config.validation_fraction))
        description = f"the last {config.validation_fraction:.0%} of the characters are held out"
        return SplitPlan(description, np.zeros(len(lengths), bool), boundary, len(lengths), characters)
    if len(lengths) < 2:
        raise DataError(
            f"{corpus.name}: one document cannot be split by documents; use --data.split fraction"
        )
    draws = np.random.default_rng(0).random(len(lengths))
    held_out = draws < max(config.validation_fraction, float(draws.min()) + 1e-12)
    held_out[draws.argmax()] = False
    description = f"{held_out.sum()} of {len(lengths)} documents, drawn at random, are held out"
    return SplitPlan(description, held_out, -1, len(lengths), characters)


def split_documents(corpus: Corpus, plan: SplitPlan) -> Iterator[tuple[Side, str]]:
    """The documents with the side each is on; one that lies across the boundary is cut in two."""
    position = 0
    for index, text in enumerate(corpus.documents()):
        if plan.boundary < 0:
            yield ("validation" if plan.held_out[index] else "train"), text
            continue
        cut = min(max(plan.boundary - position, 0), len(text))
        position += len(text)
        if cut > 0:
            yield "train", text[:cut]
        if cut < len(text):
            yield "validation", text[cut:]


def make_tokenizer(config: TokenizerConfig, corpus: Corpus, plan: SplitPlan | None = None) -> Tokenizer:
    """The tokenizer that ``config`` names, trained on the training side of ``plan``, or on everything.

    The character vocabulary is always that of everything: it must be able to write held-out text.
    """
    if config.path:
        return open_tokenizer(config.path)
    match config.kind:
        case TokenizerKind.byte:
            return byte_tokenizer()
        case TokenizerKind.character:
            return train_character(corpus.documents())
        case TokenizerKind.bpe:
            sides = split_documents(corpus, plan) if plan else (("train", t) for t in corpus.documents())
            characters = plan.characters if plan else sum(map(len, corpus.documents()))
            vocab_size = config.vocab_size or fitting_vocabulary(characters)
            return train_bpe((text for side, text in sides if side == "train"), vocab_size)


def fitting_vocabulary(characters: int) -> int:
    """The power of two nearest to 1,024·√(characters / 10⁶), from 512 to 32,768.

    A larger vocabulary packs more text into a token and spreads it over more embeddings to learn; docs/decisions.md
    has the measurements on 1 and on 15 million characters.
    """
    exponent = round(math.log2(1024 * math.sqrt(max(characters, 1) / 1e6)))
    return 2 ** min(max(exponent, 9), 15)


def prepare(
    corpus: Corpus,
    data: DataConfig,
    tokenizer: TokenizerConfig,
    folder: Path,
    console: Console,
) -> PreparedData:
    """Split, tokenize and write ``corpus`` into ``folder``, whole or not at all.

    Documents of a side are joined with end-of-text between them. Raises ``DataError`` for a corpus
    that is empty or cannot be read, ``TokenizerError`` for text the tokenizer cannot express.
    """
    with console.working(f"reading {corpus.name}"):
        plan = plan_split(corpus, data)
    documents = "1 document" if plan.documents == 1 else f"{plan.documents:,} documents"
    console.note(f"{plan.characters:,} characters in {documents}; {plan.description}")
    if corpus.report.skipped:
        console.note(f"{corpus.report}")
    with console.working("learning the vocabulary"):
        chosen = make_tokenizer(tokenizer, corpus, plan)
    console.note(f"vocabulary of {chosen.vocab_size:,} tokens")
    dtype = np.dtype("<u2" if chosen.vocab_size <= 2**16 else "<u4")

    def fill(target: Path) -> None:
        sides = _write_sides(corpus, plan, chosen, target, dtype, console)
        chosen.save(target / "tokenizer.json")
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            corpus=corpus.name,
            provenance=corpus.provenance,
            split=plan.description,
            tokenizer_sha256=chosen.sha256,
            vocab_size=chosen.vocab_size,
            dtype=dtype.str,
            train=sides["train"],
            validation=sides["validation"],
        )
        write_manifest(target, manifest)

    write_folder_atomic(folder, fill)
    return PreparedData.open(folder)


def _write_sides(
    corpus: Corpus, plan: SplitPlan, tokenizer: Tokenizer, folder: Path, dtype: np.dtype, console: Console
) -> dict[Side, SplitManifest]:
    sides: dict[Side, _SideWriter] = {
        side: _SideWriter(folder, side, dtype, tokenizer) for side in ("train", "validation")
    }
    with console.progress("encoding", plan.characters) as progress:
        for side, text in split_documents(corpus, plan):
            sides[side].add(text)
            progress.advance(len(text))
        return {side: writer.close() for side, writer in sides.items()}


class _SideWriter:
    """Encodes the documents of one side in portions and counts them."""

    def __init__(self, folder: Path, side: Side, dtype: np.dtype, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._shards = ShardWriter(folder, side, dtype)
        self._portion: list[str] = []
        self._portion_characters = 0
        self._documents = self._characters = self._bytes = self._tokens = 0

    def add(self, text: str) -> None:
        """Take one document."""
        self._portion.append(text)
        self._portion_characters += len(text)
        if self._portion_characters >= ENCODE_CHARACTERS:
            self._encode_portion()

    def close(self) -> SplitManifest:
        """Write everything out."""
        self._encode_portion()
        return SplitManifest(
            self._documents, self._characters, self._bytes, self._tokens, self._shards.close()
        )

    def _encode_portion(self) -> None:
        for text, token_ids in zip(self._portion, self._tokenizer.encode_batch(self._portion), strict=True):
            joined = [self._tokenizer.end_of_text_id, *token_ids] if self._documents else token_ids
            self._shards.append(joined)
            self._documents += 1
            self._characters += len(text)
            self._bytes += len(text.encode())
            self._tokens += len(joined)
        self._portion, self._portion_characters = [], 0
