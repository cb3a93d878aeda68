"""SentencePiece tokenizers as converted by transformers: entries and scores first, then merges."""

import json
from functools import cache
from typing import Any

from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import generate_merges

CORPUS = [
    "The cat sat on the mat, and the dog sat on the log. Once upon a time there was a user in a house.",
    "[INST] What is the capital of the country? [/INST] It is the city on the river.",
    "<|user|> Who is there? <|assistant|> The bird and the fish. bird fish bird fish",
    "naïve café 東京 and the 東京 again; hello world, hello there world 12345 12 34",
]
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
DECODER = [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
SPACES = ["▁▁", "▁▁▁▁", "▁▁▁"]
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def _sequence(key: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", key: list(steps)}


def metaspace(scheme: str, split: bool = False) -> dict[str, Any]:
    """Return the pre-tokenizer of the newer variants."""
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}


VARIANTS: dict[str, dict[str, Any]] = {
    "prepend": {
        "normalizer": _sequence("normalizers", {"type": "Prepend", "prepend": "▁"}, REPLACE),
        "pre_tokenizer": None,
        "decoder": _sequence("decoders", *DECODER, STRIP),
    },
    "replace": {
        "normalizer": REPLACE,
        "pre_tokenizer": None,
        "decoder": _sequence("decoders", *DECODER),
    },
    "first": {
        "normalizer": None,
        "pre_tokenizer": metaspace("first"),
        "decoder": _sequence("decoders", *DECODER, STRIP),
    },
    "always": {
        "normalizer": None,
        "pre_tokenizer": metaspace("always"),
        "decoder": _sequence("decoders", *DECODER, STRIP),
    },
    "never": {
        "normalizer": None,
        "pre_tokenizer": metaspace("never"),
        "decoder": _sequence("decoders", *DECODER),
    },
}
"""How a space is put before a text, as in ``tokenizer.json``."""


@cache
def entries() -> tuple[str, ...]:
    """Return the entries in the order of Llama 2: special tokens, bytes, merged entries, characters."""
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=200, initial_alphabet=list("▁abc.,\"'{}:"), show_progress=False)
    library.train_from_iterator(CORPUS * 3, trainer)
    trained = sorted(library.get_vocab(), key=lambda token: library.get_vocab()[token])
    joined = [token for token in trained if len(token) > 1]
    joined[3:3] = SPACES
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    return (*first, *joined, *(token for token in trained if len(token) == 1))


def scores() -> dict[str, float]:
    """Return the score of each ordinary entry as in Llama 2: minus its rank, with one low score for runs of spaces."""
    ranks = {token: -float(rank) for rank, token in enumerate(entries()[259:])}
    return {**ranks, **dict.fromkeys(SPACES, -1e9)}


def content(variant: str = "prepend", prefix: bool = True, **changes: Any) -> dict[str, Any]:
    """Return the content of a ``tokenizer.json``; with ``prefix``, ``<s>`` precedes a prompt."""
    vocabulary = {token: token_id for token_id, token in enumerate(entries())}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    start, text = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    processor = {
        "type": "TemplateProcessing",
        "single": [start, text],
        "pair": [start, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": entries()[i], **flags} for i in range(3)],
        "post_processor": processor if prefix else None,
        **VARIANTS[variant],
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "byte_fallback": True,
            "fuse_unk": True,
            "vocab": vocabulary,
            "merges": [list(pair) for pair in generate_merges(vocabulary, scores(), set(entries()[:259]))],
        },
        **changes,
    }


def library(variant: str = "prepend", **changes: Any) -> Library:
    """Return the tokenizer of a variant as an object of the tokenizers library."""
    return Library.from_str(json.dumps(content(variant, **changes)))
