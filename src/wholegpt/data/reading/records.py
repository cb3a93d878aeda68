"""Documents from the rows of tables: the text field or a conversation, and the fields for control codes."""

import difflib
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from wholegpt.data.chat.messages import (
    MESSAGES,
    SYSTEM,
    holds_messages,
    read_messages,
    refuse_tools_and_media,
    with_system,
)
from wholegpt.data.chat.template import ChatTemplate
from wholegpt.data.control_codes import LENGTH, attributes_of
from wholegpt.data.reading.decoding import Piece, Source, checked, refuse_control, skip_record
from wholegpt.data.reading.file_types import PARQUET
from wholegpt.data.reading.row import LoneValue, Row, by_lower_name
from wholegpt.data.reading.rows import open_parquet, parquet_rows, read_rows
from wholegpt.errors import ConfigError, DataError
from wholegpt.tokenizers import END_OF_TEXT

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
                if not chosen and not conversation_field(record.value):
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

    def is_list(kind: Any) -> bool:
        return pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)

    schema = open_parquet(source).schema_arrow
    lists = by_lower_name(column.name for column in schema if is_list(column.type))
    conversations = [lists[name] for name in MESSAGES if name in lists]
    strings = [column.name for column in schema if is_text(column.type)]
    readable = strings + conversations
    chosen, control = source.config.text_field, source.config.control
    if not chosen:
        first = next(parquet_rows(source, readable), None) if readable else None
        texts = first.record if first else dict.fromkeys(readable, "")
        try:
            chosen = _found(source, {name: texts.get(name, NO_TEXT) for name in schema.names})
        except _BadRecordError:
            raise DataError(
                f"{source.where}: has no column of texts (found: {', '.join(schema.names)}); name the column with "
                "--text-field"
            ) from None
    if chosen not in readable:
        raise DataError(
            f"{source.where}: has no text column '{chosen}' (found: {', '.join(schema.names)}); "
            "name the column with --text-field"
        )
    system = [name for name in strings if chosen in conversations and name.lower() in SYSTEM]
    fields = [name for name in control if name in schema.names]
    if len(fields) < len(control):
        source.report.other_fields.update(dict.fromkeys(schema.names))
    rows = parquet_rows(source, list(dict.fromkeys([chosen, *system, *fields])))
    for location, record in rows:
        try:
            text = record[chosen] if chosen in conversations else record[chosen] or ""
            document = _document(source, {**record, chosen: text}, chosen)
        except _BadRecordError as error:
            skip_record(source, f": {location}", str(error))
            continue
        yield from checked(source, iter((document,)), f": {location}")


def _found(source: Source, record: Any) -> str:
    """Return the field of a record that holds its text: one with a usual name, else one with a conversation,
    else the one with the longest text.
    """
    if not isinstance(record, Mapping):
        raise _BadRecordError(f"is not an object with named fields but {str(record)[:40]!r}")
    control = source.config.control
    texts = {name: value for name, value in record.items() if isinstance(value, str) and name not in control}
    by_name = by_lower_name(str(name) for name in record if name not in control)
    # A usual name counts whatever the field holds; otherwise another field would be trained on unnoticed.
    likely = [by_name[name] for name in LIKELY_FIELDS if name in by_name]
    messages = "" if likely else conversation_field(record)
    if not texts and not likely and not messages:
        raise _BadRecordError(
            f"has no field with a text (found: {', '.join(map(str, record))}); name the field with --text-field"
        )
    name = likely[0] if likely else messages or max(texts, key=lambda name: len(texts[name]))
    if name != "text":
        source.report.fields[name] = source.report.fields.get(name, 0) + 1
    return name


def _document(source: Source, record: Any, chosen: str) -> Piece:
    """Return the document in a record: the text or the conversation, and the fields that ``data.control``
    names.
    """
    text = record.get(chosen) if isinstance(record, Mapping) else None
    if holds_messages(text) and (chosen.lower() in MESSAGES or not isinstance(text, str)):
        text = _rendered(record, chosen)
        source.report.note("conversations were rendered as text by the chat template")
    if not isinstance(text, str):
        found = ", ".join(map(str, record)) if isinstance(record, Mapping) else type(record).__name__
        close = (
            difflib.get_close_matches(chosen, map(str, record), n=1) if isinstance(record, Mapping) else []
        )
        hint = (
            f"did you mean '{close[0]}'?"
            if close and chosen not in record
            else "name the field with --text-field"
        )
        raise _BadRecordError(f"has no text in field '{chosen}' (found: {found}); {hint}")
    fields = source.config.control
    try:
        attributes = attributes_of(record, text, fields)
    except ValueError as error:
        raise _BadRecordError(str(error)) from None
    if len(attributes) < len(fields) and len(source.report.other_fields) < FIELDS_NAMED:
        source.report.other_fields.update(dict.fromkeys(str(name) for name in record if name))
    return Piece(text, attributes=attributes)


def conversation_field(record: Any) -> str:
    """Return the field of a record that holds the messages of a conversation; empty if there is none."""
    if not isinstance(record, Mapping):
        return ""
    by_name = by_lower_name(map(str, record))
    fields = (by_name[name] for name in MESSAGES if name in by_name)
    return next((field for field in fields if holds_messages(record.get(field))), "")


@functools.cache
def _template() -> ChatTemplate:
    return ChatTemplate()


def _rendered(record: Mapping[str, Any], field: str) -> str:
    """Return the conversation in a record as text, without the end-of-text that separates documents anyway."""
    by_name = by_lower_name(map(str, record))
    system = next((by_name[name] for name in SYSTEM if name in by_name), "")
    try:
        refuse_tools_and_media(record, "")
        messages = with_system(read_messages(record[field], ""), record.get(system), system, "")
        return _template().render(messages).removesuffix(END_OF_TEXT)
    except (ConfigError, DataError) as error:
        raise _BadRecordError(str(error).removeprefix(": ")) from None
