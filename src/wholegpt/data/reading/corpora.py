"""Corpora: named ones, files, folders and hub datasets, each a stream of documents with metadata."""

import ast
import functools
import hashlib
import importlib
import inspect
import io
import json
import os
import platform
import sys
import sysconfig
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wholegpt.data.reading.decoding import Piece, ReadingReport, Source
from wholegpt.data.reading.files import READING_OPTIONS, check_options, identity, read_pieces, useful_options
from wholegpt.data.reading.records import read_records
from wholegpt.data.reading.sources import STANDARD_INPUT, source_path
from wholegpt.errors import ConfigError, DataError
from wholegpt.files import exists, utf8_name, write_bytes_atomic
from wholegpt.settings.choices import Split
from wholegpt.settings.schema import DataConfig

TINYSHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
TINYSHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TINYSHAKESPEARE_BYTES = 1_115_394
HUB_PREFIX = "hf:"


Advance = Callable[[int], None]
Texts = Iterable[str | Mapping[str, Any]]
"""Documents in memory: texts, or records with the text in a field."""


@dataclass
class Corpus:
    """A stream of documents with metadata."""

    name: str
    read: Callable[[ReadingReport, Advance], Iterator[Piece]]
    split: Split = Split.automatic
    """How the corpus is split by default."""
    provenance: dict[str, str] = field(default_factory=dict)
    """Where the corpus comes from: versions, paths."""
    parts: tuple["Corpus", ...] = ()
    """The parts of a corpus of several sources."""
    identity: Callable[[], list[Any]] = list
    """Returns a value that changes with the text: sizes and times of files, and the provenance."""
    report: ReadingReport = field(default_factory=ReadingReport)
    """Report of the last reading."""

    def pieces(self, advance: Advance = lambda read: None) -> Iterator[Piece]:
        """Yield the documents, long ones in pieces; call ``advance`` with the bytes read from files."""
        self.report = ReadingReport()
        return self.read(self.report, advance)

    @property
    def sources(self) -> tuple["Corpus", ...]:
        """Return the parts, or the corpus itself if it has none."""
        return self.parts or (self,)

    def size(self) -> int:
        """Return the bytes of the files; 0 if there are none."""
        return sum(entry[1] for entry in self.identity() if isinstance(entry, list))


def lacks_text(corpus: Corpus, config: DataConfig) -> DataError:
    """Return the error for a corpus that was read and holds no text."""
    sources = ["standard input" if one == STANDARD_INPUT else one for one in config.source]
    advice = "; pipe the text into this command" if STANDARD_INPUT in config.source else ""
    return DataError(f"{', '.join(sources) or corpus.name}: holds no text ({corpus.report}){advice}")


def of_texts(
    name: str, texts: Callable[[], Iterable[str]], split: Split = Split.automatic, **provenance: str
) -> Corpus:
    """Return a corpus whose documents are not in files."""
    return Corpus(
        name,
        lambda report, advance: map(Piece, texts()),
        split,
        provenance,
        identity=lambda: [dict(provenance)],
    )


def open_corpus(config: DataConfig) -> Corpus:
    """Open the corpus that ``config.source`` names. Raises ``DataError`` if it does not exist."""
    if not config.source:
        raise DataError(f"no text given; name a file, a folder or a corpus ({', '.join(CORPORA)})")
    parts = tuple(_cleaned(_open_one(source, config), config) for source in config.source)
    check_options(
        config,
        lambda: set().union(*(_useful_options(one, config) for one in config.source)),
        ", ".join(config.source),
    )
    if len(parts) == 1:
        return parts[0]

    name = "+".join(part.name for part in parts)
    if len(parts) > 3:
        name = f"{parts[0].name}+{len(parts) - 1}-more"
    keys = sorted({key for part in parts for key in part.provenance})
    provenance = {key: "; ".join(p.provenance[key] for p in parts if key in p.provenance) for key in keys}

    def read(report: ReadingReport, advance: Advance) -> Iterator[Piece]:
        for number, part in enumerate(parts):
            for piece in part.pieces(advance):
                yield piece._replace(source=number)
            report.add(part.report)

    return Corpus(
        name,
        read,
        provenance=provenance,
        parts=parts,
        identity=lambda: [entry for part in parts for entry in part.identity()],
    )


def in_memory(texts: Texts, config: DataConfig) -> Corpus:
    """Return a corpus whose documents are ``texts``: each a text, or a record with the text in a field.

    Raises ``ConfigError`` for a single text, for an entry of another type, and for a reading option without effect.
    """
    if isinstance(texts, str | bytes | Mapping) or not isinstance(texts, Iterable):
        raise ConfigError(
            f"texts is of type {type(texts).__name__}; expected a list with a text for each document"
        )
    documents = list(texts)
    for number, document in enumerate(documents, 1):
        if not isinstance(document, str | Mapping):
            raise ConfigError(f"texts: entry {number} is of type {type(document).__name__}; expected a text")
        if isinstance(document, Mapping) and not all(isinstance(name, str) for name in document):
            raise ConfigError(f"texts: entry {number} is a record with a field whose name is not a text")
    of_records = (
        {"text_field", "on_bad_line"} if any(isinstance(one, Mapping) for one in documents) else set()
    )
    check_options(config, lambda: {"on_bad_text", *of_records}, "the list of texts")

    def read(report: ReadingReport, advance: Advance) -> Iterator[Piece]:
        for piece in read_records(Source("texts", io.BytesIO(), config, report), documents):
            advance(len(piece.text.encode()))
            yield piece

    @functools.cache
    def identity() -> list[Any]:
        content = json.dumps(documents, default=str, ensure_ascii=False).encode(errors="surrogatepass")
        return [["texts", len(content), hashlib.sha256(content).hexdigest()]]

    return _cleaned(Corpus("texts", read, provenance={"texts": "given in memory"}, identity=identity), config)


def _useful_options(source: str, config: DataConfig) -> set[str]:
    if _is_name(source):
        return set()
    if source.startswith(HUB_PREFIX):
        return {*READING_OPTIONS} - {"encoding"}
    return useful_options(Path(source), config)


def _is_name(source: str) -> bool:
    """Return whether ``source`` names one of ``CORPORA``; an existing file or folder of that name takes
    precedence.
    """
    return source in CORPORA and not exists(source)


def _cleaned(corpus: Corpus, config: DataConfig) -> Corpus:
    """Return ``corpus`` with repaired text if ``data.clean`` is set."""
    if config.clean == "none":
        return corpus
    repair: Callable[[str], str] = importlib.import_module("ftfy").fix_text

    def read(report: ReadingReport, advance: Advance) -> Iterator[Piece]:
        begins = False
        for piece in corpus.read(report, advance):
            begins |= piece.begins
            text = repair(piece.text)
            if text:
                yield piece._replace(text=text, begins=begins)
                begins = False

    return replace(corpus, read=read)


def _open_one(source: str, config: DataConfig) -> Corpus:
    if _is_name(source):
        if config.control:
            raise DataError(f"{source}: has no fields for data.control; give records of your own")
        return CORPORA[source].open()
    if source.startswith(HUB_PREFIX):
        if source == HUB_PREFIX:
            raise DataError(f"{HUB_PREFIX} names no dataset; expected {HUB_PREFIX}OWNER/NAME")
        return hub_dataset(source.removeprefix(HUB_PREFIX), config)
    path = source_path(source, tuple(CORPORA))
    return Corpus(
        utf8_name(path),
        lambda report, advance: read_pieces(path, config, report, advance),
        provenance={"path": str(path.resolve())},
        identity=lambda: identity(path, config.encoding),
    )


def hub_dataset(name: str, config: DataConfig) -> Corpus:
    """Stream the training split of a dataset on the Hugging Face hub, or of a folder that ``datasets`` can
    load.
    """
    if not name.strip():
        raise DataError(f"{HUB_PREFIX} names no dataset; give its name on the hub, as in {HUB_PREFIX}NAME")

    def read(report: ReadingReport, _: Advance) -> Iterator[Piece]:
        import datasets

        try:
            rows = iter(datasets.load_dataset(name, split="train", streaming=True))
            source = Source(f"{HUB_PREFIX}{name}", io.BytesIO(), config, report)
            yield from read_records(source, rows)
        except (OSError, ValueError) as error:
            raise DataError(f"{HUB_PREFIX}{name}: cannot be loaded: {' '.join(str(error).split())}") from None

    return Corpus(
        name.rstrip("/").rpartition("/")[2],
        read,
        provenance={"dataset": name},
        identity=lambda: [os.urandom(16).hex()],
    )


# --- Text inside every Python installation ---------------------------------------------------------


def python_docs() -> Corpus:
    """Return the language reference inside CPython (``pydoc_data.topics``) and the library's docstrings.

    Exact duplicates are dropped. The text depends on the Python version, which is recorded.
    """
    return of_texts("python-docs", _python_docs, Split.fraction, python=platform.python_version())


@functools.cache
def _python_docs() -> list[str]:
    from pydoc_data import topics

    seen: dict[str, None] = {}
    for text in [topics.topics[name] for name in sorted(topics.topics)]:
        seen[text.strip() + "\n"] = None
    for path in standard_library_files():
        for docstring in _docstrings(path):
            seen[docstring.strip() + "\n"] = None
    return [text for text in seen if text.strip()]


def python_stdlib() -> Corpus:
    """Return the source of Python's standard library without its tests, one module per document."""

    def documents() -> Iterator[str]:
        for path in standard_library_files():
            text = path.read_text(encoding="utf-8", errors="strict")
            if text.strip():
                yield text

    return of_texts("python-stdlib", documents, python=platform.python_version())


def standard_library_files() -> list[Path]:
    """Return the standard library's ``.py`` files in order, without tests and installed packages."""
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"test", "tests", "idle_test", "site-packages", "__pycache__", "lib2to3", "pydoc_data"}
    return [
        path
        for path in sorted(root.rglob("*.py"))
        if left_out.isdisjoint(path.relative_to(root).parts)
        and path.relative_to(root).parts[0].removesuffix(".py") in sys.stdlib_module_names
    ]


def _docstrings(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring:
                yield inspect.cleandoc(docstring)


# --- Tiny Shakespeare ----------------------------------------------------------------------------


def cache_folder() -> Path:
    """Return the folder of downloads: ``$XDG_CACHE_HOME/wholegpt`` or ``~/.cache/wholegpt``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wholegpt"


def tinyshakespeare() -> Corpus:
    """Return 1.1 MB of Shakespeare's plays from ``$WHOLEGPT_DATA``, the user cache or the network; verified
    by hash.
    """
    name = "tinyshakespeare.txt"
    folder = os.environ.get("WHOLEGPT_DATA")
    candidates = [Path(folder) / name] if folder else []
    path = next((p for p in [*candidates, cache_folder() / name] if p.exists()), None)
    content = path.read_bytes() if path else _download(TINYSHAKESPEARE_URL, TINYSHAKESPEARE_BYTES)
    if hashlib.sha256(content).hexdigest() != TINYSHAKESPEARE_SHA256:
        raise DataError(
            f"{path or TINYSHAKESPEARE_URL}: not the expected text (sha256 differs); delete it and try again"
        )
    if path is None:
        cache_folder().mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(cache_folder() / name, content)
    text = content.decode("utf-8")
    return of_texts("tinyshakespeare", lambda: (text,), Split.fraction, sha256=TINYSHAKESPEARE_SHA256)


def _download(url: str, limit: int) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.read(limit + 1)
    except (urllib.error.URLError, TimeoutError) as error:
        raise DataError(
            f"{url}: cannot be downloaded ({error}); put the file into {cache_folder()} or into the "
            "folder that WHOLEGPT_DATA names"
        ) from None


@dataclass(frozen=True)
class NamedCorpus:
    """A built-in corpus."""

    open: Callable[[], Corpus]
    description: str


CORPORA = {
    "python-docs": NamedCorpus(
        python_docs, "language reference and docstrings inside your Python; no network"
    ),
    "python-stdlib": NamedCorpus(python_stdlib, "source code of your Python's standard library; no network"),
    "tinyshakespeare": NamedCorpus(tinyshakespeare, "1.1 million characters of Shakespeare's plays"),
}
