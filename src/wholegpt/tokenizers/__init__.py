"""Tokenizers: text to token ids and back."""

from wholegpt.tokenizers.form import byte_level_alphabet
from wholegpt.tokenizers.published import TOKENIZER_FILES, gpt2_tokenizer, open_tokenizer
from wholegpt.tokenizers.quality import Quality, quality
from wholegpt.tokenizers.tokenizer import (
    CLASSIFY,
    DELIMITER,
    END_OF_TEXT,
    MASK,
    PADDING,
    START,
    StreamDecoder,
    Tokenizer,
)
from wholegpt.tokenizers.training import (
    byte_tokenizer,
    character_tokenizer,
    train_bpe,
    train_character,
    train_gpt1,
)

__all__ = [
    "CLASSIFY",
    "DELIMITER",
    "END_OF_TEXT",
    "MASK",
    "PADDING",
    "START",
    "TOKENIZER_FILES",
    "Quality",
    "StreamDecoder",
    "Tokenizer",
    "byte_level_alphabet",
    "byte_tokenizer",
    "character_tokenizer",
    "gpt2_tokenizer",
    "open_tokenizer",
    "quality",
    "train_bpe",
    "train_character",
    "train_gpt1",
]
