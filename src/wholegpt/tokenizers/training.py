"""Making tokenizers from text: byte-level BPE (E1), characters, bytes."""

from collections.abc import Iterable

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library

from wholegpt.errors import TokenizerError
from wholegpt.tokenizers.tokenizer import END_OF_TEXT, Tokenizer, byte_level_alphabet


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level byte-pair encoding in GPT-2's form (Radford et al. 2019, section 2.2).

    E1: starting from the 256 bytes, join the most frequent adjacent pair of tokens inside the words
    of ``texts``, again and again; ties go to the pair of smaller ids. The vocabulary is the bytes,
    the joined pairs and, last, end-of-text: at most ``vocab_size`` entries.
    """
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    library.train_from_iterator(texts, trainer)
    library.add_special_tokens([END_OF_TEXT])
    return Tokenizer(library)


def train_character(texts: Iterable[str]) -> Tokenizer:
    """One token per distinct character of ``texts``, in code-point order, then end-of-text."""
    library = _character_library(texts)
    library.add_special_tokens([END_OF_TEXT])
    return Tokenizer(library)


def character_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """``train_character`` without an end-of-text token, as nanoGPT has it: it cannot say where a text ends."""
    return Tokenizer(_character_library(texts))


def _character_library(texts: Iterable[str]) -> Library:
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    if not characters:
        raise TokenizerError("the text has no characters to make a vocabulary of")
    vocabulary = {character: i for i, character in enumerate(sorted(characters))}
    library = Library(models.WordLevel(vocabulary, unk_token=""))
    library.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    library.decoder = decoders.Fuse()
    return library


def byte_tokenizer() -> Tokenizer:
    """One token per byte, its id the byte, then end-of-text (256)."""
    vocabulary = {character: byte for byte, character in enumerate(byte_level_alphabet())}
    library = Library(models.BPE(vocab=vocabulary, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([END_OF_TEXT])
    return Tokenizer(library)
