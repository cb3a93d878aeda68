"""One reader for each form of file: text, JSON, JSON lines, comma- or tab-separated values, Parquet."""

import codecs
import csv
import io
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from wholegpt.config import DataConfig
from wholegpt.data.control import Attributes, attributes_of
from wholegpt.errors import DataError

if TYPE_CHECKING:
    from wholegpt.data.reading import ReadingReport

BLOCK_BYTES = 2**20
PIECE_CHARACTERS = 2**21
"""A longer text comes in pieces, each at least this long."""
LONGEST_RECORD = 2**26
"""Characters of a line or record that is read at all; also of text without a place to cut it."""
CUT_CHARACTERS = 2**16
"""How far from the end of a portion a good place to cut it is looked for."""
AFTER_WORD, AFTER_ANYTHING = re.compile(r"(?<=[^\W_])[ \n]"), re.compile(r"(?<=\S)[ \n]")
FIELDS_NAMED = 50
"""Fields of records that are kept, about, to say which there are."""
LIKELY_FIELDS = ("text", "content", "body", "article", "document")


class Piece(NamedTuple):
    """A document, or a part of a long one."""

    text: str
    begins: bool = True
    """Whether a document begins here; else it goes on with what came before."""
    source: int = 0
    """Which of a corpus's sources it comes from."""
    attributes: Attributes = ()
    """What ``data.control`` names, of a record."""


@dataclass
class Source:
    """A file that is being read."""

    where: str
    """What the errors name."""
    stream: io.BufferedIOBase
    config: DataConfig
    report: "ReadingReport"


Reader = Callable[[Source], Iterator[Piece]]


def decoded(source: Source) -> Iterator[str]:
    """The text of a file in blocks. Raises ``DataError`` with the offset of a byte that is no text."""
    encoding = source.config.encoding
    try:
        utf8 = codecs.lookup(encoding).name == "utf-8"
        decoder = codecs.getincrementaldecoder("utf-8-sig" if utf8 else encoding)(_errors(source))
    except LookupError:
        raise DataError(
            f"data.encoding is '{encoding}', which Python does not know; try utf-8 or latin-1"
        ) from None
    position = 0
    ended = False
    while not ended:
        block = source.stream.read(BLOCK_BYTES)
        if position == 0 and b"\0" in block[:8192] and "16" not in encoding and "32" not in encoding:
            raise DataError(f"{source.where}: holds NUL bytes, so it is not a text file")
        ended = not block
        held = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=ended)
        except UnicodeDecodeError as error:
            at = position - held + error.start
            raise DataError(
                f"{source.where}: byte {at} (0x{error.object[error.start]:02x}) is not {encoding}; "
                "name the file's encoding, for example --encoding latin-1, or go on with --on-bad-text replace or skip"
            ) from None
        position += len(block)
        if text:
            yield text


def _errors(source: Source) -> str:
    if source.config.on_bad_text == "stop":
        return "strict"
    if source.config.on_bad_text == "skip":
        return "surrogateescape"  # no text holds these, so what does can be told and left out

    def replace(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeDecodeError):
            raise error
        source.report.skip("bad bytes, replaced by U+FFFD", error.end - error.start)
        return "\ufffd", error.end

    codecs.register_error("wholegpt-replace", replace)
    return "wholegpt-replace"


def checked(source: Source, pieces: Iterator[Piece], place: str = "") -> Iterator[Piece]:
    """``pieces`` that UTF-8 can express; others are left out or end the reading, as ``on_bad_text`` says.

    With a piece that is left out goes what follows of its document.
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
                    f"{source.where}{place} holds half of a surrogate pair, which is no character; "
                    "--on-bad-text skip leaves such documents out"
                ) from None
            if source.config.on_bad_text == "skip":
                what = "documents with" if piece.begins else "ends of long documents, from"
                source.report.skip(f"{what} bytes or characters that are no text")
                left_out = True
                continue
            piece = piece._replace(text=piece.text.encode(errors="replace").decode())
            source.report.skip("documents with half characters, replaced by ?")
        if piece.text:
            yield piece
        else:
            source.report.skip("empty documents")


def read_text(source: Source) -> Iterator[Piece]:
    """One document; a long one in pieces, cut where tokenizers join nothing: before white space after text."""
    _refuse_control(source)
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
    """The last space or line end after a letter or digit, near the end, or else after anything; 0 for none.

    Some tokenizers join a line end to the punctuation before it, none joins white space to the letter before it.
    """
    for pattern, start in ((AFTER_WORD, max(0, len(text) - CUT_CHARACTERS)), (AFTER_ANYTHING, 0)):
        last = deque(pattern.finditer(text, start), maxlen=1)
        if last:
            return last[0].start()
    return 0


def _lines(source: Source) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers from 1, without their ends."""
    held, number = "", 0
    for block in decoded(source):
        *lines, rest = (held + block).split("\n")
        for line in lines:
            number += 1
            yield number, line
        held = rest
        if len(held) > LONGEST_RECORD:
            raise DataError(
                f"{source.where}: line {number + 1} is longer than {LONGEST_RECORD:,} characters; it is not read"
            )
    if held:
        yield number + 1, held


def read_json_lines(source: Source) -> Iterator[Piece]:
    """One document a line: a JSON object with the text in a field."""
    chosen = source.config.text_field
    for number, line in _lines(source):
        if not line.strip():
            continue
        place = f": line {number}"
        try:
            record = json.loads(line)
            chosen = chosen or _found(source, record)
            document = _document(source, record, chosen)
        except (ValueError, RecursionError) as error:
            kind = "is not JSON: " if not isinstance(error, _BadRecordError) else ""
            _pass_over(source, place, f"{kind}{error}")
            continue
        yield from checked(source, iter((document,)), place)


def read_json(source: Source) -> Iterator[Piece]:
    """A list of texts, or of objects with the text in a field; any other JSON is a document as it stands."""
    blocks: list[str] = []
    size = 0
    for block in decoded(source):
        blocks.append(block)
        size += len(block)
        if size > LONGEST_RECORD:
            raise DataError(
                f"{source.where}: is longer than {LONGEST_RECORD:,} characters; JSON is read whole, so write one "
                "object a line into a .jsonl file"
            )
    content = "".join(blocks)
    try:
        records = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source.where} is not JSON: {error}") from None
    if not isinstance(records, list):
        _refuse_control(source)
        yield from checked(source, iter((Piece(content),)))
        return
    yield from read_records(source, records)


def read_records(source: Source, records: Iterable[Any]) -> Iterator[Piece]:
    """One document an entry: a text, or an object with the text in a field."""
    chosen = source.config.text_field
    for number, record in enumerate(records, 1):
        place = f": entry {number}"
        try:
            if isinstance(record, str):
                record, field = {"": record}, ""
            else:
                field = chosen = chosen or _found(source, record)
            document = _document(source, record, field)
        except _BadRecordError as error:
            _pass_over(source, place, str(error))
            continue
        yield from checked(source, iter((document,)), place)


def read_separated(source: Source) -> Iterator[Piece]:
    """One document a row. The first row names the columns, unless the text's is given by its number, from 0."""
    delimiter = "\t" if ".tsv" in source.where.lower() else ","
    lines = (line + "\n" for _, line in _lines(source))
    csv.field_size_limit(LONGEST_RECORD)
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    rows = csv.reader(lines, delimiter=delimiter, strict=True, quoting=quoting)
    chosen, names, width = source.config.text_field, [], 0
    while True:
        before = rows.line_num
        try:
            row = next(rows, None)
            if row is None:
                return
            if not row:
                continue
            if not width:
                width = len(row)
                names = [str(i) for i in range(width)] if chosen.isdecimal() else row
                if names is row:
                    continue
            if len(row) != width:
                raise _BadRecordError(f"has {len(row)} columns, the first row {width}")
            record = dict(zip(names, row, strict=True))
            chosen = chosen or _found(source, record)
            document = _document(source, record, chosen)
        except (csv.Error, _BadRecordError) as error:
            # A quotation mark that is not closed takes all lines after it.
            _pass_over(source, f": line {before + 1}", str(error), rows.line_num - before)
            continue
        yield from checked(source, iter((document,)), f": line {rows.line_num}")


def read_parquet(path: Path, source: Source) -> Iterator[Piece]:
    """One document a row."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        strings = [
            column.name
            for column in file.schema_arrow
            if pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)
        ]
        chosen = source.config.text_field
        if chosen and chosen not in strings:
            raise DataError(
                f"{path}: has no text column '{chosen}' (found: {', '.join(file.schema_arrow.names)}); "
                "name the column with --text-field"
            )
        if not chosen:
            first = next(file.iter_batches(1, columns=strings), None) if strings else None
            rows = first.to_pylist() if first is not None else []
            chosen = _found(source, rows[0] if rows else dict.fromkeys(strings, ""))
        fields = [name for name in source.config.control if name in file.schema_arrow.names]
        if len(fields) < len(source.config.control):
            source.report.other_fields.update(dict.fromkeys(file.schema_arrow.names))
        number = 0
        for batch in file.iter_batches(256, columns=[chosen, *fields]):
            for record in batch.to_pylist():
                number += 1
                place = f": row {number}"
                try:
                    document = _document(source, {**record, chosen: record[chosen] or ""}, chosen)
                except _BadRecordError as error:
                    _pass_over(source, place, str(error))
                    continue
                yield from checked(source, iter((document,)), place)
    except (pyarrow.ArrowException, _BadRecordError) as error:
        raise DataError(f"{path}: {' '.join(str(error).split())}") from None


class _BadRecordError(ValueError):
    """A record without a text, or with what is no value for control."""


def _found(source: Source, record: Any) -> str:
    """The field of a record that holds its text: one with a likely name, else that with the longest text."""
    if not isinstance(record, Mapping):
        raise _BadRecordError(f"is no object but {type(record).__name__}")
    control = source.config.control
    texts = {name: value for name, value in record.items() if isinstance(value, str) and name not in control}
    if not texts:
        raise _BadRecordError(
            f"has no field with a text (found: {', '.join(map(str, record))}); name the field with --text-field"
        )
    likely = [name for name in LIKELY_FIELDS if name in texts]
    name = likely[0] if likely else max(texts, key=lambda name: len(texts[name]))
    if name != "text":
        source.report.fields[name] = source.report.fields.get(name, 0) + 1
    return name


def _document(source: Source, record: Any, chosen: str) -> Piece:
    """What a record holds: the text in a field, and what ``data.control`` names."""
    if not isinstance(record, Mapping) or not isinstance(record.get(chosen), str):
        found = ", ".join(map(str, record)) if isinstance(record, Mapping) else type(record).__name__
        raise _BadRecordError(
            f"has no text in field '{chosen}' (found: {found}); name the field with --text-field"
        )
    fields = source.config.control
    try:
        attributes = attributes_of(record, record[chosen], fields)
    except ValueError as error:
        raise _BadRecordError(str(error)) from None
    if len(attributes) < len(fields) and len(source.report.other_fields) < FIELDS_NAMED:
        source.report.other_fields.update(dict.fromkeys(str(name) for name in record if name))
    return Piece(record[chosen], attributes=attributes)


def _refuse_control(source: Source) -> None:
    if source.config.control:
        raise DataError(
            f"{source.where}: is plain text, which has no fields for data.control; give records (JSON lines, JSON, "
            "CSV, TSV, Parquet), or leave data.control out"
        )


def _pass_over(source: Source, place: str, problem: str, lines: int = 1) -> None:
    """Count a bad record of so many lines, or raise ``DataError``, as ``on_bad_line`` says."""
    if source.config.on_bad_line == "stop":
        raise DataError(
            f"{source.where}{place} {problem}; --on-bad-line skip leaves such records out"
        ) from None
    source.report.skip("bad lines", lines)
