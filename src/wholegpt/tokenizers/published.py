"""Published vocabularies."""

import json
from pathlib import Path

from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers

from wholegpt.errors import TokenizerError
from wholegpt.tokenizers.tokenizer import END_OF_TEXT, Tokenizer

GPT2_FILES, TRANSFORMERS_FILES = ("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")
UNKNOWN, WORD_END = "<unk>", "</w>"
"""What GPT-1's vocabulary calls symbols that it lacks, and how it marks the last symbol of a word."""
TOKENIZER_FILES = ("tokenizer.json", GPT2_FILES[0], TRANSFORMERS_FILES[0])
"""One of these is in a folder that holds a tokenizer."""


def gpt2_tokenizer(folder: str | Path) -> Tokenizer:
    """GPT-2's tokenizer from its two published files, ``encoder.json`` and ``vocab.bpe``: 50,257 entries.

    ``vocab.json`` and ``merges.txt`` are the same under the names that ``transformers`` gives them, and GPT-1's too,
    which is told by its marked word ends. Raises ``TokenizerError`` when one is missing or not what its name says.
    """
    names = TRANSFORMERS_FILES if (Path(folder) / TRANSFORMERS_FILES[0]).exists() else GPT2_FILES
    encoder_path, merges_path = (Path(folder) / name for name in names)
    try:
        vocabulary = json.loads(encoder_path.read_text(encoding="utf-8"))
        _, *lines = merges_path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{folder}: expected {' and '.join(names)}: {error}") from None
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines if line)]
    try:
        if UNKNOWN in vocabulary and any(token.endswith(WORD_END) for token in vocabulary):
            model = models.BPE(
                vocab=vocabulary, merges=merges, unk_token=UNKNOWN, end_of_word_suffix=WORD_END
            )
            return Tokenizer(gpt1_library(model))
        library = Library(models.BPE(vocab=vocabulary, merges=merges))
    except Exception as error:  # the library raises nothing more specific
        raise TokenizerError(f"{folder}: {' and '.join(names)} do not fit together: {error}") from None
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([END_OF_TEXT])
    return Tokenizer(library)


def gpt1_library(model: models.BPE) -> Library:
    """How GPT-1 cuts text into words, over a vocabulary of its form."""
    library = Library(model)
    library.normalizer = normalizers.BertNormalizer(lowercase=True)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.BPEDecoder(suffix=WORD_END)
    return library


def open_tokenizer(path: str | Path) -> Tokenizer:
    """A ``tokenizer.json``, or the one in a folder: a run, a model, or GPT-2's two published files."""
    path = Path(path)
    if not path.is_dir():
        return Tokenizer.load(path)
    if (path / "tokenizer.json").exists():
        return Tokenizer.load(path / "tokenizer.json")
    return gpt2_tokenizer(path)
