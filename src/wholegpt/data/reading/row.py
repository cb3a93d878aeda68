"""A row of a table, and the text of a file that rows are parsed from."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from wholegpt.data.reading import decoding as formats
from wholegpt.data.reading.decoding import Source, decoded
from wholegpt.errors import DataError

SAMPLE_CHARACTERS = 2**18
"""Characters of a file's text that determine separator and column names."""


class Row(NamedTuple):
    """One record of a table."""

    location: str
    """Location of the row in the file, for example "line 3"."""
    record: Any
    """The fields by name; for JSON, any value."""


class LoneValue(NamedTuple):
    """The content of a .json file that holds a single value instead of a list."""

    text: str
    value: Any


def check_names(where: str, names: Sequence[str]) -> None:
    """Raise ``DataError`` for columns of the same name."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(
            f"{where}: two columns have the same name, '{twice[0]}' (found: {', '.join(names)}); rename one"
        )


def by_lower_name(names: Iterable[str]) -> dict[str, str]:
    """Map lower-case names to ``names``; of names that differ in case only, the lower-case or first one."""
    names = list(names)
    return {name.lower(): name for name in reversed(names)} | {
        name: name for name in names if name == name.lower()
    }


@dataclass
class TableText:
    """A file's text, of which the start is in memory."""

    head: str
    whole: bool
    """Whether ``head`` is the whole text."""
    blocks: Iterator[str]
    """The text after ``head``, in blocks."""

    @classmethod
    def of(cls, source: Source) -> "TableText":
        """Read a sample that includes at least the first line."""
        blocks, head = decoded(source), ""
        for block in blocks:
            head += block
            if len(head) > formats.LONGEST_RECORD or (
                len(head) >= SAMPLE_CHARACTERS and ("\n" in head or "\r" in head)
            ):
                return cls(head, False, blocks)
        return cls(head, True, blocks)

    @property
    def line_end(self) -> str:
        """Return the line end: CR if there is no LF, as on old Macs."""
        return "\r" if "\n" not in self.head and "\r" in self.head else "\n"

    def lines(self, source: Source) -> Iterator[tuple[int, str]]:
        """Yield the lines with their numbers from 1, without line ends."""
        end, held, number = self.line_end, "", 0
        for block in itertools.chain([self.head], self.blocks):
            *lines, held = (held + block).split(end)
            for number, line in enumerate(lines, number + 1):  # noqa: B020
                yield number, line
            if len(held) > formats.LONGEST_RECORD:
                raise DataError(
                    f"{source.where}: line {number + 1} is longer than {formats.LONGEST_RECORD:,} characters; it is "
                    "not read"
                )
        if held:
            yield number + 1, held
