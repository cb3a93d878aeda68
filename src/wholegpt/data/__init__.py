"""Token ids to batches: corpora, their preparation, and the loader."""

from wholegpt.data.contamination import Overlap, contamination
from wholegpt.data.corpora import CORPORA, Corpus, of_texts, open_corpus
from wholegpt.data.documents import DocumentStore, write_documents
from wholegpt.data.loader import Batch, WindowLoader, windows_before
from wholegpt.data.preparation import learn_vocabulary, prepare
from wholegpt.data.reading import JSON_LINES_SUFFIXES, read_lines, read_text
from wholegpt.data.shards import PreparedData, TokenShards
from wholegpt.data.splitting import plan_split

__all__ = [
    "CORPORA",
    "JSON_LINES_SUFFIXES",
    "Batch",
    "Corpus",
    "DocumentStore",
    "Overlap",
    "PreparedData",
    "TokenShards",
    "WindowLoader",
    "contamination",
    "learn_vocabulary",
    "of_texts",
    "open_corpus",
    "plan_split",
    "prepare",
    "read_lines",
    "read_text",
    "windows_before",
    "write_documents",
]
