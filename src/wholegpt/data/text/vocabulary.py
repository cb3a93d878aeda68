"""The tokenizer of prepared data: opened, or trained on the training split and evaluated on held-out text."""

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from wholegpt.console import Console, Progress
from wholegpt.data.text.documents import DocumentStore
from wholegpt.data.text.splitting import SplitPlan
from wholegpt.files import sha256_file
from wholegpt.settings.choices import TokenizerKind
from wholegpt.settings.schema import TokenizerConfig
from wholegpt.tokenizers import (
    TOKENIZER_FILES,
    Quality,
    Tokenizer,
    byte_tokenizer,
    open_tokenizer,
    quality,
    train_bpe,
    train_character,
    train_gpt1,
)

VOCABULARY_BYTES = 200_000_000
"""Maximum bytes of text, sampled from the whole, that a vocabulary is trained on."""
PIECE_SAMPLED, QUALITY_CHARACTERS = 100_000, 1_000_000
"""Characters of a held-out piece, and in total, that a new vocabulary is evaluated on."""


def train_vocabulary(
    config: TokenizerConfig, store: DocumentStore, plan: SplitPlan, console: Console
) -> tuple[Tokenizer, Quality]:
    """Return the tokenizer that ``config`` names, trained on the training split, and its quality on held-out
    text.

    A character vocabulary is that of all text, since it must be able to encode held-out text. Raises
    ``TokenizerError``, with the value, for one that would spoil a model.
    """
    total = int(store.pieces["characters"].sum(dtype=np.int64))
    if config.kind is TokenizerKind.character:
        texts, characters = store.texts, total
    else:
        texts, characters = _sample(store, plan)
    if not config.path:
        console.note(f"training a vocabulary on {characters:,} characters")
    with console.progress(
        f"{'opening' if config.path else 'training'} the vocabulary", characters
    ) as progress:
        made = make_tokenizer(config, lambda: _watched(texts(), progress), total)
    with console.working("evaluating the vocabulary on held-out text"):
        measured = quality(made, _held_out_sample(store, plan))
    measured.check()
    return made, measured


def _held_out_sample(store: DocumentStore, plan: SplitPlan) -> Iterator[str]:
    """Yield up to a few megabytes of held-out text, sampled from all of it."""
    n_pieces = len(plan.validation)
    characters = 0
    for index in np.random.default_rng(0).permutation(n_pieces):
        text = plan.text(store, "validation", int(index))[:PIECE_SAMPLED]
        characters += len(text)
        yield text
        if characters > QUALITY_CHARACTERS:
            return


def _watched(texts: Iterable[str], progress: Progress) -> Iterator[str]:
    for text in texts:
        yield text
        progress.advance(len(text))
    progress.advance(0, "merging pairs")


def _sample(store: DocumentStore, plan: SplitPlan) -> tuple[Callable[[], Iterator[str]], int]:
    """Return the training split, evenly sampled if it is very large, and its number of characters without
    headers.
    """
    sizes = np.diff(store.pieces["end"].astype(np.int64), prepend=0)[plan.train]
    share = VOCABULARY_BYTES / max(int(sizes.sum()), 1)
    drawn = np.random.default_rng(0).random(len(plan.train)) < share
    numbers, sizes = plan.train[drawn].tolist(), store.pieces["characters"][plan.train][drawn].tolist()
    characters = sum(plan.cuts.get(number, size) for number, size in zip(numbers, sizes, strict=True))
    return lambda: (
        plan.headed_text(store, "train", int(index)) for index in np.flatnonzero(drawn)
    ), characters


def make_tokenizer(config: TokenizerConfig, texts: Callable[[], Iterable[str]], characters: int) -> Tokenizer:
    """Return the tokenizer that ``config`` names, trained on ``texts`` of a corpus of ``characters``
    characters.
    """
    made = _without_special_tokens(config, texts, characters)
    return made.with_special_tokens(config.special_tokens) if config.special_tokens else made


def _without_special_tokens(
    config: TokenizerConfig, texts: Callable[[], Iterable[str]], characters: int
) -> Tokenizer:
    if config.path:
        return open_tokenizer(config.path)
    match config.kind:
        case TokenizerKind.byte:
            return byte_tokenizer()
        case TokenizerKind.character:
            return train_character(texts(), config.normalization, config.lowercase)
        case TokenizerKind.gpt1:
            return train_gpt1(texts(), config.merges)
        case TokenizerKind.bpe:
            entries = config.vocab_size or fitting_vocabulary(characters)
            entries -= len(config.special_tokens)
            return train_bpe(texts(), entries, config.normalization, config.lowercase)


def fitting_vocabulary(characters: int) -> int:
    """Return the power of two nearest to 1,024·√(characters / 10⁶), from 512 to 32,768.

    A larger vocabulary encodes more text per token but has more embeddings to train; docs/decisions.md has
    the measurements on 1 and on 15 million characters.
    """
    exponent = round(math.log2(1024 * math.sqrt(max(characters, 1) / 1e6)))
    return 2 ** min(max(exponent, 9), 15)


def tokenizer_hashes(config: TokenizerConfig) -> list[str]:
    """Return the hashes of the files that a given tokenizer is read from."""
    path = Path(config.path)
    if not config.path or not path.exists():
        return []
    names = (*TOKENIZER_FILES, "vocab.bpe", "merges.txt")
    files = [path / name for name in names] if path.is_dir() else [path]
    return [sha256_file(file) for file in files if file.is_file()]
