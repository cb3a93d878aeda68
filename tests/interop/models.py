"""Tiny models whose parameters are all random, so that no error is hidden by zeros and ones."""

import json
import string

import torch
from tokenizers import Tokenizer as Library

from tests.helpers import shrink, tiny_model
from wholegpt.model import Transformer
from wholegpt.settings.choices import Bias, Embeddings, FeedForward, QueryKeyNorm
from wholegpt.settings.presets import gpt1, gpt2
from wholegpt.settings.schema import ModelConfig
from wholegpt.tokenizers import Tokenizer, train_bpe, train_character
from wholegpt.tokenizers.published import QWEN2_SPLIT

SIZES = {"vocab_size": 65, "context_length": 256, "d_model": 32}
KINDS: dict[str, ModelConfig] = {
    "gpt1": shrink(gpt1(), **SIZES),
    "gpt2": shrink(gpt2(), **SIZES),
    "gpt2-exact": shrink(gpt2(), **SIZES, d_ff=48, feed_forward=FeedForward.gelu),
    "llama": tiny_model(**SIZES, query_key_norm=QueryKeyNorm.none),
    "qwen2": tiny_model(
        **{**SIZES, "vocab_size": 300},
        query_key_norm=QueryKeyNorm.none,
        bias=Bias.query_key_value,
        embeddings=Embeddings.untied,
    ),
    "modern": tiny_model(**SIZES),
    "modern-untied": tiny_model(**SIZES, embeddings=Embeddings.untied, d_head=12, rotary_base=1e6),
}


def random_model(config: ModelConfig, seed: int = 1) -> Transformer:
    """Return a model with every weight, gain and bias drawn at random."""
    torch.manual_seed(seed)
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(mean=float(parameter.ndim == 1), std=0.2)
    return model.eval()


def tokenizer_of(vocab_size: int) -> Tokenizer:
    """Return a tokenizer with exactly this many entries: characters up to 90, then byte-level BPE."""
    if vocab_size <= 90:
        characters = "\n .,\"'" + string.ascii_letters + string.digits + string.punctuation
        return train_character([first_distinct(characters, vocab_size - 1)])
    words = " ".join(f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "bdfgklmnprst")
    return train_bpe([words * 3], vocab_size)


def tokenizer_for(kind: str) -> Tokenizer:
    """Return a tokenizer for a model of ``KINDS``: for Qwen2 with its word split, which transformers always applies."""
    tokenizer = tokenizer_of(KINDS[kind].vocab_size)
    if kind != "qwen2":
        return tokenizer
    content = json.loads(tokenizer.to_json())
    split = {"type": "Split", "pattern": {"Regex": QWEN2_SPLIT}, "behavior": "Isolated", "invert": False}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, bytes_]}
    return Tokenizer(Library.from_str(json.dumps({**content, "normalizer": {"type": "NFC"}})))


def first_distinct(text: str, count: int) -> str:
    """Return the first ``count`` distinct characters of ``text``."""
    return "".join(list(dict.fromkeys(text))[:count])
