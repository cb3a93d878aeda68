"""Train tokenizers: byte-level BPE (E1), characters, bytes."""

import json
from collections.abc import Iterable

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library

from wholegpt.errors import TokenizerError
from wholegpt.interrupts import interruptible
from wholegpt.settings.choices import Normalization
from wholegpt.tokenizers.form import byte_level_alphabet
from wholegpt.tokenizers.published import UNKNOWN, WORD_END, gpt1_library
from wholegpt.tokenizers.tokenizer import END_OF_TEXT, Tokenizer

MOST_SYMBOLS = 100_000
"""More than any text has; merges beyond the requested number are removed again."""
LONGEST_WORD = 256
"""Maximum symbols of a word in training; a longer word counts as several.

GPT-2's longest entry has 128 bytes. The time that a word takes grows with the square of its length.
"""


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    normalization: Normalization = Normalization.none,
    lowercase: bool = False,
) -> Tokenizer:
    """Train byte-level byte-pair encoding in GPT-2's form (Radford et al. 2019, section 2.2).

    E1: starting from the 256 bytes, repeatedly merge the most frequent adjacent pair of tokens inside the
    words of ``texts``; ties go to the pair of smaller ids. The vocabulary consists of the bytes, the merged
    pairs and, last, end-of-text: at most ``vocab_size`` entries. The plain twin is ``plain.learn_merges``.
    Words of more than ``LONGEST_WORD`` bytes are split, for training only.
    """
    library = Library(models.BPE())
    _normalize(library, normalization, lowercase)
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    _learn_merges(library, trainer, texts)
    library.add_special_tokens([END_OF_TEXT])
    return Tokenizer(library)


def _learn_merges(library: Library, trainer: trainers.BpeTrainer, texts: Iterable[str]) -> None:
    """Train ``library`` on words of at most ``LONGEST_WORD`` symbols; it still encodes words of any length."""
    split = library.pre_tokenizer
    library.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.FixedLength(LONGEST_WORD)])
    interruptible(lambda: library.train_from_iterator(texts, trainer))
    library.pre_tokenizer = split


def train_gpt1(texts: Iterable[str], merges: int) -> Tokenizer:
    """Train GPT-1's form (Radford et al. 2018, section 4.1): ``merges`` merged pairs besides the symbols of
    ``texts``.

    Text is lowercased, stripped of accents, and split at white space and punctuation. The end of a word is
    marked, so a symbol at the end differs from the same symbol inside. Symbols that do not occur in ``texts``
    become ``<unk>``.
    """
    library = gpt1_library(models.BPE(unk_token=UNKNOWN, end_of_word_suffix=WORD_END))
    trainer = trainers.BpeTrainer(
        vocab_size=merges + MOST_SYMBOLS,
        show_progress=False,
        special_tokens=[UNKNOWN],
        end_of_word_suffix=WORD_END,
    )
    _learn_merges(library, trainer, texts)
    model = json.loads(library.to_str())["model"]
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    learned = [(left, right) for left, right in pairs]
    n_symbols = len(model["vocab"]) - len(learned)
    if n_symbols < 2:
        raise TokenizerError("the text has no words to train a vocabulary on")
    vocabulary = {token: i for token, i in model["vocab"].items() if i < n_symbols + merges}
    library.model = models.BPE(
        vocab=vocabulary, merges=learned[:merges], unk_token=UNKNOWN, end_of_word_suffix=WORD_END
    )
    library.add_special_tokens([END_OF_TEXT])
    return Tokenizer(library)


def train_character(
    texts: Iterable[str], normalization: Normalization = Normalization.none, lowercase: bool = False
) -> Tokenizer:
    """Return a tokenizer with one token per distinct character of ``texts``, in code-point order, then
    end-of-text.
    """
    library = Library(models.WordLevel())
    _normalize(library, normalization, lowercase)
    if library.normalizer is not None:
        texts = (library.normalizer.normalize_str(text) for text in texts)
    characters = _character_library(texts)
    characters.normalizer = library.normalizer
    library = characters
    library.add_special_tokens([END_OF_TEXT])
    return Tokenizer(library)


def character_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Train a character tokenizer without an end-of-text token, as in nanoGPT: it cannot mark where a text
    ends.
    """
    return Tokenizer(_character_library(texts))


def _character_library(texts: Iterable[str]) -> Library:
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    if not characters:
        raise TokenizerError("the text has no characters to train a vocabulary on")
    vocabulary = {character: i for i, character in enumerate(sorted(characters))}
    library = Library(models.WordLevel(vocabulary, unk_token=""))
    library.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    library.decoder = decoders.Fuse()
    return library


def _normalize(library: Library, normalization: Normalization, lowercase: bool) -> None:
    forms = {Normalization.nfc: normalizers.NFC, Normalization.nfkc: normalizers.NFKC}
    steps = [forms[normalization]()] if normalization in forms else []
    if lowercase:
        steps.append(normalizers.Lowercase())
    if steps:
        library.normalizer = normalizers.Sequence(steps)


def byte_tokenizer() -> Tokenizer:
    """Return a tokenizer with one token per byte, whose id is the byte, then end-of-text (256)."""
    vocabulary = {character: byte for byte, character in enumerate(byte_level_alphabet())}
    library = Library(models.BPE(vocab=vocabulary, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([END_OF_TEXT])
    return Tokenizer(library)
