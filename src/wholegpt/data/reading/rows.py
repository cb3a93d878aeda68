"""Read the rows of a table in any format: separated values, JSON, Parquet.

======================  =====================================================================================
format                  rows
======================  =====================================================================================
.csv, .tsv              one per record; separated by comma, semicolon, tab or bar, detected from the first
rows
.jsonl, .ndjson, .json  one per line, per entry of a list, or per object; detected from the content
.parquet, .pq           one per row
======================  =====================================================================================
"""

from collections.abc import Iterator, Sequence
from typing import Any

from wholegpt.data.reading.decoding import Source, too_large
from wholegpt.data.reading.file_types import JSON, PARQUET
from wholegpt.data.reading.json_rows import json_rows
from wholegpt.data.reading.row import Row, check_names
from wholegpt.data.reading.separated_rows import separated_rows
from wholegpt.errors import DataError

PARQUET_ROWS = 256
LARGEST_ROW_GROUP = 2**32
"""Largest row group of a Parquet file in bytes; a group is decoded at once."""


def read_rows(source: Source, expected: Sequence[str] = ()) -> Iterator[Row]:
    """Yield the rows of a table. ``expected`` columns identify a first row of column names.

    Raises ``DataError`` with the location of an unreadable row, unless ``on_bad_line`` skips it.
    """
    if source.format in PARQUET:
        return parquet_rows(source)
    if source.format in JSON:
        return json_rows(source)
    return separated_rows(source, expected)


def open_parquet(source: Source) -> Any:
    """Return the ``pyarrow.parquet.ParquetFile`` of a source's stream. Raises ``DataError`` if it is not
    Parquet.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(source.stream)
        names = list(file.schema_arrow.names)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{source.where}: is damaged, or not a Parquet file as its name says: {' '.join(str(error).split())}"
        ) from None
    check_names(source.where, names)
    groups = [file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)]
    if sum(groups) > source.most_bytes:
        raise too_large(source)
    if groups and max(groups) > LARGEST_ROW_GROUP:
        raise DataError(
            f"{source.where}: has a row group of {max(groups):,} bytes; write it with smaller ones"
        )
    return file


def parquet_rows(source: Source, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Yield the rows, optionally only some ``columns``; NaN becomes a missing value."""
    import pyarrow

    file, number = open_parquet(source), 0
    try:
        for batch in file.iter_batches(PARQUET_ROWS, columns=columns):
            for record in batch.to_pylist():
                number += 1
                yield Row(
                    f"row {number}",
                    {name: None if value != value else value for name, value in record.items()},
                )
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{source.where}: {' '.join(str(error).split())}") from None
