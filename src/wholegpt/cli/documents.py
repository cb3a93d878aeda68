"""The documents that commands on text read and write."""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wholegpt.cli.options import Reading
from wholegpt.settings.schema import DataConfig

if TYPE_CHECKING:
    from wholegpt.console import Console
    from wholegpt.data import Corpus, DocumentStore, TextStatistics


@contextlib.contextmanager
def read_documents(
    sources: tuple[str, ...],
    reading: Reading,
    console: "Console",
    statistics: "TextStatistics | None" = None,
) -> Iterator[tuple["Corpus", "DocumentStore"]]:
    """Read the documents of ``sources`` to a temporary store on disk."""
    from wholegpt import data as library

    settings: dict[str, Any] = reading.given()
    config = DataConfig(source=sources, **settings)
    corpus = library.open_corpus(config)
    with tempfile.TemporaryDirectory() as folder:
        with console.bytes_progress(f"reading {corpus.name}", corpus.size()) as progress:
            pieces = corpus.pieces(progress.advance)
            watched = statistics.watch(pieces) if statistics else pieces
            store = library.write_documents(Path(folder), watched)
        with store:
            if not len(store):
                raise library.lacks_text(corpus, config)
            yield corpus, store


def write_json_lines(path: Path, documents: Iterator[str]) -> None:
    """Write documents as JSON Lines."""
    from wholegpt.files import writing

    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as file:
        for document in documents:
            file.write(json.dumps({"text": document}, ensure_ascii=False).encode() + b"\n")
