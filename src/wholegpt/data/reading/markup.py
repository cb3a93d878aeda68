"""The text of web pages and notebooks."""

import importlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from wholegpt.data.reading import decoding as formats
from wholegpt.data.reading.decoding import Piece, Source, checked, decoded, refuse_control
from wholegpt.errors import DataError

UNSEEN = frozenset(("script", "style", "template", "noscript", "svg", "math", "object", "iframe"))
"""Elements whose content is not readable text."""
_PARAGRAPHS = (
    "address article aside blockquote body dd details dialog div dl dt fieldset figcaption figure footer form h1 h2 h3 "
    "h4 h5 h6 header hr li main nav ol optgroup option p section summary table tbody tfoot thead title tr ul"
)
PARAGRAPHS = frozenset(_PARAGRAPHS.split())
"""Elements on lines of their own."""
SEPARATE = frozenset(
    ("p", "h1", "h2", "h3", "h4", "h5", "h6", "title", "table", "ul", "ol", "blockquote", "pre", "article")
)
"""Those of them with an empty line before and after."""


class _PageText:
    """The text of a page, built from the events of the parser."""

    def __init__(self, unseen: Collection[str]) -> None:
        self._parts: list[str] = []
        self._unseen_elements = unseen
        self._unseen = self._verbatim = 0
        self._line_ends = 2
        """Line ends at the end of the text; initially as many as an empty line has."""
        self._spaced = True
        """Whether the text ends with white space, so that further white space is dropped."""

    def start(self, tag: str, attributes: Mapping[str, str], namespaces: object = None) -> None:
        """Handle the start of an element."""
        self._unseen += tag in self._unseen_elements
        if tag == "br":
            self._add("\n")
        elif tag in ("td", "th") and not self._line_ends:
            self._add("\t")
        self._border(tag)
        self._verbatim += tag == "pre"

    def end(self, tag: str) -> None:
        """Handle the end of an element."""
        self._unseen -= tag in self._unseen_elements
        self._verbatim -= tag == "pre"
        self._border(tag)

    def _border(self, tag: str) -> None:
        wanted = 2 if tag in SEPARATE else 1 if tag in PARAGRAPHS else 0
        self._add("\n" * (wanted - self._line_ends))

    def data(self, text: str) -> None:
        """Handle characters, with entities decoded."""
        if self._unseen:
            return
        if not self._verbatim:
            text = re.sub(r"[ \t\r\n\f]+", " ", text)
            text = text.removeprefix(" ") if self._spaced else text
        self._add(text)

    def _add(self, text: str) -> None:
        if text:
            self._parts.append(text)
            ends = len(text) - len(text.rstrip("\n"))
            self._line_ends = ends + self._line_ends if ends == len(text) else ends
            self._spaced = text[-1] in " \t\n"

    def comment(self, text: str) -> None:
        """Ignore a comment."""

    def close(self) -> str:
        """Return the text, without white space at the ends of its lines."""
        lines = [line.rstrip(" \t") for line in "".join(self._parts).split("\n")]
        text = "\n".join(lines).strip("\n")
        return f"{text}\n" if text else ""


def page_text(page: str, unseen: Collection[str] = UNSEEN) -> str:
    """Return the text of an HTML or XHTML page as a browser would show it, without ``unseen`` elements."""
    etree: Any = importlib.import_module("lxml.etree")
    parser = etree.HTMLParser(target=_PageText(unseen), huge_tree=True)
    parser.feed(page)
    try:
        return parser.close()
    except etree.XMLSyntaxError:  # an empty page, or only comments
        return ""


def read_page(source: Source) -> Iterator[Piece]:
    """Yield one document: the text of a web page."""
    refuse_control(source)
    for page in checked(source, iter((Piece(_whole(source)),))):
        yield from checked(source, iter((Piece(page_text(page.text)),)))


def read_notebook(source: Source) -> Iterator[Piece]:
    """Yield one document: the text and code of a Jupyter notebook's cells without their outputs."""
    refuse_control(source)
    try:
        notebook = json.loads(_whole(source))
        sheets = [notebook, *notebook.get("worksheets", ())]  # from format version 3
        cells = [cell for sheet in sheets for cell in sheet.get("cells", ())]
        texts = [cell.get("source", cell.get("input", "")) for cell in cells]
        joined = ["".join([text] if isinstance(text, str) else text).strip("\n") for text in texts]
    except json.JSONDecodeError as error:
        raise DataError(f"{source.where}: is not a Jupyter notebook, as it is not JSON: {error}") from None
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise DataError(
            f"{source.where}: is not a Jupyter notebook: it has no list of cells with text"
        ) from None
    text = "\n\n".join(text for text in joined if text.strip())
    yield from checked(source, iter((Piece(f"{text}\n" if text else ""),)))


def _whole(source: Source) -> str:
    blocks: list[str] = []
    size = 0
    for block in decoded(source):
        blocks.append(block)
        size += len(block)
        if size > formats.LONGEST_RECORD:
            raise DataError(
                f"{source.where}: is longer than {formats.LONGEST_RECORD:,} characters; it is not read"
            )
    return "".join(blocks)
