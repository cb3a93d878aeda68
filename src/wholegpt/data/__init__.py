"""Token ids to batches: corpora, their preparation, and the loader."""

from wholegpt.data.corpora import CORPORA, Corpus, open_corpus
from wholegpt.data.loader import Batch, WindowLoader, windows_before
from wholegpt.data.preparation import make_tokenizer, prepare
from wholegpt.data.reading import JSON_LINES_SUFFIXES, read_lines, read_text
from wholegpt.data.shards import PreparedData, TokenShards

__all__ = [
    "CORPORA",
    "JSON_LINES_SUFFIXES",
    "Batch",
    "Corpus",
    "PreparedData",
    "TokenShards",
    "WindowLoader",
    "make_tokenizer",
    "open_corpus",
    "prepare",
    "read_lines",
    "read_text",
    "windows_before",
]
