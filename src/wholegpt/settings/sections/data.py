"""Text: where it comes from, how it becomes tokens, and how tokens become windows."""

import math
from dataclasses import dataclass

from wholegpt.errors import ConfigError
from wholegpt.settings.choices import (
    Clean,
    Deduplicate,
    Documents,
    Normalization,
    OnBadLine,
    OnBadText,
    Split,
    TokenizerKind,
)
from wholegpt.settings.sections.ranges import at_least, below_one, from_zero_to_one, require

LEAST_WEIGHT = 1e-5
"""Smallest share of the windows that a source with a weight above 0 may have."""


@dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes token ids."""

    kind: TokenizerKind = TokenizerKind.bpe
    """Kind of tokenizer: byte-level BPE as in GPT-2 (bpe), BPE on lower-cased words as in GPT-1 (gpt1), one token per
    character, or one per byte."""
    vocab_size: int = 0
    """Vocabulary size of bpe, special tokens included. 0: chosen by the amount of text, 1,024 for a megabyte."""
    merges: int = 40_000
    """Number of merges of gpt1, in addition to the symbols of the text."""
    normalization: Normalization = Normalization.none
    """Unicode normalization before tokenization: none, nfc or nfkc. gpt1 has its own."""
    lowercase: bool = False
    """Convert text to lower case before tokenization. gpt1 always does."""
    special_tokens: tuple[str, ...] = ()
    """Additional special tokens, such as <|start|> <|delimiter|> <|classify|>. Plain text is never encoded as one."""
    path: str = ""
    """Existing tokenizer to use: a tokenizer.json, or a folder with encoder.json and vocab.bpe. Empty: train one."""


@dataclass(frozen=True)
class DataConfig:
    """Where the text comes from and how it is split."""

    source: tuple[str, ...] = ()
    """Text sources: corpus names, text files, folders, tables (JSON lines, JSON, CSV, TSV, Parquet), HTML, notebooks,
    PDF, DOCX, EPUB, compressed or not (gzip, bzip2, xz, zstd); `-` for standard input; hf:NAME for a dataset of the
    Hugging Face hub; or a folder made by `data prepare`."""
    text_field: str = ""
    """Field or column that holds the text. Empty: detected automatically."""
    encoding: str = "utf-8"
    """Character encoding of text files."""
    on_bad_text: OnBadText = "stop"
    """Bytes that are not valid text: stop, replace them by U+FFFD, or skip the document. skip also leaves out files of
    a folder that cannot be read as text."""
    on_bad_line: OnBadLine = "stop"
    """Malformed lines and records of tables, and examples without text or label: stop, or skip them."""
    control: tuple[str, ...] = ()
    """Record fields to use as control codes, such as sentiment or domain: their values precede each document, and
    `generate --control` sets them. `length` (short, medium, long) is derived if records have none."""
    control_dropout: float = 0.1
    """Share of documents without control codes, for classifier-free guidance (`generate --guidance`)."""
    clean: Clean = "none"
    """Repair text as for GPT-1 (ftfy): wrongly decoded characters, curled quotes, ligatures, HTML entities."""
    deduplicate: Deduplicate = "none"
    """Remove duplicate documents: exact (except for case and white space) or near (near-duplicates too)."""
    near_threshold: float = 0.45
    """Similarity from which documents are near-duplicates: the Jaccard index of their word n-grams, above 0 to 1."""
    near_words: int = 3
    """Length of the word n-grams that are compared. Longer ones are more sensitive to changed words."""
    split: Split = Split.automatic
    """How validation text is held out. automatic: whole documents if there are at least 50 and enough small ones,
    otherwise the end of each source."""
    validation_fraction: float = 0.1
    """Share of the text to hold out, between 0 and 1: bytes of whole documents, or characters."""
    license: str = ""
    """License of the text, for the data card."""
    card: str = ""
    """SHA-256 of the expected data, from its data card; training records it. A mismatch is a warning."""


@dataclass(frozen=True)
class WindowsConfig:
    """How the training text is cut into windows, and how many tokens a window has."""

    documents: Documents = Documents.joined
    """joined: windows cross the boundaries of documents. separate: in addition, a block-diagonal attention mask and
    restarted positions keep the documents of a window separate."""
    length: int = 0
    """Tokens in a window, or in a row of packed conversations. 0: model.context_length. A shorter window makes a step
    faster and smaller; the model's context stays as it is."""
    stride: int = 0
    """Distance between the starts of consecutive windows, in tokens. 0: their length (no overlap)."""
    truncation: float = 0.0
    """Probability that a window is split at a random position into two separate parts."""
    weights: tuple[float, ...] = ()
    """Relative sampling weight of each source, in the order of data.source. Empty: proportional to their text."""
    min_length: int = 0
    """Sample the length of each step's windows from the full length, its half, its quarter and so on down to this
    value. 0: always the full length."""


def check_data(data: DataConfig) -> None:
    """Raise ``ConfigError``, naming the setting, if the settings of the text are invalid."""
    threshold, fraction = data.near_threshold, data.validation_fraction
    require("data.near_threshold", threshold, 0 < threshold <= 1, "above 0 and at most 1")
    at_least("data.near_words", data.near_words, 1)
    require("data.validation_fraction", fraction, 0 < fraction < 1, "above 0 and below 1")
    names = data.control
    one_line = all(name.strip() and len(name.splitlines()) == 1 for name in names)
    if len(set(names)) < len(names) or not one_line:
        raise ConfigError(
            f"data.control is {list(names)}; expected different names of fields, none empty, each on one line"
        )
    below_one("data.control_dropout", data.control_dropout)
    if data.text_field in names:
        raise ConfigError(f"data.control names '{data.text_field}', which is the text field; leave it out")


def check_tokenizer(tokenizer: TokenizerConfig) -> None:
    """Raise ``ConfigError``, naming the setting, if the settings of the tokenizer are invalid."""
    names, size = tokenizer.special_tokens, tokenizer.vocab_size
    minimum = 257 + len(names)
    expected = f"of 0, or at least {minimum} for the bytes and the special tokens"
    require("tokenizer.vocab_size", size, size == 0 or size >= minimum, expected)
    at_least("tokenizer.merges", tokenizer.merges, 1)
    if len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise ConfigError(f"tokenizer.special_tokens is {list(names)}; expected different names, none empty")


def check_windows(windows: WindowsConfig, context_length: int) -> None:
    """Raise ``ConfigError``, naming the setting, if the settings of the windows of a model are invalid."""
    length = windows.length or context_length
    expected = f"of 0, or from 2 to model.context_length, {context_length:,}"
    require("windows.length", length, length == context_length or 2 <= length <= context_length, expected)
    at_least("windows.stride", windows.stride, 0)
    from_zero_to_one("windows.truncation", windows.truncation)
    weights = windows.weights
    if weights and (min(weights) < 0 or not 0 < sum(weights) < math.inf):
        raise ConfigError(
            f"windows.weights is {weights}; expected numbers of at least 0, of which one is above 0"
        )
    if any(0 < weight < sum(weights) * LEAST_WEIGHT for weight in weights):
        raise ConfigError(
            f"windows.weights is {weights}; expected each to be 0, or at least {LEAST_WEIGHT:g} of the sum"
        )
    at_least("windows.min_length", windows.min_length, 0)
    times, rest = divmod(length, windows.min_length or length)
    if rest or times & (times - 1):
        raise ConfigError(
            f"windows.min_length is {windows.min_length}; expected 0, or the windows' length, {length}, halved "
            "some number of times"
        )
