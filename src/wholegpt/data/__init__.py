"""Token ids to batches: corpora, their preparation, and the loader."""

from wholegpt.data.card import card_page, describe_text
from wholegpt.data.contamination import Overlap, contamination
from wholegpt.data.corpora import CORPORA, Corpus, of_texts, open_corpus
from wholegpt.data.documents import DocumentStore, write_documents
from wholegpt.data.loader import Batch, WindowLoader, make_loader, windows_before
from wholegpt.data.preparation import find_in_store, prepare
from wholegpt.data.reading import read_text
from wholegpt.data.shards import PreparedData, TextSizes, TokenShards
from wholegpt.data.splitting import plan_split
from wholegpt.data.statistics import TextStatistics
from wholegpt.data.vocabulary import learn_vocabulary

__all__ = [
    "CORPORA",
    "Batch",
    "Corpus",
    "DocumentStore",
    "Overlap",
    "PreparedData",
    "TextSizes",
    "TextStatistics",
    "TokenShards",
    "WindowLoader",
    "card_page",
    "contamination",
    "describe_text",
    "find_in_store",
    "learn_vocabulary",
    "make_loader",
    "of_texts",
    "open_corpus",
    "plan_split",
    "prepare",
    "read_text",
    "windows_before",
    "write_documents",
]
