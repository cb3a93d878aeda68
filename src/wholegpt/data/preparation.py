"""From a corpus to a folder of token shards: read, split, learn the vocabulary, encode.

Every step leaves its result in a folder that a crash does not undo, so the same call goes on where it was, to the same
bytes.
"""

import contextlib
import errno
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from wholegpt.config import DataConfig, TokenizerConfig, TokenizerKind, to_mapping
from wholegpt.console import Console, Progress
from wholegpt.data.contamination import contamination
from wholegpt.data.corpora import Corpus
from wholegpt.data.deduplication import find_duplicates
from wholegpt.data.documents import DocumentStore, write_documents
from wholegpt.data.encoding import encode_side
from wholegpt.data.shards import FORMAT_VERSION, Manifest, PreparedData, write_manifest
from wholegpt.data.splitting import SIDES, SplitPlan, plan_split
from wholegpt.errors import DataError
from wholegpt.files import read_json, resumable_folder, sha256_file, write_bytes_atomic, write_json_atomic
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

DOCUMENTS, READ, KEPT = "documents", "read.json", "kept"
VOCABULARY_BYTES = 200_000_000
"""Of text, spread over the whole, that a vocabulary is learned from at most."""
CHECKED_DOCUMENTS, CHECKED_CHARACTERS = 10_000, 50_000_000
"""Held-out documents, and characters of training text, that are looked at for overlap at most."""
PIECE_SAMPLED, QUALITY_CHARACTERS = 100_000, 1_000_000
"""Characters of a held-out piece, and of all, that a new vocabulary is tried on."""


def prepare(
    corpus: Corpus,
    data: DataConfig,
    tokenizer: TokenizerConfig,
    folder: Path,
    console: Console,
) -> PreparedData:
    """Split, tokenize and write ``corpus`` into ``folder``, whole or not at all.

    Documents of a side are joined with end-of-text between them. Killed, or stopped by a full disk, it goes on where
    it was when it is called again with the same sources, unchanged, and the same settings. Raises ``DataError`` for a
    corpus that is empty or cannot be read, ``TokenizerError`` for text the tokenizer cannot express.
    """
    request = {
        "format_version": FORMAT_VERSION,
        "sources": corpus.identity(),
        "data": to_mapping(data),
        "tokenizer": to_mapping(tokenizer),
        "vocabulary": _tokenizer_hashes(tokenizer),
    }
    with _kept_on_full_disk(folder), resumable_folder(folder, request) as work:
        _read(corpus, work, console)
        with DocumentStore(work / DOCUMENTS) as store:
            kept = _kept(store, data, work, console)
            plan = plan_split(store, corpus.name, corpus.split, data, kept)
            summary = read_json(work / READ)
            console.note(f"{summary['description']}; {plan.description}")
            _warn_of_overlap(store, plan, console)
            chosen = _vocabulary(tokenizer, store, plan, work, console)
            console.note(f"vocabulary of {chosen.vocab_size:,} tokens")
            dtype = np.dtype("<u2" if chosen.vocab_size <= 2**16 else "<u4")
            with console.bytes_progress("encoding", store.bytes) as progress:
                train, validation = (
                    encode_side(store, plan, side, chosen, work, dtype, progress) for side in SIDES
                )
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            corpus=corpus.name,
            provenance=corpus.provenance,
            split=plan.description,
            tokenizer_sha256=chosen.sha256,
            vocab_size=chosen.vocab_size,
            dtype=dtype.str,
            train=train,
            validation=validation,
        )
        write_manifest(work, manifest)
        _clear(work)
    return PreparedData.open(folder)


@contextlib.contextmanager
def _kept_on_full_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(
            f"{folder}: {error.strerror}; what was finished is kept, and the same call goes on from there"
        ) from None


def _read(corpus: Corpus, work: Path, console: Console) -> None:
    """Read the documents into ``work``, unless that was done before."""
    if (work / READ).exists():
        console.note("going on with what an earlier call had read")
        return
    folder = work / DOCUMENTS
    folder.mkdir(exist_ok=True)
    with (
        console.bytes_progress(f"reading {corpus.name}", corpus.size()) as progress,
        write_documents(folder, corpus.pieces(progress.advance)) as store,
    ):
        characters = int(store.pieces["characters"].sum(dtype=np.int64))
        documents = int(store.pieces["begins"].sum())
    if not characters:
        raise DataError(f"{corpus.name}: holds no text ({corpus.report})")
    counted = "1 document" if documents == 1 else f"{documents:,} documents"
    if corpus.report.skipped or corpus.report.fields:
        console.note(str(corpus.report))
    write_json_atomic(work / READ, {"description": f"{characters:,} characters in {counted}"})


def _kept(store: DocumentStore, data: DataConfig, work: Path, console: Console) -> np.ndarray | None:
    """Which documents are no copies, found now or before; nothing where that is not asked."""
    if data.deduplicate == "none":
        return None
    path = work / KEPT
    if not path.exists():
        with console.bytes_progress("looking for copies", store.bytes) as progress:
            documents = _watched(store, progress)
            duplicates = find_duplicates(documents, data.deduplicate == "near", data.near_threshold)
        console.note(
            f"{duplicates.exact:,} of {len(duplicates.first):,} documents are copies of earlier ones, "
            f"{duplicates.near:,} nearly; they are left out"
        )
        write_bytes_atomic(path, duplicates.kept.tobytes())
    return np.frombuffer(path.read_bytes(), dtype=bool)


def _warn_of_overlap(store: DocumentStore, plan: SplitPlan, console: Console) -> None:
    """Say so where held-out documents stand in the training text: figures on them would flatter."""
    with console.working("looking for held-out text in the training text"):
        evaluation = islice(plan.documents(store, "validation"), CHECKED_DOCUMENTS)
        training = _up_to(CHECKED_CHARACTERS, plan.documents(store, "train"))
        overlaps = contamination(training, _up_to(CHECKED_CHARACTERS // 10, evaluation))
    mostly = sum(overlap.share > 0.5 for overlap in overlaps)
    if mostly:
        console.warn(
            f"{mostly:,} of {len(overlaps):,} of the held-out documents stand in the training text, more than half of "
            "each, so figures on them flatter; --data.deduplicate near leaves copies out"
        )


def _up_to(characters: int, documents: Iterable[Iterator[str]]) -> Iterator[list[str]]:
    """The first documents, whole, until they have so many characters."""
    for pieces in documents:
        document = list(pieces)
        yield document
        characters -= sum(map(len, document))
        if characters <= 0:
            return


def _watched(store: DocumentStore, progress: Progress) -> Iterator[Iterator[str]]:
    """The documents, their bytes counted as they are read."""

    def watched(pieces: Iterator[str]) -> Iterator[str]:
        for piece in pieces:
            yield piece
            progress.advance(len(piece.encode()))

    return (watched(pieces) for pieces in store.documents())


def _vocabulary(
    config: TokenizerConfig, store: DocumentStore, plan: SplitPlan, work: Path, console: Console
) -> Tokenizer:
    """The tokenizer, made now or before; kept in ``work``."""
    path = work / "tokenizer.json"
    if not path.exists():
        with console.working("learning the vocabulary"):
            learn_vocabulary(config, store, plan)[0].save(path)
    return Tokenizer.load(path)


def learn_vocabulary(
    config: TokenizerConfig, store: DocumentStore, plan: SplitPlan
) -> tuple[Tokenizer, Quality]:
    """The tokenizer that ``config`` names, learned from the training side, and how it does on held-out text.

    A character vocabulary is that of all text: it must be able to write what is held out. Raises ``TokenizerError``,
    with the figure, for one that would spoil a model.
    """
    texts = store.texts if config.kind is TokenizerKind.character else _sample(store, plan)
    made = make_tokenizer(config, texts, int(store.pieces["characters"].sum(dtype=np.int64)))
    measured = quality(made, _held_out_sample(store, plan))
    measured.check()
    return made, measured


def _held_out_sample(store: DocumentStore, plan: SplitPlan) -> Iterator[str]:
    """Up to a few megabytes of held-out text, spread over all of it."""
    places = len(plan.validation)
    characters = 0
    for place in np.random.default_rng(0).permutation(places):
        text = plan.text(store, "validation", int(place))[:PIECE_SAMPLED]
        characters += len(text)
        yield text
        if characters > QUALITY_CHARACTERS:
            return


def _sample(store: DocumentStore, plan: SplitPlan) -> Callable[[], Iterator[str]]:
    """The training side, or pieces of it drawn evenly where that is very large."""
    sizes = np.diff(store.pieces["end"].astype(np.int64), prepend=0)[plan.train]
    share = VOCABULARY_BYTES / max(int(sizes.sum()), 1)
    drawn = np.random.default_rng(0).random(len(plan.train)) < share
    return lambda: (plan.text(store, "train", int(place)) for place in np.flatnonzero(drawn))


def make_tokenizer(config: TokenizerConfig, texts: Callable[[], Iterable[str]], characters: int) -> Tokenizer:
    """The tokenizer that ``config`` names, trained on ``texts`` of a corpus of so many ``characters``."""
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
            return train_bpe(texts(), entries, config.normalization, config.lowercase)


def fitting_vocabulary(characters: int) -> int:
    """The power of two nearest to 1,024·√(characters / 10⁶), from 512 to 32,768.

    A larger vocabulary packs more text into a token and spreads it over more embeddings to learn; docs/decisions.md
    has the measurements on 1 and on 15 million characters.
    """
    exponent = round(math.log2(1024 * math.sqrt(max(characters, 1) / 1e6)))
    return 2 ** min(max(exponent, 9), 15)


def _tokenizer_hashes(config: TokenizerConfig) -> list[str]:
    """Of the files that a given tokenizer is read from."""
    path = Path(config.path)
    if not config.path or not path.exists():
        return []
    names = (*TOKENIZER_FILES, "vocab.bpe", "merges.txt")
    files = [path / name for name in names] if path.is_dir() else [path]
    return [sha256_file(file) for file in files if file.is_file()]


def _clear(work: Path) -> None:
    """Delete what only served to go on after a crash."""
    for path in (work / DOCUMENTS).iterdir():
        path.unlink()
    (work / DOCUMENTS).rmdir()
    for path in (work / READ, work / KEPT, *work.glob("*.bin.json")):
        path.unlink(missing_ok=True)
