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
from wholegpt.tokenizers.fast import encode_fast, fast_encoding

END_OF_TEXT = "<|endoftext|>"
START, DELIMITER, CLASSIFY, PADDING = "<|start|>", "<|delimiter|>", "<|classify|>", "<|padding|>"
"""Of the task formats, reserved by ``tokenizer.special_tokens`` or added when a model is adapted."""
MASK = "<|mask|>"
"""Of tokens that are hidden from an encoder."""
PORTION_CHARACTERS = 500_000
"""Characters that a thread encodes at once."""


class Tokenizer:
    """Turns text into token ids and back; stored as a ``tokenizer.json`` that the library opens.

    ``decode(encode(text)) == text`` for every string that UTF-8 can express, under byte-level BPE and
    the byte tokenizer; under the character tokenizer for strings of its characters. Others open here too that change
    text (``keeps_text`` is false): GPT-1's lower-cases it and sets a space between its words, Qwen's composes
    characters (NFC).
    """

    def __init__(self, library: tokenizers.Tokenizer, content: str = "") -> None:
        self._library = library
        # A loaded file is kept as it is, so that another version of the library changes no hash.
        self._content = content or library.to_str(pretty=True)
        self.vocab_size = library.get_vocab_size(with_added_tokens=True)
        self.has_end_of_text = library.token_to_id(END_OF_TEXT) is not None
        # GPT-1's vocabulary marks the entries that end a word.
        self._word_end: str = getattr(library.model, "end_of_word_suffix", None) or ""
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
        by_id = self._library.get_added_tokens_decoder()
        return [token_id for token_id, token in by_id.items() if token.content == unused_name(token_id)]

    @property
    def special_ids(self) -> set[int]:
        """The ids that no text becomes."""
        return set(self._library.get_added_tokens_decoder())

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
        ordinary = text
        if allow_special:
            for token in self._library.get_added_tokens_decoder().values():
                ordinary = ordinary.replace(token.content, "")
        self._check(ordinary)
        self._library.encode_special_tokens = not allow_special
        return self._library.encode(text, add_special_tokens=False).ids

    def known_part(self, text: str) -> str:
        """``text`` without the characters that the vocabulary cannot express."""
        if self._characters is None:
            return text
        return "".join(character for character in text if character in self._characters)

    def encode_all(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """``encode`` of many texts, in their order, on all cores; a few megabytes of them are held at a time."""
        self._library.encode_special_tokens = True
        workers = os.cpu_count() or 1
        waiting: deque[Future[list[np.ndarray]]] = deque()
        with ThreadPoolExecutor(workers) as pool:
            try:
                for portion in _portions(texts):
                    waiting.append(pool.submit(self._encode_portion, portion))
                    if len(waiting) > 2 * workers:
                        yield from waiting.popleft().result()
                while waiting:
                    yield from waiting.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _encode_portion(self, texts: list[str]) -> list[np.ndarray]:
        for text in texts:
            self._check(text)
        ids = [encode_fast(self._fast, text) if self._fast else None for text in texts]
        slow = [text for text, one in zip(texts, ids, strict=True) if one is None]
        encoded = iter(self._library.encode_batch_fast(slow, add_special_tokens=False))
        return [np.array(next(encoded).ids, dtype=np.uint32) if one is None else one for one in ids]

    @cached_property
    def _fast(self) -> tiktoken.Encoding | None:
        return fast_encoding(self._content, self.token_bytes)

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of ``token_ids``; bytes that are not whole UTF-8 characters become U+FFFD."""
        decoder = self.stream()
        return "".join([*map(decoder.push, token_ids), decoder.finish()])

    def stream(self, after: int | None = None) -> "StreamDecoder":
        """``decode`` token by token; ``after`` is the token before them, whose word's end they begin with."""
        return StreamDecoder(self, after)

    def space_after(self, token_id: int) -> bytes:
        """The space that stands after a token where another follows: GPT-1's vocabulary marks the ends of words."""
        return b" " if self._word_end and self.token_bytes[token_id].endswith(b" ") else b""

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes each token stands for; a special token stands for its own name.

        The end of a word is a space, where the vocabulary marks it.
        """
        special = {token.content for token in self._library.get_added_tokens_decoder().values()}
        byte_level = isinstance(self._library.decoder, tokenizers.decoders.ByteLevel)
        to_byte = {character: byte for byte, character in enumerate(byte_level_alphabet())}
        by_id = {token_id: token for token, token_id in self._library.get_vocab().items()}
        return [
            bytes(to_byte[character] for character in by_id[token_id])
            if byte_level and by_id[token_id] not in special
            else self._text_of(by_id[token_id]).encode()
            for token_id in range(self.vocab_size)
        ]

    def _text_of(self, entry: str) -> str:
        ends_word = self._word_end and entry.endswith(self._word_end)
        return entry.removesuffix(self._word_end) + " " if ends_word else entry

    @cached_property
    def text_sizes(self) -> np.ndarray:
        """Text bytes and characters each token adds, shape (V, 2); 0 and 0 for special tokens.

        A character is counted where it starts, at a byte that does not continue another, so that
        sums over the tokens of a text are the text's own sizes.
        """
        special = set(self._library.get_added_tokens_decoder())
        sizes = [
            (0, 0) if i in special else (len(b), sum(byte & 0xC0 != 0x80 for byte in b))
            for i, b in enumerate(self.token_bytes)
        ]
        return np.array(sizes, dtype=np.int64)

    @cached_property
    def _characters(self) -> frozenset[str] | None:
        """The only characters that can be encoded, or None where all can. No special token is one."""
        if isinstance(self._library.model, tokenizers.models.WordLevel):
            added = self._library.get_added_tokens_decoder().values()
            special = {token.content for token in added if token.special}
            entries = self._library.get_vocab(with_added_tokens=False)
            return frozenset(entry for entry in entries if len(entry) == 1) - special
        return None

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
        probe = "A naïve café: 東京 🙂\n  don't 42"
        if self._characters is not None:
            probe = "".join(sorted(self._characters))
        try:
            token_ids = self.encode(probe)
            given_back = self.decode(token_ids)
            if not self.keeps_text:
                probe = self._library.decode(token_ids, skip_special_tokens=False)
        except Exception:  # the library raises nothing more specific
            given_back = ""
        if given_back != probe:
            raise TokenizerError(
                f"{path}: does not give text back unchanged, so no figure per byte would be true; only byte-level "
                "and character tokenizers without normalisation are supported, and GPT-1's"
            )

    def _check(self, text: str) -> None:
        if self._characters is not None and self._library.normalizer is not None:
            text = self._library.normalizer.normalize_str(text)
        if self._characters is not None and not self._characters.issuperset(text):
            place, character = next((i, c) for i, c in enumerate(text) if c not in self._characters)
            raise TokenizerError(
                f"character {character!r} (U+{ord(character):04X}) at position {place} is not among the "
                f"{len(self._characters)} characters this tokenizer was trained on; leave it out, or train "
                "with --tokenizer.kind bpe, which knows every character"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"position {error.start} holds a lone surrogate (U+{ord(text[error.start]):04X}), "
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


def byte_level_alphabet() -> str:
    """The 256 printable characters that stand for the bytes 0–255 in GPT-2's vocabulary, in byte order.

    A byte that is a printable Latin-1 character other than the space stands for itself; the others
    take U+0100 onwards, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))


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
