"""Text to token ids and back."""

from wholegpt.tokenizers.published import gpt2_tokenizer, open_tokenizer
from wholegpt.tokenizers.tokenizer import END_OF_TEXT, Tokenizer
from wholegpt.tokenizers.training import byte_tokenizer, train_bpe, train_character

__all__ = [
    "END_OF_TEXT",
    "Tokenizer",
    "byte_tokenizer",
    "gpt2_tokenizer",
    "open_tokenizer",
    "train_bpe",
    "train_character",
]
