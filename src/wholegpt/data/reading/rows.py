"""The rows of a table in any format: separated values, JSON, Parquet. All that reads tables reads them here.

======================  =====================================================================================
format                  rows
======================  =====================================================================================
.csv, .tsv              one a record; separated by comma, semicolon, tab or bar, whichever fits the first ones
.jsonl, .ndjson, .json  one a line, one an entry of a list, or one object after another; by content, not by name
.parquet, .pq           one a row
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
"""Bytes of a part of a Parquet file that is decoded at once."""


def read_rows(source: Source, expected: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of a table. ``expected`` are columns that are asked for, by which a first row of names is recognised.

    Raises ``DataError`` with the place of a row that cannot be read, unless ``on_bad_line`` leaves it out.
    """
    if source.format in PARQUET:
        return parquet_rows(source)
    if source.format in JSON:
        return json_rows(source)
    return separated_rows(source, expected)


def open_parquet(source: Source) -> Any:
    """The ``pyarrow.parquet.ParquetFile`` in a source's stream. Raises ``DataError`` where there is none."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(source.stream)
        names = list(file.schema_arrow.names)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{source.where}: is damaged, or no Parquet file as its name says: {' '.join(str(error).split())}"
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
    """The rows, with these ``columns`` of them; what is no number (NaN) is missing."""
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
