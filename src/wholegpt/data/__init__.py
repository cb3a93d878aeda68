"""Text corpora and labeled examples: reading, preparation and batches of token ids.

Names that need PyTorch are imported when they are first used, so that commands that only handle text start without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wholegpt.data.reading.corpora import CORPORA, Corpus, Texts, in_memory, lacks_text, of_texts, open_corpus
from wholegpt.data.reading.files import read_text
from wholegpt.data.text.card import card_page, describe_text
from wholegpt.data.text.contamination import Contamination, contamination
from wholegpt.data.text.documents import DocumentStore, write_documents
from wholegpt.data.text.preparation import find_in_store, prepare
from wholegpt.data.text.shards import PreparedData, TextSizes, TokenShards
from wholegpt.data.text.splitting import plan_split
from wholegpt.data.text.statistics import TextStatistics
from wholegpt.data.text.vocabulary import train_vocabulary

if TYPE_CHECKING:
    from wholegpt.data.text.loader import Batch, WindowLoader, make_loader, windows_before

_LOADER = "wholegpt.data.text.loader"
"""The module of the names below that are not imported above."""

__all__ = [
    "CORPORA",
    "Batch",
    "Contamination",
    "Corpus",
    "DocumentStore",
    "PreparedData",
    "TextSizes",
    "TextStatistics",
    "Texts",
    "TokenShards",
    "WindowLoader",
    "card_page",
    "contamination",
    "describe_text",
    "find_in_store",
    "in_memory",
    "lacks_text",
    "make_loader",
    "of_texts",
    "open_corpus",
    "plan_split",
    "prepare",
    "read_text",
    "train_vocabulary",
    "windows_before",
    "write_documents",
]


if not TYPE_CHECKING:  # a type checker sees the imports above, and so reports a misspelled name

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module 'wholegpt.data' has no attribute '{name}'")
        return getattr(import_module(_LOADER), name)
