"""``wholegpt data list|prepare|stats|deduplicate|contamination``."""

import contextlib
import dataclasses
import errno
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Annotated

from cyclopts import App, Parameter

from wholegpt.cli.documents import read_documents, write_json_lines
from wholegpt.cli.options import (
    ChosenSettings,
    Common,
    CommonOptions,
    Reading,
    ReadingOptions,
    next_commands,
    program_name,
    section,
    table,
)
from wholegpt.errors import ConfigError, DataError, Interrupted, RunError
from wholegpt.settings import presets
from wholegpt.settings.schema import Config, DataConfig, TokenizerConfig
from wholegpt.settings.validation import check

SHOWN = 20

HELP = """Inspect text and prepare it for training.

Examples
--------
wholegpt data stats my.txt
wholegpt data prepare my.txt --out data/mine
"""

app = App(name="data", help=HELP, sort_key=12, synonym=("corpus", "dataset", "prepare"))


@app.command(name="list")
def list_corpora(*, common: CommonOptions = Common()) -> None:
    """List the corpora and the built-in tasks that are available by name.

    Examples
    --------
    wholegpt data list
    wholegpt train python-docs
    wholegpt finetune runs/mine --task instruct --data addition:100

    """
    from wholegpt.data import CORPORA
    from wholegpt.data.examples.built_in import TASKS

    corpora = {name: corpus.description for name, corpus in CORPORA.items()}
    tasks = {name: task.description for name, task in TASKS.items()}
    common.show(
        {"corpora": corpora, "tasks": tasks},
        "\n".join(
            (
                "corpora: `train NAME`",
                table(list(corpora.items())),
                "",
                "tasks: `finetune --task instruct --data NAME` or `NAME:EXAMPLES`, `align --data NAME`",
                table(list(tasks.items())),
            )
        ),
    )


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
    """Split and tokenize text, and write it as token shards for training.

    Parameters
    ----------
    source
        Text files, folders, tables or corpus names.
    out
        Output folder.
    overwrite
        Replace existing prepared data.
    data
        Reading and splitting.
    tokenizer
        Tokenizer.

    Examples
    --------
    wholegpt data prepare my.txt --out data/mine
    wholegpt data prepare notes/ --out data/notes --data.deduplicate near

    """
    from wholegpt import data as library
    from wholegpt.files import lock_folder

    changes = section(ChosenSettings.of(Config(data=data, tokenizer=tokenizer)), "data", **reading.given())
    changes = section(changes, "data", source=list(source) or None)
    config = presets.configure(changes, where="command line")
    check(config)
    folder = Path(out)
    with _resumable(folder), lock_folder(folder, "data prepare"):
        occupied = folder.is_file() or (folder.is_dir() and any(folder.iterdir()))
        if occupied and not (overwrite and library.PreparedData.is_ours(folder)):
            raise RunError(
                f"{folder}: already exists and is not prepared data; name another --out"
                if overwrite
                else f"{folder}: already exists; name another --out, or replace prepared data with --overwrite"
            )
        corpus = library.open_corpus(config.data)
        prepared = library.prepare(corpus, config.data, config.tokenizer, folder, common.console)
    prepared.warn_unless(config.data.card, common.console)
    manifest = prepared.manifest
    sides = {"train": manifest.train, "validation": manifest.validation}
    result = {
        "out": str(folder),
        "corpus": manifest.corpus,
        "card": prepared.card["sha256"],
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
        ("card", str(folder / "card.md")),
        ("split", manifest.split),
        ("vocabulary", f"{manifest.vocab_size:,} tokens"),
    ]
    rows += [
        (name, f"{side.tokens:,} tokens, {side.characters:,} characters, {side.documents:,} documents")
        for name, side in sides.items()
    ]
    common.show(
        result,
        table(rows),
        next_commands((f"{program_name()} train {quote(out)}", "train a model on it")),
    )


@contextlib.contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    """Add to the errors of Ctrl-C and of a full disk that the same command continues."""
    kept = "finished parts are kept, and the same command continues"
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {kept}") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(f"{folder}: {error.strerror}; {kept}") from None


@app.command
def stats(
    *source: str,
    reading: ReadingOptions = Reading(),
    common: CommonOptions = Common(),
) -> None:
    """Show statistics of text, or the data card of prepared data.

    Parameters
    ----------
    source
        Text files, folders, tables or corpus names; or a folder made by `data prepare`.

    Examples
    --------
    wholegpt data stats my.txt
    wholegpt data stats data/mine

    """
    from wholegpt import data as library

    if len(source) == 1 and library.PreparedData.exists(Path(source[0])):
        card = library.PreparedData.open(Path(source[0])).card
        common.show(card, library.card_page(card).rstrip())
        return
    statistics = library.TextStatistics()
    with read_documents(source, reading, common.console, statistics) as (corpus, store):
        described = library.describe_text(corpus, statistics, store)
    text = described["text"]
    lengths = text["characters_of_documents"]
    rows = [
        (
            "documents",
            f"{text['documents']:,}, of which {text['identical_documents']:,} are byte-for-byte duplicates of an "
            "earlier one",
        ),
        ("characters", f"{text['characters']:,}"),
        ("bytes", f"{text['bytes']:,} of UTF-8"),
        (
            "characters per document",
            f"median {lengths['median']:,}, quartiles {lengths['quarter']:,} and {lengths['three_quarters']:,}, "
            f"minimum {lengths['least']:,}, maximum {lengths['most']:,}",
        ),
        (
            "Unicode scripts",
            ", ".join(f"{name} {share:.2%}" for name, share in described["unicode_scripts"].items()),
        ),
        *(("read", line) for line in corpus.report.lines()),
    ]
    common.show(described, table(rows))


@app.command
def deduplicate(
    *source: str,
    out: str | None = None,
    exact: Annotated[bool, Parameter(negative="")] = False,
    threshold: float = DataConfig.near_threshold,
    words: int = DataConfig.near_words,
    reading: ReadingOptions = Reading(),
    common: CommonOptions = Common(),
) -> None:
    """Find duplicate and near-duplicate documents, and write the others to a file.

    Parameters
    ----------
    source
        Text files, folders, tables or corpus names.
    out
        Output file (JSON lines) for the documents that are kept. Default: report only.
    exact
        Find only exact duplicates (except for case and white space).
    threshold
        Similarity from which documents are near-duplicates: the Jaccard index of their word n-grams.
    words
        Length of the word n-grams that are compared.

    Examples
    --------
    wholegpt data deduplicate documents.jsonl
    wholegpt data deduplicate documents.jsonl --out unique.jsonl --exact

    """
    from wholegpt import data as library

    if out and Path(out).exists():
        raise RunError(f"{out}: already exists; name another --out")
    method = "exact" if exact else "near"
    data = DataConfig(deduplicate=method, near_threshold=threshold, near_words=words)
    check(Config(data=data))
    with read_documents(source, reading, common.console) as (corpus, store):
        corpus.report.show(common.console)
        duplicates = library.find_in_store(store, data, common.console)
        clusters = list(duplicates.clusters(store.excerpt))
        if out:
            documents = zip(duplicates.kept, store.documents(), strict=True)
            write_json_lines(Path(out), ("".join(pieces) for kept, pieces in documents if kept))
    result = {
        "documents": len(duplicates.first),
        "kept": int(duplicates.kept.sum()),
        "exact": duplicates.exact,
        "near": duplicates.near,
        "clusters": clusters,
        **({"out": out} if out else {}),
    }
    rows = [
        row
        for cluster in clusters[:SHOWN]
        for row in (
            (f"kept {cluster['kept']['document']}", cluster["kept"]["excerpt"]),
            *(
                (f"  left out {one['document']}", f"{one['similarity']:.2f}  {one['excerpt']}")
                for one in cluster["left_out"]
            ),
        )
    ]
    more = [("", f"and {len(clusters) - SHOWN:,} more groups")] if len(clusters) > SHOWN else []
    counted = (
        f"{result['kept']:,} of {result['documents']:,} documents kept; left out: {result['exact']:,} exact and "
        f"{result['near']:,} near duplicates"
    )
    common.show(result, table([*rows, *more, ("total", counted)]))


@app.command
def contamination(
    training: str,
    evaluation: str,
    *,
    words: int = 13,
    reading: ReadingOptions = Reading(),
    common: CommonOptions = Common(),
) -> None:
    """Find evaluation documents that occur in the training text, wholly or in part (contamination).

    Parameters
    ----------
    training
        Training text: a file, a folder, a table or a corpus name.
    evaluation
        Evaluation text, likewise.
    words
        Length of the word n-grams that are compared, without case and punctuation.

    Examples
    --------
    wholegpt data contamination my.txt held-out.txt
    wholegpt data contamination my.txt questions.jsonl --words 8

    """
    from wholegpt import data as library

    if words < 1:
        raise ConfigError(f"--words is {words}; expected at least 1")
    console = common.console
    with (
        read_documents((training,), reading, console) as (corpus, known),
        read_documents((evaluation,), reading, console) as (asked_corpus, asked),
        console.working("comparing"),
    ):
        corpus.report.show(console, training)
        asked_corpus.report.show(console, evaluation)
        compared = library.contamination(known.documents(), asked.documents(), words)
    found = sorted((one for one in compared if one.found), key=lambda one: -one.share)
    result = {
        "documents": len(compared),
        "contaminated": len(found),
        "too_short": sum(not one.ngrams for one in compared),
        "words": words,
        "contaminated_documents": [{**dataclasses.asdict(one), "share": one.share} for one in found],
    }
    rows = [(f"document {one.document}", f"{one.share:7.1%}  {one.excerpt}") for one in found[:SHOWN]]
    counted = (
        f"{len(found):,} of {len(compared):,} documents share {words}-grams of words with the training text"
    )
    short = f"; {result['too_short']:,} are shorter than {words} words" if result["too_short"] else ""
    more = [("", f"and {len(found) - SHOWN:,} more")] if len(found) > SHOWN else []
    common.show(result, table([*rows, *more, ("total", counted + short)]))
