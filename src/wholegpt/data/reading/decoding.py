"""Decode files to text, and split text into documents; long documents come in pieces."""

import codecs
import hashlib
import io
import math
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from wholegpt.console import Console
from wholegpt.data.control_codes import Attributes
from wholegpt.data.reading.file_types import SNIFFED_BYTES, UndecodableError, check_encoding, is_binary
from wholegpt.errors import DataError, counted
from wholegpt.settings.schema import DataConfig

BLOCK_BYTES = 2**20
PIECE_CHARACTERS = 2**21
"""Minimum length of a piece of a longer text."""
LONGEST_RECORD = 2**26
"""Maximum characters of a line or record, and of text without a position to cut it."""
CUT_CHARACTERS = 2**16
"""How far before the end of a piece a good position for the cut is searched."""
AFTER_WORD, AFTER_ANYTHING = re.compile(r"(?<=[^\W_])[ \n]"), re.compile(r"(?<=\S)[ \n]")
BAD_BYTE = "\udc80"
NAMED = 10
"""How many skipped items a report names for each reason."""


class Piece(NamedTuple):
    """A document, or a part of a long one."""

    text: str
    begins: bool = True
    """Whether a document starts here; otherwise it continues the previous piece."""
    source: int = 0
    """Index of the corpus's source that it comes from."""
    attributes: Attributes = ()
    """The fields of the record that ``data.control`` names."""


@dataclass
class ReadingReport:
    """Counts of what was read and what was skipped."""

    files: int = 0
    bytes: int = 0
    """Size on disk."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Reason -> number of files, folders, lines or documents."""
    named: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> the first skipped files or lines."""
    notes: dict[str, None] = field(default_factory=dict)
    """Further notes, in order."""
    as_utf_8: int = 0
    """Files of folders that were read as UTF-8, although another encoding was asked for."""
    fields: dict[str, int] = field(default_factory=dict)
    """Field that a text was taken from, if it was detected -> number of files."""
    other_fields: dict[str, None] = field(default_factory=dict)
    """Fields of records that lack a field for control, in order."""
    hashes: list[Any] = field(default_factory=list)
    """SHA-256 of each file read, in order."""

    def skip(self, reason: str, count: int = 1, what: str = "") -> None:
        """Count something as skipped; ``what`` names it, and the first few names are kept."""
        self.skipped[reason] = self.skipped.get(reason, 0) + count
        if what and len(self.named.setdefault(reason, [])) < NAMED:
            self.named[reason].append(what)

    def note(self, message: str) -> None:
        """Add a note; equal notes are shown once."""
        self.notes[message] = None

    def add(self, other: "ReadingReport") -> None:
        """Add the counts of another report."""
        self.files += other.files
        self.bytes += other.bytes
        self.as_utf_8 += other.as_utf_8
        self.hashes += other.hashes
        for reason, count in other.skipped.items():
            self.skip(reason, count)
        for reason, names in other.named.items():
            self.named[reason] = [*self.named.get(reason, []), *names][:NAMED]
        self.notes.update(other.notes)
        self.other_fields.update(other.other_fields)
        for name, count in other.fields.items():
            self.fields[name] = self.fields.get(name, 0) + count

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of a single file, or of the SHA-256s of all files, in order."""
        return (
            self.hashes[0].hex()
            if len(self.hashes) == 1
            else hashlib.sha256(b"".join(self.hashes)).hexdigest()
        )

    def skipped_text(self) -> str:
        """Return how much was skipped, and why."""
        return ", ".join(counted(count, reason) for reason, count in sorted(self.skipped.items()))

    def lines(self) -> list[str]:
        """Return the report, and the first skipped items for each reason, as lines of text."""
        first = [
            f"skipped {reason}: {'; '.join(names)}" + (", …" if self.skipped[reason] > len(names) else "")
            for reason, names in sorted(self.named.items())
        ]
        return [str(self), *first]

    def show(self, console: Console, source: str = "") -> None:
        """Show ``lines`` as notes, each prefixed with ``source``; nothing if they only count files."""
        if self.skipped or self.fields or self.notes or self.as_utf_8:
            for line in self.lines():
                console.note(f"{source}: {line}" if source else line)

    def __str__(self) -> str:
        found = ", ".join(f"'{name}'" for name in sorted(self.fields))
        return (
            counted(self.files, "files")
            + (f"; {counted(self.as_utf_8, 'files')} read as utf-8" if self.as_utf_8 else "")
            + (f"; text taken from {found}" if found else "")
            + "".join(f"; {note}" for note in self.notes)
            + (f"; skipped {self.skipped_text()}" if self.skipped else "")
        )


@dataclass
class Source:
    """A file that is being read."""

    where: str
    """The name of the file in errors."""
    stream: io.BufferedIOBase
    config: DataConfig
    report: ReadingReport
    format: str = ""
    """The suffix of the format; empty for plain text."""
    most_bytes: float = math.inf
    """Maximum decompressed size; more is an error."""


def decoded(source: Source) -> Iterator[str]:
    """Yield the text of a file in blocks, without a byte-order mark.

    Raises ``DataError`` with the offset of an undecodable byte. Bytes that ``on_bad_text`` skips become lone
    surrogates, which valid text never contains.
    """
    encoding = source.config.encoding
    check_encoding(encoding)
    decoder = codecs.getincrementaldecoder(encoding)(_errors(source))
    position, ended, began = 0, False, False
    while not ended:
        block = source.stream.read(BLOCK_BYTES)
        ended = not block
        held = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=ended)
        except UnicodeDecodeError as error:
            at = position - held + error.start
            raise UndecodableError(
                f"{source.where}: byte {at} (0x{error.object[error.start]:02x}) is not {encoding}"
                + (
                    ", and the file looks like a binary one; if it is text,"
                    if is_binary(block[:SNIFFED_BYTES], encoding)
                    else "; name the file's encoding, for example --encoding latin-1, or"
                )
                + " continue with --on-bad-text replace or skip"
            ) from None
        except UnicodeError as error:
            raise UndecodableError(f"{source.where}: is not {encoding}: {error}") from None
        if "\0" in text:
            text = _without_nul(source, text, position - held)
        position += len(block)
        if position > source.most_bytes:
            raise too_large(source)
        if text:
            yield text if began else text.removeprefix("\ufeff")
            began = True


def too_large(source: Source) -> DataError:
    """Return the error for a table that is too large to be read whole."""
    return DataError(
        f"{source.where}: holds more than {source.most_bytes:,} bytes; tables of examples are read whole"
    )


def _without_nul(source: Source, text: str, position: int) -> str:
    """Return ``text``, which starts at byte ``position``, with its NUL characters handled as ``on_bad_text``
    says.
    """
    if source.config.on_bad_text == "stop":
        before = text[: text.index("\0")].encode(source.config.encoding, errors="ignore")
        raise DataError(
            f"{source.where}: holds NUL characters, the first at byte {position + len(before)}; "
            "if it is UTF-16, give --encoding utf-16, or continue with --on-bad-text replace or skip"
        )
    if source.config.on_bad_text == "skip":
        return text.replace("\0", BAD_BYTE)
    source.report.skip("bad bytes, replaced by U+FFFD", text.count("\0"))
    return text.replace("\0", "\ufffd")


def _errors(source: Source) -> str:
    if source.config.on_bad_text == "stop":
        return "strict"
    if source.config.on_bad_text == "skip":
        codecs.register_error("wholegpt-skip", _marked)
        return "wholegpt-skip"

    def replace(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeDecodeError):
            raise error
        source.report.skip("bad bytes, replaced by U+FFFD", error.end - error.start)
        return "\ufffd", error.end

    codecs.register_error("wholegpt-replace", replace)
    return "wholegpt-replace"


def _marked(error: UnicodeError) -> tuple[str, int]:
    """Replace undecodable bytes by a lone surrogate, so that the document is recognized later."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return BAD_BYTE, error.end


def checked(source: Source, pieces: Iterator[Piece], location: str = "") -> Iterator[Piece]:
    """Yield the ``pieces`` that UTF-8 can encode; skip others or raise ``DataError``, as ``on_bad_text``
    says.

    The rest of a document is skipped with its piece.
    """
    left_out = False
    for piece in pieces:
        if left_out and not piece.begins:
            continue
        left_out = False
        try:
            piece.text.encode()
        except UnicodeEncodeError:
            if source.config.on_bad_text == "stop":
                raise DataError(
                    f"{source.where}{location} holds half of a surrogate pair, which is not a character; "
                    "--on-bad-text skip leaves such documents out"
                ) from None
            if source.config.on_bad_text == "skip":
                what = "documents with" if piece.begins else "ends of long documents, from"
                source.report.skip(
                    f"{what} bytes or characters that are not text", what=f"{source.where}{location}"
                )
                left_out = True
                continue
            piece = piece._replace(text=piece.text.encode(errors="replace").decode())
            source.report.skip("documents with half characters, replaced by ?")
        if piece.text:
            yield piece
        else:
            source.report.skip("empty documents")


def read_text(source: Source) -> Iterator[Piece]:
    """Yield one document, a long one in pieces: cut before white space that follows text, where no tokenizer merges."""
    refuse_control(source)
    yield from checked(source, _pieces(source))


def _pieces(source: Source) -> Iterator[Piece]:
    held = ""
    begins = True
    for block in decoded(source):
        held += block
        if len(held) < 2 * PIECE_CHARACTERS:
            continue
        cut = _last_cut(held)
        if cut:
            yield Piece(held[:cut], begins)
            held, begins = held[cut:], False
        elif len(held) > LONGEST_RECORD:
            raise DataError(
                f"{source.where}: holds more than {LONGEST_RECORD:,} characters without white space, so it cannot be "
                "read in portions; cut it into lines or files"
            )
    if held:
        yield Piece(held, begins)


def _last_cut(text: str) -> int:
    """Return the position of the last space or line end after a letter or digit near the end, else after
    anything; else 0.

    Some tokenizers merge a line end with the punctuation before it; none merges white space with the letter
    before it.
    """
    for pattern, start in ((AFTER_WORD, max(0, len(text) - CUT_CHARACTERS)), (AFTER_ANYTHING, 0)):
        last = deque(pattern.finditer(text, start), maxlen=1)
        if last:
            return last[0].start()
    return 0


def refuse_control(source: Source) -> None:
    """Raise ``DataError`` if ``data.control`` is set for plain text, which has no fields."""
    if source.config.control:
        raise DataError(
            f"{source.where}: is plain text, which has no fields for data.control; give records (JSON lines, JSON, "
            "CSV, TSV, Parquet), or leave data.control out"
        )


def skip_record(source: Source, location: str, problem: str, lines: int = 1) -> None:
    """Count a bad record of ``lines`` lines as skipped, or raise ``DataError``, as ``on_bad_line`` says."""
    if source.config.on_bad_line == "stop":
        raise DataError(
            f"{source.where}{location} {problem}; --on-bad-line skip leaves such records out"
        ) from None
    source.report.skip("bad lines", lines, f"{source.where}{location}")
