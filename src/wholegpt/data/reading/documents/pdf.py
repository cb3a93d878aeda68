"""The text of PDF documents, with the printed lines of a paragraph joined.

A PDF document holds characters and their positions. PDFium finds the words, the lines and their order; this
module finds the paragraphs.
"""

import importlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from wholegpt.data.reading import decoding as formats
from wholegpt.data.reading.documents import pdf_lines
from wholegpt.data.reading.documents.pdf_lines import HYPHEN
from wholegpt.data.reading.file_types import UnreadableDocumentError, encrypted

LARGEST_PITCH = 1.25
"""Two lines of a block are at most this multiple of the page's usual distance apart."""
ALIKE = 0.1
"""Largest relative difference of font sizes within a block."""
INDENT = 0.7
"""Smallest indentation, in units of the font size."""
SPACE = 0.25
"""Width of a space, in units of the font size."""
LEFT_EDGES = 1.5
"""Blocks whose left edges differ by at most this multiple of the font size belong to one column."""
MOST_SECONDS, MOST_MEMORY = 120, 2**31
"""Limits of one document: seconds of computation, and bytes of memory."""
_NO_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\uffff]")
WIDEST = 0.8
"""A line of words is at most this wide per character, in units of the font size; others have gaps, as in a
table of contents.
"""
_LEADERS = re.compile(r"(?:\. ?){4}|…\s?\S{1,20}$")
"""Dots in a table of contents."""
_LABEL = re.compile(r"(?:[•‣◦▪●○■□–—*-]|\(?\w{1,2}[.)])\s")
"""The start of an item of a list."""
_WORD = r"[^\W\d_]+"
_WORD_START = r"(?<![^\W\d_])"
"""Without it, a search would start at each letter of a long word, which takes quadratic time."""
_DIVIDED = re.compile(f"{_WORD_START}({_WORD}){HYPHEN}({_WORD})")


@dataclass
class Line:
    """A printed line; lengths are in points."""

    text: str
    left: float
    right: float
    baseline: float
    size: float
    """Font size at its start."""
    first_word: float
    """Width of its first word."""
    hyphen: bool
    """Whether it ends within a word."""


def pdf_text(stream: Any, where: str) -> str:
    """Return the text of the pages, separated by empty lines; empty if there is none.

    A paragraph is on a line of its own. An empty line stands where the font size or the distance of two lines
    changes. A word that is divided at the end of a line is joined if the document has it elsewhere, with or
    without the hyphen; otherwise the line end stays. Raises ``UnreadableDocumentError`` for a document that is
    damaged, encrypted or too large.
    """
    importlib.import_module("pypdfium2")  # raises ``ModuleNotFoundError`` here, not in the other process
    texts: list[str] = []
    for page in _pages(stream, where):
        if "encrypted" in page:
            raise encrypted(where)
        if "lines" not in page:
            problem = page.get("too_long") or f"is damaged, or not a PDF document: {page['damaged']}"
            raise UnreadableDocumentError(f"{where}: {problem}; it is not read")
        texts.append(_page_text([Line(*fields) for fields in page["lines"]]))
    text = _with_whole_words("\n\n".join(text for text in texts if text))
    return f"{text}\n" if text else ""


def _pages(stream: Any, where: str) -> Iterator[dict[str, Any]]:
    """Yield what ``pdf_lines`` finds."""
    limits = (MOST_SECONDS, MOST_MEMORY, formats.LONGEST_RECORD)
    command = [sys.executable, "-P", pdf_lines.__file__, *map(str, limits)]
    with subprocess.Popen(
        command, stdin=stream, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            for line in process.stdout or ():
                if line.endswith(b"\n"):  # the last line of a process that ended early does not
                    yield json.loads(line)
            if process.wait():
                raise UnreadableDocumentError(
                    f"{where}: PDFium fails on it, or needs more than {MOST_SECONDS} seconds or {MOST_MEMORY:,} bytes; "
                    "it is not read"
                )
        finally:
            process.kill()


def _page_text(lines: Sequence[Line]) -> str:
    return _NO_TEXT.sub("", "".join(_separated(lines))).strip("\n")


def _is_wide(character: str) -> bool:
    return pdf_lines.WIDE.match(character) is not None


def _separated(lines: Sequence[Line]) -> Iterator[str]:
    """Yield the text of a page: its lines, and what separates them."""
    blocks = _blocks(lines)
    margins = _right_margins(blocks)
    for block, margin in zip(blocks, margins, strict=True):
        yield f"\n\n{block[0].text}"
        lines_of_paragraph = 1
        for line, after in pairwise(block):
            lines_of_paragraph += 1
            if _same_row(line, after):
                separator = " "
            elif line.hyphen:
                separator = HYPHEN
            elif _is_full(line, after, margin) and not _starts_paragraph(after, line, lines_of_paragraph):
                separator = "" if _is_wide(line.text[-1]) and _is_wide(after.text[0]) else " "
            else:
                separator, lines_of_paragraph = "\n", 1
            yield f"{separator}{after.text}"


def _same_row(line: Line, after: Line) -> bool:
    """Return whether two lines of PDFium are printed side by side, for example because one is an exponent."""
    return abs(line.baseline - after.baseline) < line.size / 2 and after.left > line.right - line.size / 2


def _blocks(lines: Sequence[Line]) -> list[list[Line]]:
    """Return the lines in groups of about the same font size and distance."""
    pitches = [
        (line.baseline - after.baseline) / line.size
        for line, after in pairwise(lines)
        if line.baseline - after.baseline > line.size / 2
    ]
    largest = LARGEST_PITCH * median(pitches) if pitches else 0.0
    blocks: list[list[Line]] = []
    for number, line in enumerate(lines):
        before = lines[number - 1]
        together = number > 0 and (
            before.hyphen
            or _same_row(before, line)
            or (
                0 < before.baseline - line.baseline <= largest * line.size
                and abs(before.size - line.size) <= ALIKE * line.size
                and line.left < before.right
                and before.left < line.right
            )
        )
        if together:
            blocks[-1].append(line)
        else:
            blocks.append([line])
    return blocks


def _right_margins(blocks: Sequence[Sequence[Line]]) -> list[float]:
    """Return the right edge of the column of each block; infinity if its lines do not fill the column.

    Lines fill their column if more than half of them end where the first word of the next line did not fit.
    Verses, code and tables do not.
    """
    margins = [math.inf] * len(blocks)
    lefts = [min(line.left for line in block) for block in blocks]
    columns: list[list[int]] = []
    for number in sorted(range(len(blocks)), key=lefts.__getitem__):
        size = blocks[number][0].size
        if columns and lefts[number] - lefts[columns[-1][-1]] <= LEFT_EDGES * size:
            columns[-1].append(number)
        else:
            columns.append([number])
    for column in columns:
        margin = max(line.right for number in column for line in blocks[number])
        for number in column:
            ends = [pair for pair in pairwise(blocks[number]) if not _same_row(*pair)]
            full = sum(line.hyphen or _is_full(line, after, margin) for line, after in ends)
            if 2 * full > len(ends):
                margins[number] = margin
    return margins


def _is_full(line: Line, after: Line, margin: float) -> bool:
    """Return whether a line ends where the first word of the next line did not fit."""
    gaps = line.right - line.left > WIDEST * line.size * len(line.text) and not _is_wide(line.text[0])
    fits = line.right + SPACE * line.size + after.first_word <= margin
    return not fits and not gaps and not _LEADERS.search(line.text)


def _starts_paragraph(line: Line, before: Line, number: int) -> bool:
    """Return whether a line starts a paragraph instead of being line ``number`` of the current one: it starts an item
    of a list, or its indentation differs from that of the previous line, unless that is the first line.
    """
    indented = abs(line.left - before.left) > INDENT * line.size
    return bool(_LABEL.match(line.text)) or (number > 2 and indented)


def _with_whole_words(text: str) -> str:
    """Return ``text`` with divided words joined as they are written elsewhere in it."""
    known = text.lower().replace(HYPHEN, " ")
    words = {*re.findall(_WORD, known), *re.findall(f"{_WORD_START}{_WORD}-{_WORD}", known)}

    def joined(found: re.Match[str]) -> str:
        whole, compound = found[1] + found[2], f"{found[1]}-{found[2]}"
        if (whole.lower() in words) != (compound.lower() in words):
            return whole if whole.lower() in words else compound
        return f"{found[1]}-\n{found[2]}"

    return _DIVIDED.sub(joined, text).replace(HYPHEN, "-\n")
