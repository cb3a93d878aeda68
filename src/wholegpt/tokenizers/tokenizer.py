"""One tokenizer class over the ``tokenizers`` library, whatever the vocabulary."""

import codecs
import copy
import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import tiktoken
import tokenizers

from wholegpt.errors import TokenizerError
from wholegpt.files import write_text_atomic
from wholegpt.interrupts import THREAD_NAME, interruptible
from wholegpt.tokenizers.fast import encode_fast, fast_encoding
from wholegpt.tokenizers.form import BYTES, fault, is_byte_level, word_end

END_OF_TEXT = "<|endoftext|>"
START, DELIMITER, CLASSIFY, PADDING = "<|start|>", "<|delimiter|>", "<|classify|>", "<|padding|>"
"""Of the task formats, reserved by ``tokenizer.special_tokens`` or added when a model is adapted."""
MASK = "<|mask|>"
"""Of tokens that are hidden from an encoder."""
PORTION_CHARACTERS = 500_000
"""Characters that a thread encodes at once."""
LONG_CHARACTERS = 100_000
"""Of a text whose encoding can be interrupted; a thread for each short one would take longer than the text."""


class Tokenizer:
    """Turns text into token ids and back; stored as a ``tokenizer.json`` that the library opens.

    ``decode(encode(text)) == text`` for every string that UTF-8 can express, under byte-level BPE and
    the byte tokenizer; under the character tokenizer for strings of its characters. Others open here too that change
    text (``keeps_text`` is false): GPT-1's lower-cases it and sets a space between its words, Qwen's composes
    characters (NFC). What they give back is the text as their normalizer leaves it; ``form`` says what is refused.

    Any number of threads may encode with one tokenizer at once.
    """

    def __init__(self, library: tokenizers.Tokenizer, content: str = "") -> None:
        self._library = library
        self._library.encode_special_tokens = True  # those written in a text are plain text
        # A loaded file is kept as it is, so that another version of the library changes no hash.
        self._content = content or library.to_str(pretty=True)
        self.vocab_size = library.get_vocab_size(with_added_tokens=True)
        self.has_end_of_text = library.token_to_id(END_OF_TEXT) is not None
        self._added = library.get_added_tokens_decoder()
        # GPT-1's vocabulary marks the entries that end a word.
        self._word_end = word_end(library)
        self.marks_word_ends = bool(self._word_end)
        self.keeps_text = not self._word_end and library.normalizer is None
        end = library.token_to_id(END_OF_TEXT)
        self.end_ids = frozenset() if end is None else frozenset({end})
        """The tokens that end a generated text."""

    @property
    def end_of_text_id(self) -> int:
        """The token between documents. Raises ``TokenizerError`` where there is none."""
        token_id = self._library.token_to_id(END_OF_TEXT)
        if token_id is None:
            raise TokenizerError(
                f"the tokenizer has no {END_OF_TEXT} token, which separates documents and begins a text; "
                "train one that has with `wholegpt tokenizer train`, or begin with a text of your own"
            )
        return token_id

    def id_of(self, token: str) -> int | None:
        """The id of an entry by its name; none where there is no such entry."""
        return self._library.token_to_id(token)

    def with_ends(self, token_ids: Iterable[int]) -> "Tokenizer":
        """The tokenizer of a model whose generated texts end at ``token_ids``, in place of end-of-text."""
        changed = copy.copy(self)
        changed.end_ids = frozenset(token_ids)
        return changed

    @cached_property
    def prefix_ids(self) -> list[int]:
        """The tokens that other programs put before a prompt, from the post-processor of ``tokenizer.json``."""
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
        """The entries that ``with_unused`` added: rows of a padded model, which no text has."""
        return [token_id for token_id, token in self._added.items() if token.content == unused_name(token_id)]

    @property
    def added_ids(self) -> list[int]:
        """The ids of all added tokens, special or not, in order."""
        return sorted(self._added)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids that no text becomes: those of special tokens, unless the model also uses the entry for text."""
        special = {token_id: token.content for token_id, token in self._added.items() if token.special}
        return frozenset(token_id for token_id, name in special.items() if not self._spells(name, token_id))

    def _spells(self, text: str, token_id: int) -> bool:
        try:
            return self._library.encode(text, add_special_tokens=False).ids == [token_id]
        except Exception:  # the library raises nothing more specific for characters that it does not know
            return False

    def name_of(self, token_id: int) -> str:
        """The name of an entry."""
        return self._library.id_to_token(token_id) or ""

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a ``tokenizer.json``. Raises ``TokenizerError`` naming the file when it is not one."""
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
        tokenizer._check_round_trip(path)
        return tokenizer

    def to_json(self) -> str:
        """The content of ``tokenizer.json``."""
        return self._content

    def save(self, path: str | Path) -> None:
        """Write ``tokenizer.json``."""
        write_text_atomic(Path(path), self.to_json())

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the vocabulary and its settings: equal hashes give equal ids."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """The ids of ``text``. Special tokens written in it are plain text unless ``allow_special``.

        Raises ``TokenizerError`` naming the first character the vocabulary cannot express.
        """
        _check_characters(text)
        library = self._reading_special if allow_special else self._library
        if len(text) < LONG_CHARACTERS:
            return self._ids_of(library, [text])[0]
        return interruptible(lambda: self._ids_of(library, [text])[0])

    def encode_all(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """``encode`` of many texts, in their order, on all cores; a few megabytes of them are held at a time."""
        workers = os.cpu_count() or 1
        waiting: deque[Future[list[np.ndarray]]] = deque()
        pool = ThreadPoolExecutor(workers, thread_name_prefix=THREAD_NAME)
        try:
            for portion in _portions(texts):
                waiting.append(pool.submit(self._encode_portion, portion))
                if len(waiting) > 2 * workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _encode_portion(self, texts: list[str]) -> list[np.ndarray]:
        for text in texts:
            _check_characters(text)
        ids = [encode_fast(self._fast, text) if self._fast else None for text in texts]
        slow = [text for text, one in zip(texts, ids, strict=True) if one is None]
        encoded = iter(self._ids_of(self._library, slow))
        return [np.array(next(encoded), dtype=np.uint32) if one is None else one for one in ids]

    def _ids_of(self, library: tokenizers.Tokenizer, texts: list[str]) -> list[list[int]]:
        """The ids that ``library`` gives each text, whose length is not bounded: the one long call into it."""
        try:
            ids = [one.ids for one in library.encode_batch_fast(texts, add_special_tokens=False)]
        except Exception as error:  # the library raises nothing more specific
            raise self._cannot_express(library, texts, str(error)) from None
        if self._characters is not None and not self._word_end:
            for text, token_ids in zip(texts, ids, strict=True):
                if not self._spelled_by(token_ids, text):
                    raise self._cannot_express(library, [text], "the tokens spell another text")
        return ids

    @cached_property
    def _reading_special(self) -> tokenizers.Tokenizer:
        """The same tokenizer, to which special tokens written in a text are those tokens."""
        library = tokenizers.Tokenizer.from_str(self._library.to_str())
        library.encode_special_tokens = False
        return library

    @cached_property
    def _fast(self) -> tiktoken.Encoding | None:
        return fast_encoding(self._library.to_str(), self.token_bytes)

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of ``token_ids``; bytes that are not whole UTF-8 characters become U+FFFD."""
        return "".join(self.texts_of(token_ids))

    def texts_of(self, token_ids: Iterable[int]) -> list[str]:
        """What each token adds to the text, which is all of them joined.

        A character of several tokens comes with the one that completes it; what is left incomplete, as U+FFFD, with
        the last.
        """
        decoder = self.stream()
        texts = [decoder.push(token_id) for token_id in token_ids]
        if texts:
            texts[-1] += decoder.finish()
        return texts

    def stream(self, after: int | None = None) -> "StreamDecoder":
        """``decode`` token by token; ``after`` is the token before them, whose word's end they begin with."""
        return StreamDecoder(self, after)

    def space_after(self, token_id: int) -> bytes:
        """The space that stands after a token where another follows: GPT-1's vocabulary marks the ends of words."""
        return b" " if self._word_end and self.token_bytes[token_id].endswith(b" ") else b""

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes each token stands for; an added token stands for its own name.

        The end of a word is a space, where the vocabulary marks it.
        """
        byte_level = is_byte_level(self._library)
        by_id = {token_id: token for token, token_id in self._library.get_vocab().items()}
        return [
            bytes(BYTES[character] for character in by_id[token_id])
            if byte_level and token_id not in self._added
            else self._text_of(token_id, by_id[token_id]).encode()
            for token_id in range(self.vocab_size)
        ]

    def _text_of(self, token_id: int, entry: str) -> str:
        ends_word = self._word_end and entry.endswith(self._word_end) and token_id not in self._added
        return entry.removesuffix(self._word_end) + " " if ends_word else entry

    @cached_property
    def text_sizes(self) -> np.ndarray:
        """Text bytes and characters each token adds, shape (V, 2); 0 and 0 for ``special_ids``.

        A character is counted where it starts, at a byte that does not continue another, so that
        sums over the tokens of a text are the text's own sizes.
        """
        sizes = [
            (0, 0) if i in self.special_ids else (len(b), sum(byte & 0xC0 != 0x80 for byte in b))
            for i, b in enumerate(self.token_bytes)
        ]
        return np.array(sizes, dtype=np.int64)

    def tokens_within(self, token_ids: Sequence[int], beginning: str) -> int:
        """How many of the first ``token_ids`` spell nothing beyond ``beginning``, which their text begins with."""
        ends = self.text_sizes[list(token_ids), 0].cumsum()
        beginning_bytes = self.text_sizes[self.encode(beginning), 0].sum()
        return int(np.searchsorted(ends, beginning_bytes, side="right"))

    @cached_property
    def _characters(self) -> frozenset[str] | None:
        """The only characters that can be encoded, or None where all can, or those unknown have an entry."""
        if is_byte_level(self._library) or self._word_end:
            return None
        entries = self._library.get_vocab(with_added_tokens=False)
        added = {token.content for token in self._added.values() if token.special}
        return frozenset(entry for entry in entries if len(entry) == 1 and entry not in added)

    def known_part(self, text: str) -> str:
        """``text`` without the characters that the vocabulary cannot express."""
        if self._characters is None:
            return text
        return "".join(character for character in text if character in self._characters)

    def with_unused(self, vocab_size: int) -> "Tokenizer":
        """The tokenizer with entries that no text has, up to ``vocab_size``: for models padded to a round size."""
        return self.with_special_tokens([unused_name(i) for i in range(self.vocab_size, vocab_size)])

    def with_special_tokens(self, names: Sequence[str]) -> "Tokenizer":
        """The tokenizer with further entries at its end, which no text becomes unless ``encode`` is told so.

        Raises ``TokenizerError`` for a name that is an entry already.
        """
        known = [name for name in names if self.id_of(name) is not None]
        if known:
            raise TokenizerError(
                f"{known[0]!r} is an entry of the vocabulary already; name another special token"
            )
        library = tokenizers.Tokenizer.from_str(self._content)
        library.add_special_tokens(list(names))
        return Tokenizer(library)

    def _check_round_trip(self, path: str | Path) -> None:
        """Raise ``TokenizerError`` for a foreign tokenizer that changes text, or decodes unlike this class."""
        reason = fault(self._library)
        if not reason and not self._gives_back(self._probe()):
            reason = "does not give text back unchanged, so no figure per byte would be true"
        if reason:
            raise TokenizerError(
                f"{path}: {reason}; only byte-level and character tokenizers that keep all of a text are supported, "
                "and GPT-1's"
            )

    def _probe(self) -> str:
        if self._characters is None:
            return "A naïve café: 東京 🙂\n  don't 42"
        # Each character twice, so that one is told from a run of it.
        return "".join(2 * character for character in sorted(self._characters))

    def _gives_back(self, probe: str) -> bool:
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
        normalizer = self._library.normalizer
        return text if normalizer is None else normalizer.normalize_str(text)

    def _spelled_by(self, token_ids: list[int], text: str) -> bool:
        """Whether the tokens spell ``text``: none of it was dropped, or replaced by an unknown token."""
        spelled = b"".join([self.token_bytes[token_id] for token_id in token_ids])
        if self._library.normalizer is None:
            return spelled == text.encode()
        # The text of an added token may not be normalized.
        return self._normalized(spelled.decode(errors="replace")) == self._normalized(text)

    def _cannot_express(
        self, library: tokenizers.Tokenizer, texts: Sequence[str], reason: str
    ) -> TokenizerError:
        """The error that names the first character that the vocabulary lacks, or else gives the ``reason``."""
        known = self._characters or frozenset()
        for text in map(self._normalized, texts):
            for token in self._added.values():
                if not (token.special and library.encode_special_tokens):
                    text = text.replace(token.content, next(iter(known), "") * len(token.content))
            for place, character in enumerate(text):
                if known and character not in known:
                    return TokenizerError(
                        f"character {character!r} (U+{ord(character):04X}) at position {place} is not among the "
                        f"{len(known)} characters this tokenizer was trained on; leave it out, or train "
                        "with --tokenizer.kind bpe, which knows every character"
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


def _portions(texts: Iterable[str]) -> Iterator[list[str]]:
    """Neighbouring texts, at least ``PORTION_CHARACTERS`` of them at a time."""
    portion: list[str] = []
    characters = 0
    for text in texts:
        portion.append(text)
        characters += len(text)
        if characters >= PORTION_CHARACTERS:
            yield portion
            portion, characters = [], 0
    if portion:
        yield portion


def unused_name(token_id: int) -> str:
    """The name of an entry that no text has."""
    return f"<|unused_{token_id}|>"


class StreamDecoder:
    """Tokens to text, never half a character; U+FFFD stands where bytes are broken."""

    def __init__(self, tokenizer: Tokenizer, after: int | None = None) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = b"" if after is None else tokenizer.space_after(after)

    def push(self, token_id: int) -> str:
        """The text that is complete with this token; the space at the end of a word comes with the next one."""
        piece = self._held + self._tokenizer.token_bytes[token_id]
        self._held = self._tokenizer.space_after(token_id)
        return self._decoder.decode(piece.removesuffix(self._held))

    def finish(self) -> str:
        """What is left over."""
        return self._decoder.decode(b"", final=True)
