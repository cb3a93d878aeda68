"""The tokenizer class, over the ``tokenizers`` library, for any vocabulary."""

import codecs
import copy
import hashlib
import itertools
import json
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import tiktoken
import tokenizers
from jaxtyping import Int

from wholegpt.errors import TokenizerError
from wholegpt.files import write_text_atomic
from wholegpt.interrupts import THREAD_NAME, interruptible
from wholegpt.tokenizers.fast import encode_fast, fast_encoding
from wholegpt.tokenizers.form import BYTES, fault, is_byte_level, missing_bytes, word_end
from wholegpt.tokenizers.sentencepiece import (
    SentencePiece,
    SpaceBefore,
    bytes_of,
    sentencepiece_of,
    with_variant,
)

END_OF_TEXT = "<|endoftext|>"
END_OF_SEQUENCE = "</s>"
"""The end of a text in vocabularies of SentencePiece, which have no ``END_OF_TEXT``."""
START, DELIMITER, CLASSIFY, PADDING = "<|start|>", "<|delimiter|>", "<|classify|>", "<|padding|>"
"""Tokens of the task formats, reserved by ``tokenizer.special_tokens`` or added for fine-tuning."""
MASK = "<|mask|>"
"""Replaces masked tokens in the input of an encoder."""
BATCH_CHARACTERS = 500_000
"""Characters that a thread encodes at once."""
LONG_CHARACTERS = 100_000
"""Minimum length of a text whose encoding can be interrupted; a thread for each short text would take longer
than the encoding.
"""


class Tokenizer:
    """Encodes text to token ids and decodes them; stored as a ``tokenizer.json`` that the library opens.

    ``decode(encode(text)) == text`` for every string that UTF-8 can encode, with byte-level BPE and the byte
    tokenizer; with the character tokenizer for strings of its characters. Tokenizers that change text are
    also supported (``keeps_text`` is false): GPT-1's lowercases it and puts a space between its words, Qwen's
    composes characters (NFC), SentencePiece's reads ▁ as a space. They decode to the normalized text; ``form``
    defines which tokenizers are rejected.

    SentencePiece's tokenizers put a space before a text: the tokens of ``encode(text)`` spell " " + text. Decoding
    drops this space, and ``sizes_after`` does not count it. Text that continues another one gets none
    (``encode(text, continues=True)``).

    Any number of threads may encode with one tokenizer at once.
    """

    def __init__(self, library: tokenizers.Tokenizer, content: str = "") -> None:
        self._library = library
        self._library.encode_special_tokens = True  # special tokens in a text are plain text
        # A loaded file is kept unchanged, so that another version of the library changes no hash.
        self._content = content or library.to_str(pretty=True)
        self.vocab_size = library.get_vocab_size(with_added_tokens=True)
        self._added = library.get_added_tokens_decoder()
        # GPT-1's vocabulary marks the entries that end a word.
        self._word_end = word_end(library)
        self.marks_word_ends = bool(self._word_end)
        self.sentencepiece = sentencepiece_of(library)
        """The variant of SentencePiece's form; ``None`` for other forms."""
        self.keeps_text = not self._word_end and library.normalizer is None and self.sentencepiece is None
        self._end_of_text = self._find_end_of_text()
        self.has_end_of_text = self._end_of_text is not None
        self.end_ids = frozenset() if self._end_of_text is None else frozenset({self._end_of_text})
        """The tokens that end a generated text."""

    @property
    def end_of_text_id(self) -> int:
        """Return the token between documents. Raises ``TokenizerError`` if there is none."""
        if self._end_of_text is None:
            raise TokenizerError(
                f"the tokenizer has no {END_OF_TEXT} token, which separates documents and starts a text; "
                "train a tokenizer that has one with `wholegpt tokenizer train`, or give a prompt"
            )
        return self._end_of_text

    def _find_end_of_text(self) -> int | None:
        token_id = self._library.token_to_id(END_OF_TEXT)
        return self._end_of_sequence if token_id is None else token_id

    @property
    def _end_of_sequence(self) -> int | None:
        token_id = self._library.token_to_id(END_OF_SEQUENCE)
        special = token_id in self._added and self._added[token_id].special
        return token_id if self.sentencepiece and special else None

    def id_of(self, token: str) -> int | None:
        """Return the id of an entry by its name; ``None`` if there is no such entry."""
        return self._library.token_to_id(token)

    def with_ends(self, token_ids: Iterable[int]) -> "Tokenizer":
        """Return a copy whose generated texts end at ``token_ids`` instead of end-of-text."""
        changed = copy.copy(self)
        changed.end_ids = frozenset(token_ids)
        return changed

    @cached_property
    def prefix_ids(self) -> list[int]:
        """Return the tokens that other programs put before a prompt, from the post-processor of
        ``tokenizer.json``.
        """
        processor = json.loads(self._content).get("post_processor") or {}
        prefix: list[int] = []
        for one in processor.get("processors", [processor]):
            if one.get("type") in ("BertProcessing", "RobertaProcessing"):
                prefix.append(one["cls"][1])
            for piece in one.get("single", []) if one.get("type") == "TemplateProcessing" else []:
                if "Sequence" in piece:
                    break
                prefix += one["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
        return [token_id for token_id in prefix if token_id < self.vocab_size]

    @cached_property
    def unused_ids(self) -> list[int]:
        """Return the entries added by ``with_unused``: rows of a padded model, which no text is encoded to."""
        return [token_id for token_id, token in self._added.items() if token.content == unused_name(token_id)]

    @property
    def added_ids(self) -> list[int]:
        """Return the ids of all added tokens, special or not, in order."""
        return sorted(self._added)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Return the ids that no text is encoded to: special tokens, unless the model also uses the entry for
        text.
        """
        special = {token_id: token.content for token_id, token in self._added.items() if token.special}
        return frozenset(token_id for token_id, name in special.items() if not self._spells(name, token_id))

    def _spells(self, text: str, token_id: int) -> bool:
        try:
            return self._library.encode(text, add_special_tokens=False).ids == [token_id]
        except Exception:  # the library raises nothing more specific for characters that it does not know
            return False

    def name_of(self, token_id: int) -> str:
        """Return the name of an entry."""
        return self._library.id_to_token(token_id) or ""

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Load a ``tokenizer.json``. Raises ``TokenizerError`` naming the file if it is not one."""
        try:
            content = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerError(f"{path}: cannot be read as a tokenizer: {error}") from None
        try:
            library = tokenizers.Tokenizer.from_str(content)
        except Exception as error:  # the library raises nothing more specific
            raise TokenizerError(f"{path}: not a tokenizer.json: {error}") from None
        if library.truncation or library.padding:
            library.no_truncation()
            library.no_padding()
            content = ""
        tokenizer = cls(library, content)
        tokenizer.check_lossless(path)
        return tokenizer

    def to_json(self) -> str:
        """Return the content of ``tokenizer.json``."""
        return self._content

    def save(self, path: str | Path) -> None:
        """Write ``tokenizer.json``."""
        write_text_atomic(Path(path), self.to_json())

    @cached_property
    def sha256(self) -> str:
        """Return the SHA-256 of the vocabulary and its settings: equal hashes give equal ids."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def encode(self, text: str, allow_special: bool = False, continues: bool = False) -> list[int]:
        """Return the ids of ``text``. Special tokens in it are plain text unless ``allow_special``.

        A text that ``continues`` another one gets no space before it from a tokenizer of SentencePiece's form; for
        other tokenizers this makes no difference. Raises ``TokenizerError`` naming the first character that the
        vocabulary cannot encode.
        """
        _check_characters(text)
        library = self._parsing_special if allow_special else self._library

        def ids() -> list[int]:
            if continues and self._puts_space:
                return self._ids_of_continued(library, text)
            return self._ids_of(library, [text])[0]

        return ids() if len(text) < LONG_CHARACTERS else interruptible(ids)

    def continues_after(self, token_ids: Sequence[int]) -> bool:
        """Return whether a text after ``token_ids`` continues it, or gets a space before it.

        This is the rule of the ``tokenizers`` library for a text with special tokens: a SentencePiece tokenizer puts a
        space before the first part of the text, or before each part that such tokens separate.
        """
        always = self.sentencepiece is not None and self.sentencepiece.space is SpaceBefore.always
        return bool(token_ids) and not (always and token_ids[-1] in self._added)

    def encode_all(
        self, texts: Iterable[str], begins: Iterable[bool] = itertools.repeat(True)
    ) -> Iterator[np.ndarray]:
        """Encode many texts, in order, on all cores; a few megabytes of them are in memory at a time.

        ``begins`` says for each text whether a document begins with it; otherwise it continues the text before it.
        """
        workers = os.cpu_count() or 1
        waiting: deque[Future[list[np.ndarray]]] = deque()
        pool = ThreadPoolExecutor(workers, thread_name_prefix=THREAD_NAME)
        try:
            for portion in _portions(zip(texts, begins, strict=False)):
                waiting.append(pool.submit(self._encode_portion, portion))
                if len(waiting) > 2 * workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _encode_portion(self, portion: list[tuple[str, bool]]) -> list[np.ndarray]:
        for text, _ in portion:
            _check_characters(text)

        def encoded_alone(text: str, begins: bool) -> np.ndarray | None:
            if self._puts_space and not begins:
                return np.array(self._ids_of_continued(self._library, text), dtype=np.uint32)
            return encode_fast(self._fast, text) if self._fast else None

        ids = [encoded_alone(text, begins) for text, begins in portion]
        slow = [text for (text, _), one in zip(portion, ids, strict=True) if one is None]
        encoded = iter(self._ids_of(self._library, slow))
        return [np.array(next(encoded), dtype=np.uint32) if one is None else one for one in ids]

    @property
    def _puts_space(self) -> bool:
        return self.sentencepiece is not None and self.sentencepiece.space is not SpaceBefore.none

    def _ids_of_continued(self, library: tokenizers.Tokenizer, text: str) -> list[int]:
        """Return the ids of a text without a space before it; the rest from its first added token on is as usual."""
        names = [
            re.escape(token.content)
            for token in self._added.values()
            if not (token.special and library.encode_special_tokens)
        ]
        found = re.search("|".join(names), text) if names else None
        head, rest = (text, "") if found is None else (text[: found.start()], text[found.start() :])
        return [
            *self._ids_of(self._without_space, [head])[0],
            *(self._ids_of(library, [rest])[0] if rest else []),
        ]

    @cached_property
    def _without_space(self) -> tokenizers.Tokenizer:
        """Return the same tokenizer, except that it puts no space before a text."""
        assert self.sentencepiece
        variant = SentencePiece(SpaceBefore.none, self.sentencepiece.metaspace)
        library = tokenizers.Tokenizer.from_str(with_variant(self._library.to_str(), variant))
        library.encode_special_tokens = True
        return library

    def _ids_of(self, library: tokenizers.Tokenizer, texts: list[str]) -> list[list[int]]:
        """Return the library's ids of each text, of any length; this is the one long call into the library."""
        if self._missing_bytes:
            for text in map(self._normalized, texts):
                self._check_bytes(library, text)
        try:
            ids = [one.ids for one in library.encode_batch_fast(texts, add_special_tokens=False)]
        except Exception as error:  # the library raises nothing more specific
            raise self._cannot_express(library, texts, str(error)) from None
        if self._characters is not None and not self._word_end:
            for text, token_ids in zip(texts, ids, strict=True):
                if not self._spelled_by(token_ids, text):
                    raise self._cannot_express(library, [text], "its tokens give another text")
        return ids

    @cached_property
    def _parsing_special(self) -> tokenizers.Tokenizer:
        """Return the same tokenizer, except that it parses special tokens in a text."""
        library = tokenizers.Tokenizer.from_str(self._library.to_str())
        library.encode_special_tokens = False
        return library

    @cached_property
    def _fast(self) -> tiktoken.Encoding | None:
        return fast_encoding(self._library.to_str(), self.token_bytes)

    def decode(self, token_ids: Iterable[int], after: int | None = None) -> str:
        """Return the text of ``token_ids``, which follow the token ``after``; incomplete or invalid UTF-8 becomes
        U+FFFD.
        """
        return "".join(self.texts_of(token_ids, after))

    def texts_of(self, token_ids: Iterable[int], after: int | None = None) -> list[str]:
        """Return the text that each token adds after the token ``after``; joined they are the whole text.

        A character of several tokens belongs to the one that completes it; an incomplete one, as U+FFFD, to
        the last.
        """
        decoder = self.stream(after)
        texts = [decoder.push(token_id) for token_id in token_ids]
        if texts:
            texts[-1] += decoder.finish()
        return texts

    def stream(self, after: int | None = None) -> "StreamDecoder":
        """Return a decoder for one token at a time; ``after`` is the token before them: a text may begin after it, or
        it may end a word.
        """
        return StreamDecoder(self, after)

    def begins_after(self, token_id: int | None) -> bool:
        """Return whether a text whose first space was put there by the tokenizer may follow a token; ``None`` means the
        beginning of the text.
        """
        return self._puts_space and (token_id is None or token_id in self._before_texts)

    @cached_property
    def _before_texts(self) -> frozenset[int]:
        """Return the tokens after which a text begins."""
        if not self._puts_space:
            return frozenset()
        if self.sentencepiece and self.sentencepiece.space is SpaceBefore.always:
            return frozenset(self._added)
        ends = (self._end_of_text, self._end_of_sequence)
        return frozenset({*self.prefix_ids, *(one for one in ends if one is not None)})

    def space_after(self, token_id: int) -> bytes:
        """Return the space between a token and the next one: GPT-1's vocabulary marks the ends of words."""
        return b" " if self._word_end and self.token_bytes[token_id].endswith(b" ") else b""

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """Return the bytes of each token; an added token has those of its name.

        The end of a word is a space if the vocabulary marks it.
        """
        byte_level = is_byte_level(self._library)
        by_id = {token_id: token for token, token_id in self._library.get_vocab().items()}

        def spelled(token_id: int) -> bytes:
            entry = by_id[token_id]
            if token_id in self._added:
                return entry.encode()
            if byte_level:
                return bytes(BYTES[character] for character in entry)
            if self.sentencepiece:
                return bytes_of(entry)
            if self._word_end and entry.endswith(self._word_end):
                return entry.removesuffix(self._word_end).encode() + b" "
            return entry.encode()

        return [spelled(token_id) for token_id in range(self.vocab_size)]

    @cached_property
    def text_sizes(self) -> np.ndarray:
        """Return the bytes and characters that each token adds, shape (V, 2); 0 and 0 for ``special_ids``.

        A character counts at its first byte, so that sums over the tokens of a text are the sizes of the
        text.
        """
        sizes = [
            (0, 0) if i in self.special_ids else (len(b), sum(byte & 0xC0 != 0x80 for byte in b))
            for i, b in enumerate(self.token_bytes)
        ]
        return np.array(sizes, dtype=np.int64)

    def sizes_after(self, token_ids: Int[np.ndarray, " T"]) -> Int[np.ndarray, "T-1 2"]:
        """Return the bytes and characters that each token after the first one adds, without the space that the
        tokenizer puts before a text.
        """
        sizes = self.text_sizes[token_ids[1:]]
        if self._puts_space:
            begins = np.isin(token_ids[:-1], list(self._before_texts)) & self._begin_with_space[token_ids[1:]]
            sizes -= begins[:, None]
        return sizes

    @cached_property
    def _begin_with_space(self) -> np.ndarray:
        """Return whether the text of each token begins with a space, shape (V,)."""
        spaced = [content.startswith(b" ") for content in self.token_bytes]
        return np.array(spaced) & (self.text_sizes[:, 0] > 0)

    def sizes_of_counts(self, counts: Int[np.ndarray, " V"]) -> Int[np.ndarray, "2"]:
        """Return the bytes and characters of texts in which each token occurs as often as ``counts`` says, without
        the spaces that the tokenizer puts before texts.
        """
        spaces = (
            1 + sum(int(counts[i]) for i in self._before_texts if i < len(counts)) if self._puts_space else 0
        )
        return np.maximum(counts @ self.text_sizes[: len(counts)] - spaces, 0)

    def tokens_within(self, token_ids: Sequence[int], prefix: str) -> int:
        """Return how many of the first ``token_ids`` contain nothing beyond ``prefix``, with which their text
        starts.
        """
        ends = self.text_sizes[list(token_ids), 0].cumsum()
        prefix_bytes = self.text_sizes[self.encode(prefix), 0].sum()
        return int(np.searchsorted(ends, prefix_bytes, side="right"))

    @cached_property
    def _characters(self) -> frozenset[str] | None:
        """Return the only characters that can be encoded; ``None`` if all can, or if there is an unknown
        entry.
        """
        if is_byte_level(self._library) or self._word_end or self.sentencepiece:
            return None
        entries = self._library.get_vocab(with_added_tokens=False)
        added = {token.content for token in self._added.values() if token.special}
        return frozenset(entry for entry in entries if len(entry) == 1 and entry not in added)

    @cached_property
    def _missing_bytes(self) -> bytes:
        return missing_bytes(self._library)

    def _check_bytes(self, library: tokenizers.Tokenizer, text: str) -> None:
        """Raise ``TokenizerError`` naming the first character of which the vocabulary lacks a byte."""
        encoded = text.encode()
        if len(encoded.translate(None, self._missing_bytes)) == len(encoded):
            return
        text = self._without_added(library, text)
        if self.known_part(text) == text:
            return
        position = next(i for i, character in enumerate(text) if not self.known_part(character))
        raise TokenizerError(
            f"character {text[position]!r} (U+{ord(text[position]):04X}) at position {position} has no token: this "
            f"vocabulary lacks {len(self._missing_bytes)} of the 256 bytes; leave it out"
        )

    def known_part(self, text: str) -> str:
        """Return ``text`` without the characters that the vocabulary cannot encode."""
        if self._missing_bytes:
            missing = {*self._missing_bytes}
            return "".join(character for character in text if missing.isdisjoint(character.encode()))
        if self._characters is None:
            return text
        return "".join(character for character in text if character in self._characters)

    def with_unused(self, vocab_size: int) -> "Tokenizer":
        """Return the tokenizer with unused entries up to ``vocab_size``, for models padded to a round size."""
        return self.with_special_tokens([unused_name(i) for i in range(self.vocab_size, vocab_size)])

    def with_special_tokens(self, names: Sequence[str]) -> "Tokenizer":
        """Return the tokenizer with further special entries at its end.

        Raises ``TokenizerError`` for a name that already exists.
        """
        known = [name for name in names if self.id_of(name) is not None]
        if known:
            raise TokenizerError(f"{known[0]!r} is already in the vocabulary; name another special token")
        library = tokenizers.Tokenizer.from_str(self._content)
        library.add_special_tokens(list(names))
        return Tokenizer(library)

    def check_lossless(self, path: str | Path) -> None:
        """Raise ``TokenizerError`` for a tokenizer that is lossy or decodes unlike this class."""
        reason = fault(self._library)
        if not reason and not self._is_lossless(self._probe()):
            reason = "is not lossless, so no metric per byte would be correct"
        if reason:
            raise TokenizerError(
                f"{path}: {reason}; only lossless byte-level and character tokenizers are supported, "
                "GPT-1's, and SentencePiece's BPE with byte fallback"
            )

    def _probe(self) -> str:
        if self._characters is None:
            return self.known_part("A naïve café: 東京 🙂\n  don't 42")
        # Each character twice, to detect merging of repeated characters.
        return "".join(2 * character for character in sorted(self._characters))

    def _is_lossless(self, probe: str) -> bool:
        try:
            token_ids = self.encode(probe)
            given_back = self.decode(token_ids)
        except TokenizerError:
            return False
        if self.keeps_text:
            return given_back == probe
        expected = given_back if self._word_end else self._normalized(probe)
        return given_back == expected == self._library.decode(token_ids, skip_special_tokens=False)

    def _normalized(self, text: str) -> str:
        if self.sentencepiece:
            return self.sentencepiece.normalized(text)
        normalizer = self._library.normalizer
        return text if normalizer is None else normalizer.normalize_str(text)

    def _spelled_by(self, token_ids: list[int], text: str) -> bool:
        """Return whether the tokens spell ``text``: nothing was dropped or replaced by an unknown token."""
        spelled = b"".join([self.token_bytes[token_id] for token_id in token_ids])
        if self._library.normalizer is None:
            return spelled == text.encode()
        # The text of an added token may not be normalized.
        return self._normalized(spelled.decode(errors="replace")) == self._normalized(text)

    def _without_added(self, library: tokenizers.Tokenizer, text: str) -> str:
        """Return ``text`` with a known character for each one of an added token that ``library`` finds in it."""
        known = next((character for character in text if self.known_part(character)), "")
        for token in self._added.values():
            if not (token.special and library.encode_special_tokens):
                text = text.replace(token.content, known * len(token.content))
        return text

    def _cannot_express(
        self, library: tokenizers.Tokenizer, texts: Sequence[str], reason: str
    ) -> TokenizerError:
        """Return the error naming the first character missing in the vocabulary, or else giving the
        ``reason``.
        """
        known = self._characters or frozenset()
        for text in map(self._normalized, texts):
            text = self._without_added(library, text)
            for position, character in enumerate(text):
                if known and character not in known:
                    return TokenizerError(
                        f"character {character!r} (U+{ord(character):04X}) at position {position} is not among the "
                        f"{len(known)} characters that this tokenizer was trained on; leave it out, or train "
                        "with --tokenizer.kind bpe, which encodes every character"
                    )
        return TokenizerError(f"the tokenizer cannot encode this text: {reason}")


def _check_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"position {error.start} contains a lone surrogate (U+{ord(text[error.start]):04X}), "
            "which is not a character"
        ) from None


def _portions(texts: Iterable[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    """Yield consecutive texts, and whether each begins a document, with at least ``BATCH_CHARACTERS`` characters."""
    portion: list[tuple[str, bool]] = []
    characters = 0
    for text, begins in texts:
        portion.append((text, begins))
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield portion
            portion, characters = [], 0
    if portion:
        yield portion


def unused_name(token_id: int) -> str:
    """Return the name of an unused entry."""
    return f"<|unused_{token_id}|>"


class StreamDecoder:
    """Decodes tokens to text without incomplete characters; invalid bytes become U+FFFD."""

    def __init__(self, tokenizer: Tokenizer, after: int | None = None) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._space = b"" if after is None else tokenizer.space_after(after)
        self._begins = tokenizer.begins_after(after)

    def push(self, token_id: int) -> str:
        """Return the text completed by this token; the space at the end of a word is returned with the next
        one.
        """
        piece = self._space + self._tokenizer.token_bytes[token_id]
        if self._begins:
            piece = piece.removeprefix(b" ")
        self._space, self._begins = (
            self._tokenizer.space_after(token_id),
            self._tokenizer.begins_after(token_id),
        )
        return self._decoder.decode(piece.removesuffix(self._space))

    def finish(self) -> str:
        """Return the rest."""
        return self._decoder.decode(b"", final=True)
