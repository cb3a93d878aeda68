"""Prepare a corpus as a folder of token shards: read, split, train the tokenizer, encode.

Every step stores its result in a folder that survives a crash, so that the same call continues from there and
gives the same bytes.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wholegpt.console import Console, Progress
from wholegpt.data.control_codes import count_values
from wholegpt.data.reading.corpora import Corpus, lacks_text
from wholegpt.data.text.card import describe_text, write_card
from wholegpt.data.text.contamination import contamination
from wholegpt.data.text.deduplication import Duplicates, find_duplicates
from wholegpt.data.text.documents import DocumentStore, write_documents
from wholegpt.data.text.encoding import encode_side
from wholegpt.data.text.shards import (
    DUPLICATES,
    FORMAT_VERSION,
    MANIFEST,
    PREPARED_FILES,
    Manifest,
    PreparedData,
    with_current_names,
    write_manifest,
)
from wholegpt.data.text.splitting import SIDES, SPLIT_VERSION, SplitPlan, plan_split
from wholegpt.data.text.statistics import TextStatistics
from wholegpt.data.text.vocabulary import tokenizer_hashes, train_vocabulary
from wholegpt.errors import DataError
from wholegpt.files import (
    lock_folder,
    read_json,
    resumable_folder,
    write_bytes_atomic,
    write_json_atomic,
    write_text_atomic,
)
from wholegpt.settings.schema import DataConfig, TokenizerConfig
from wholegpt.settings.serialization import nearest, to_mapping
from wholegpt.tokenizers import Tokenizer

DOCUMENTS, KEPT = "documents", "kept"
CHECKED_CHARACTERS = 50_000_000
"""Approximate maximum of training characters that are checked for contamination; a tenth of that for
validation.
"""
CONTAMINATION_WORDS = 13
MOST_IDENTICAL = 0.01
"""Share of duplicate documents above which a warning is shown."""


def prepare(
    corpus: Corpus,
    data: DataConfig,
    tokenizer: TokenizerConfig,
    folder: Path,
    console: Console,
) -> PreparedData:
    """Split, tokenize and write ``corpus`` into ``folder``, whole or not at all.

    Documents of a split are separated by end-of-text. After a crash or a full disk, the same call with
    unchanged sources and settings continues where it stopped. Raises ``DataError`` for a corpus that is empty
    or unreadable, ``TokenizerError`` for text that the tokenizer cannot encode.
    """
    request = {
        "format_version": FORMAT_VERSION,
        "split_version": SPLIT_VERSION,
        "sources": corpus.identity(),
        "data": {**to_mapping(data), "card": ""},
        "tokenizer": to_mapping(tokenizer),
        "vocabulary": tokenizer_hashes(tokenizer),
    }
    with lock_folder(folder, "data prepare"), resumable_folder(folder, request, PREPARED_FILES) as work:
        if not (work / MANIFEST).exists():
            _fill(work, corpus, data, tokenizer, console)
        _clear(work)
    return PreparedData.open(folder)


def _fill(work: Path, corpus: Corpus, data: DataConfig, tokenizer: TokenizerConfig, console: Console) -> None:
    """Run all steps from reading to the manifest, which is written last."""
    described = _read(corpus, data, work, console)
    with DocumentStore(work / DOCUMENTS) as store:
        kept, described["duplicates"] = _deduplicated(store, data, work, console)
        plan = plan_split(store, corpus.name, corpus.split, data, kept)
        text = described["text"]
        console.note(
            f"{text['characters']:,} characters in {_counted(text['documents'])}; {plan.description}"
        )
        described["contamination"] = _once(
            work, "contamination", lambda: _contamination(store, plan, console)
        )
        _warn(described, data, console)
        described["tokenizer"] = _once(
            work, "tokenizer", lambda: _train_tokenizer(tokenizer, store, plan, work, console)
        )
        control = _control(store, plan, data)
        chosen = Tokenizer.load(work / "tokenizer.json")
        console.note(f"vocabulary of {chosen.vocab_size:,} tokens")
        dtype = np.dtype("<u2" if chosen.vocab_size <= 2**16 else "<u4")
        sources = len(corpus.sources)
        with console.bytes_progress("encoding", store.headed_bytes) as progress:
            train, validation = (
                encode_side(store, plan, side, chosen, work, dtype, sources, progress) for side in SIDES
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
        control=control,
    )
    write_card(work, corpus, described, manifest, data, tokenizer)
    write_manifest(work, manifest)


def _once(work: Path, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the result of ``make``, or the stored result of an earlier call."""
    path = work / DOCUMENTS / f"{name}.json"
    if not path.exists():
        write_json_atomic(path, make())
    return with_current_names(read_json(path))


def _counted(documents: int) -> str:
    return "1 document" if documents == 1 else f"{documents:,} documents"


def _read(corpus: Corpus, data: DataConfig, work: Path, console: Console) -> dict[str, Any]:
    """Read the documents into ``work``, unless an earlier call did; return their part of the card."""
    folder = work / DOCUMENTS
    folder.mkdir(exist_ok=True)
    if (folder / "text.json").exists():
        console.note("continuing with the documents that an earlier call read")
    return _once(work, "text", lambda: _read_documents(corpus, data, folder, console))


def _read_documents(corpus: Corpus, data: DataConfig, folder: Path, console: Console) -> dict[str, Any]:
    statistics = TextStatistics()
    with (
        console.bytes_progress(f"reading {corpus.name}", corpus.size()) as progress,
        write_documents(
            folder, statistics.watch(corpus.pieces(progress.advance)), data.control_dropout
        ) as store,
    ):
        if not store.pieces["characters"].any():
            raise lacks_text(corpus, data)
        if statistics.different_characters == 1:
            raise DataError(
                f"{corpus.name}: is one character, {store.text(0)[0]!r}, repeated; a model learns nothing from it"
            )
        found = {name for attributes in store.attributes for name, _ in attributes}
        for name in data.control:
            if name not in found:
                raise DataError(
                    f"{corpus.name}: no document has the field '{name}' that data.control names; "
                    f"{nearest(name, list(corpus.report.other_fields))}"
                )
        corpus.report.show(console)
        return describe_text(corpus, statistics, store)


def _control(store: DocumentStore, plan: SplitPlan, data: DataConfig) -> dict[str, dict[str, int]]:
    """Return how many training documents have each value of the fields for control."""
    documents = plan.train[plan.begins(store, "train")]
    counts = np.bincount(store.pieces["attributes"][documents], minlength=len(store.attributes))
    return count_values(data.control, store.attributes, counts)


def _deduplicated(
    store: DocumentStore, data: DataConfig, work: Path, console: Console
) -> tuple[np.ndarray | None, dict[str, Any]]:
    """Return which documents are kept (``None`` without deduplication), and how many are dropped."""
    if data.deduplicate == "none":
        return None, {"method": "none", "left_out_exact": 0, "left_out_near": 0}

    def find() -> dict[str, Any]:
        duplicates = find_in_store(store, data, console)
        write_bytes_atomic(work / DOCUMENTS / KEPT, duplicates.kept.tobytes())
        clusters = (json.dumps(one, ensure_ascii=False) for one in duplicates.clusters(store.excerpt))
        write_text_atomic(work / DUPLICATES, "".join(f"{line}\n" for line in clusters))
        console.note(
            f"{duplicates.exact:,} of {_counted(len(duplicates.first))} are duplicates of earlier ones, "
            f"{duplicates.near:,} are near-duplicates; they are removed and listed in {DUPLICATES}"
        )
        counts = {"left_out_exact": duplicates.exact, "left_out_near": duplicates.near}
        return {"method": data.deduplicate, **counts}

    found = _once(work, "duplicates", find)
    return np.frombuffer((work / DOCUMENTS / KEPT).read_bytes(), dtype=bool), found


def find_in_store(store: DocumentStore, data: DataConfig, console: Console) -> Duplicates:
    """Return the duplicates among the documents of a store, with the settings of ``data``."""
    with console.bytes_progress("looking for duplicates", store.bytes) as progress:
        documents = _watched(store, progress)
        return find_duplicates(documents, data.deduplicate == "near", data.near_threshold, data.near_words)


def _contamination(store: DocumentStore, plan: SplitPlan, console: Console) -> dict[str, Any]:
    """Return how much validation text occurs in the training text; very large splits are sampled evenly."""
    characters = 0

    def training() -> Iterator[Iterator[str]]:
        nonlocal characters
        for document in plan.documents(store, "train", CHECKED_CHARACTERS):
            pieces = list(document)
            characters += sum(map(len, pieces))
            yield iter(pieces)

    with console.working("checking for contamination"):
        evaluation = plan.documents(store, "validation", CHECKED_CHARACTERS // 10)
        results = contamination(training(), evaluation, CONTAMINATION_WORDS)
    return {
        "words": CONTAMINATION_WORDS,
        "documents": len(results),
        "training_characters": characters,
        "contaminated": sum(one.found > 0 for one in results),
        "mostly_contaminated": sum(one.share > 0.5 for one in results),
    }


def _warn(described: dict[str, Any], data: DataConfig, console: Console) -> None:
    """Warn if a model would see the same text too often, or be evaluated on training text."""
    identical, documents = (described["text"][name] for name in ("identical_documents", "documents"))
    if identical > MOST_IDENTICAL * documents and data.deduplicate == "none":
        console.warn(
            f"{identical:,} of {_counted(documents)} duplicate an earlier one; --data.deduplicate exact removes "
            "them"
        )
    found = described["contamination"]
    if found["mostly_contaminated"]:
        console.warn(
            f"more than half of the text of {found['mostly_contaminated']:,} of {found['documents']:,} held-out "
            "documents occurs in the training text, so the evaluation is too optimistic; --data.deduplicate near "
            "removes near-duplicates"
        )


def _watched(store: DocumentStore, progress: Progress) -> Iterator[Iterator[str]]:
    """Yield the documents and count their bytes as they are read."""

    def watched(pieces: Iterator[str]) -> Iterator[str]:
        for piece in pieces:
            yield piece
            progress.advance(len(piece.encode()))

    return (watched(pieces) for pieces in store.documents())


def _train_tokenizer(
    config: TokenizerConfig, store: DocumentStore, plan: SplitPlan, work: Path, console: Console
) -> dict[str, Any]:
    """Create the tokenizer and save it in ``work``; return its part of the card."""
    made, measured = train_vocabulary(config, store, plan, console)
    made.save(work / "tokenizer.json")
    shares = {name: getattr(measured, name) for name in ("bytes_per_token", "unknown_share", "unused_share")}
    return {"sha256": made.sha256, "vocab_size": made.vocab_size, **shares}


def _clear(work: Path) -> None:
    """Delete the files that only serve to continue after a crash."""
    shutil.rmtree(work / DOCUMENTS, ignore_errors=True)
    for path in work.glob("*.bin.json"):
        path.unlink(missing_ok=True)
