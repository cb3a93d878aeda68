"""``wholegpt data list|prepare|contamination``."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from wholegpt import presets
from wholegpt.checks import check
from wholegpt.cli.options import (
    ChosenSettings,
    Common,
    CommonOptions,
    Reading,
    ReadingOptions,
    section,
    table,
)
from wholegpt.config import Config, DataConfig, TokenizerConfig
from wholegpt.errors import ConfigError, RunError

app = App(name="data", help="Look at corpora and turn text into token shards.", sort_key=6)


@app.command(name="list")
def list_corpora(*, common: CommonOptions = Common()) -> None:
    """List the corpora that are called by name."""
    from wholegpt.data import CORPORA

    result = {"corpora": {name: corpus.description for name, corpus in CORPORA.items()}}
    common.show(result, table(list(result["corpora"].items())))


@app.command
def prepare(
    *source: str,
    out: str,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    data: Annotated[DataConfig, Parameter(name="--data")] = DataConfig(),
    tokenizer: Annotated[TokenizerConfig, Parameter(name="--tokenizer")] = TokenizerConfig(),
    reading: ReadingOptions = Reading(),
    common: CommonOptions = Common(),
) -> None:
    """Split, tokenize and write text as token shards, to train on many times.

    Parameters
    ----------
    source
        Text files, folders, JSON-lines files or corpus names.
    out
        Folder to write.
    overwrite
        Replace prepared data that is already there.
    data
        Reading and splitting.
    tokenizer
        How text becomes token ids.

    """
    from wholegpt import data as library

    changes = section(ChosenSettings.of(Config(data=data, tokenizer=tokenizer)), "data", **reading.given())
    changes = section(changes, "data", source=list(source) or None)
    config = presets.configure(changes, where="command line")
    check(config)
    folder = Path(out)
    occupied = folder.is_file() or (folder.is_dir() and any(folder.iterdir()))
    if occupied and not (overwrite and library.PreparedData.exists(folder)):
        raise RunError(
            f"{folder}: already exists; name another --out, or replace prepared data with --overwrite"
        )
    corpus = library.open_corpus(config.data)
    prepared = library.prepare(corpus, config.data, config.tokenizer, folder, common.console)
    manifest = prepared.manifest
    sides = {"train": manifest.train, "validation": manifest.validation}
    result = {
        "out": str(folder),
        "corpus": manifest.corpus,
        "split": manifest.split,
        "vocab_size": manifest.vocab_size,
        "tokenizer_sha256": manifest.tokenizer_sha256,
        **{
            name: {key: getattr(side, key) for key in ("documents", "characters", "bytes", "tokens")}
            for name, side in sides.items()
        },
    }
    rows = [
        ("out", str(folder)),
        ("split", manifest.split),
        ("vocabulary", f"{manifest.vocab_size:,} tokens"),
    ]
    rows += [
        (name, f"{side.tokens:,} tokens, {side.characters:,} characters, {side.documents:,} documents")
        for name, side in sides.items()
    ]
    common.show(result, table(rows))


@app.command
def contamination(
    training: str,
    evaluation: str,
    *,
    words: int = 13,
    reading: ReadingOptions = Reading(),
    common: CommonOptions = Common(),
) -> None:
    """Say which evaluation documents stand in the training text, wholly or in part.

    Parameters
    ----------
    training
        Text that a model is trained on: a file, a folder, a table or a corpus name.
    evaluation
        Text that it is measured on.
    words
        Words in a row, without case and punctuation, that count as the same text.

    """
    from wholegpt import data as library

    if words < 1:
        raise ConfigError(f"--words is {words}; expected at least 1")
    with tempfile.TemporaryDirectory() as folder:
        stores: list[library.DocumentStore] = []
        for place, source in enumerate((training, evaluation)):
            corpus = library.open_corpus(dataclasses.replace(DataConfig(source=(source,)), **reading.given()))
            target = Path(folder) / str(place)
            target.mkdir()
            with common.console.bytes_progress(f"reading {corpus.name}", corpus.size()) as progress:
                stores.append(library.write_documents(target, corpus.pieces(progress.advance)))
        with stores[0] as known, stores[1] as asked, common.console.working("comparing"):
            overlaps = library.contamination(known.documents(), asked.documents(), words)
    found = sorted((one for one in overlaps if one.found), key=lambda one: -one.share)
    result = {
        "documents": len(overlaps),
        "contaminated": len(found),
        "too_short": sum(not one.runs for one in overlaps),
        "words": words,
        "overlaps": [{**dataclasses.asdict(one), "share": one.share} for one in found],
    }
    rows = [(f"document {one.document}", f"{one.share:7.1%}  {one.excerpt}") for one in found[:20]]
    counted = (
        f"{len(found):,} of {len(overlaps):,} documents share runs of {words} words with the training text"
    )
    short = f"; {result['too_short']:,} are shorter than that" if result["too_short"] else ""
    more = [("", f"and {len(found) - 20:,} more")] if len(found) > 20 else []
    common.show(result, table([*rows, *more, ("in all", counted + short)]))
