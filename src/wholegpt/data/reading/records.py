"""Documents from the rows of tables: the text field, and the fields for control codes."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from wholegpt.data.reading.decoding import Piece, Source, checked, refuse_control, skip_record
from wholegpt.data.reading.file_types import PARQUET
from wholegpt.data.reading.row import LoneValue, Row, by_lower_name
from wholegpt.data.reading.rows import open_parquet, parquet_rows, read_rows
from wholegpt.data.text.control import LENGTH, attributes_of
from wholegpt.errors import DataError

FIELDS_NAMED = 50
"""About how many field names are collected for messages."""
NO_TEXT = object()
"""Replaces the value of a Parquet column that holds no text."""
LIKELY_FIELDS = ("text", "content", "body", "article", "document")


class _BadRecordError(ValueError):
    """A record without a text, or with an invalid value for control."""


def read_table(source: Source) -> Iterator[Piece]:
    """Yield one document per row; a .json file with a single value that is not a list is one text."""
    if source.format in PARQUET:
        yield from read_parquet(source)
        return
    config = source.config
    expected = [name for name in (config.text_field, *config.control) if name and name != LENGTH]
    yield from _documents(
        source, read_rows(source, expected[:1] if config.text_field.isdecimal() else expected)
    )


def read_records(source: Source, records: Iterable[Any]) -> Iterator[Piece]:
    """Yield one document per entry, which is a text or an object with the text in a field."""
    yield from _documents(source, (Row(f"entry {number}", one) for number, one in enumerate(records, 1)))


def _documents(source: Source, rows: Iterable[Row]) -> Iterator[Piece]:
    chosen = source.config.text_field
    for location, record in rows:
        try:
            if isinstance(record, LoneValue):
                if not chosen:
                    refuse_control(source)
                    yield from checked(source, iter((Piece(record.text),)))
                    return
                record = record.value
            if isinstance(record, str):
                record, field = {"": record}, ""
            else:
                field = chosen = chosen or _found(source, record)
            document = _document(source, record, field)
        except _BadRecordError as error:
            skip_record(source, f": {location}", str(error))
            continue
        yield from checked(source, iter((document,)), f": {location}")


def read_parquet(source: Source) -> Iterator[Piece]:
    """Yield one document per row from a text column; a missing text is empty."""
    import pyarrow

    def is_text(kind: Any) -> bool:
        if pyarrow.types.is_dictionary(kind):
            return is_text(kind.value_type)
        tests = (pyarrow.types.is_string, pyarrow.types.is_large_string, pyarrow.types.is_string_view)
        return any(test(kind) for test in tests)

    schema = open_parquet(source).schema_arrow
    strings = [column.name for column in schema if is_text(column.type)]
    chosen, control = source.config.text_field, source.config.control
    if not chosen:
        first = next(parquet_rows(source, strings), None) if strings else None
        texts = first.record if first else dict.fromkeys(strings, "")
        try:
            chosen = _found(source, {name: texts.get(name, NO_TEXT) for name in schema.names})
        except _BadRecordError:
            raise DataError(
                f"{source.where}: has no column of texts (found: {', '.join(schema.names)}); name the column with "
                "--text-field"
            ) from None
    if chosen not in strings:
        raise DataError(
            f"{source.where}: has no text column '{chosen}' (found: {', '.join(schema.names)}); "
            "name the column with --text-field"
        )
    fields = [name for name in control if name in schema.names]
    if len(fields) < len(control):
        source.report.other_fields.update(dict.fromkeys(schema.names))
    rows = parquet_rows(source, [chosen, *fields])
    for location, record in rows:
        try:
            document = _document(source, {**record, chosen: record[chosen] or ""}, chosen)
        except _BadRecordError as error:
            skip_record(source, f": {location}", str(error))
            continue
        yield from checked(source, iter((document,)), f": {location}")


def _found(source: Source, record: Any) -> str:
    """Return the field of a record that holds its text: one with a usual name, else the one with the longest
    text.
    """
    if not isinstance(record, Mapping):
        raise _BadRecordError(f"is not an object with named fields but {str(record)[:40]!r}")
    control = source.config.control
    texts = {name: value for name, value in record.items() if isinstance(value, str) and name not in control}
    by_name = by_lower_name(str(name) for name in record if name not in control)
    # A usual name counts whatever the field holds; otherwise another field would be trained on unnoticed.
    likely = [by_name[name] for name in LIKELY_FIELDS if name in by_name]
    if not texts and not likely:
        raise _BadRecordError(
            f"has no field with a text (found: {', '.join(map(str, record))}); name the field with --text-field"
        )
    name = likely[0] if likely else max(texts, key=lambda name: len(texts[name]))
    if name != "text":
        source.report.fields[name] = source.report.fields.get(name, 0) + 1
    return name


def _document(source: Source, record: Any, chosen: str) -> Piece:
    """Return the document in a record: the text field, and the fields that ``data.control`` names."""
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
