"""The text of Word documents (DOCX): zip archives with the document in XML (ECMA-376, part 1)."""

import io
import posixpath
import re
from collections.abc import Mapping
from typing import Any

from wholegpt.data.reading.documents.archives import Archive
from wholegpt.data.reading.file_types import OFFICE, UnreadableDocumentError

RELATIONSHIPS, MAIN_PART = "_rels/.rels", "word/document.xml"
NOTES = ("footnotes.xml", "endnotes.xml")
UNSEEN = frozenset(("del", "moveFrom", "Fallback", "tabs"))
"""Elements whose content is not shown: deleted and moved text, the second form of a drawing; and tab stops."""
CHARACTERS = {"tab": "\t", "ptab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
TITLES = ("title", "subtitle")
DEEPEST_HEADING = 9
"""Outline levels from here on are body text."""


class _DocumentText:
    """The text of a document, built from the events of the parser."""

    def __init__(self, headings: set[str]) -> None:
        self._headings = headings
        self._lines: list[str] = []
        self._paragraphs: list[list[str]] = []
        """The open paragraphs: a text box stands within the paragraph that anchors it."""
        self._are_headings: list[bool] = []
        self._tables: list[list[list[list[str]]]] = []
        """The open tables, each a list of rows of cells of paragraphs."""
        self._unseen = 0
        self._in_text = False

    def start(self, tag: str, attributes: Mapping[str, str], namespaces: object = None) -> None:
        """Handle the start of an element."""
        name = tag.rpartition("}")[2]
        self._unseen += name in UNSEEN
        if name == "p":
            self._paragraphs.append([])
            self._are_headings.append(False)
        elif name == "tbl":
            self._tables.append([])
        elif name == "tr" and self._tables:
            self._tables[-1].append([])
        elif name == "tc" and self._tables and self._tables[-1]:
            self._tables[-1][-1].append([])
        elif not self._paragraphs or self._unseen:
            return
        elif name == "t":
            self._in_text = True
        elif name in CHARACTERS:
            self._paragraphs[-1].append(CHARACTERS[name])
        elif name == "pStyle":
            self._are_headings[-1] |= value_of(attributes) in self._headings
        elif name == "outlineLvl":
            self._are_headings[-1] |= is_heading_level(value_of(attributes))

    def end(self, tag: str) -> None:
        """Handle the end of an element."""
        name = tag.rpartition("}")[2]
        self._unseen -= name in UNSEEN
        if name == "t":
            self._in_text = False
        elif name == "p":
            lines = "".join(self._paragraphs.pop()).split("\n")
            self._add("\n".join(line.rstrip() for line in lines).strip("\n"), self._are_headings.pop())
        elif name == "tbl":
            rows = [
                "\t".join(" ".join(" ".join(cell).split()) for cell in cells).rstrip()
                for cells in self._tables.pop()
            ]
            self._add("\n".join(row for row in rows if row), apart=True)

    def data(self, text: str) -> None:
        """Handle characters."""
        if self._in_text and self._paragraphs and not self._unseen:
            self._paragraphs[-1].append(text)

    def close(self) -> None:
        """Handle the end of the document."""

    def _add(self, text: str, apart: bool) -> None:
        """Add a paragraph or a table to the open cell, or else to the text."""
        if self._tables and self._tables[-1] and self._tables[-1][-1]:
            self._tables[-1][-1][-1].append(text)
        else:
            self._lines += ["", text, ""] if apart else [text]

    def text(self) -> str:
        """Return the text, with at most one empty line in succession."""
        text = re.sub(r"\n{3,}", "\n\n", "\n".join(self._lines)).strip("\n")
        return f"{text}\n" if text else ""


def word_text(stream: io.BufferedIOBase, where: str) -> str:
    """Return the text of a document: a line for each paragraph and each row of a table, with tabs between
    cells, and empty lines around headings and tables; then the text of its notes.

    Text of tracked insertions is included, of deletions not. Raises ``UnreadableDocumentError`` for a damaged
    or encrypted document.
    """
    if stream.read(len(OFFICE)) == OFFICE:
        raise UnreadableDocumentError(
            f"{where}: is encrypted, or in the older format of Word (.doc); save it as .docx without a password"
        )
    archive = Archive(stream, where)
    main = _main_part(archive)
    folder = posixpath.dirname(main)
    headings = _headings(archive, posixpath.join(folder, "styles.xml"))
    names = [main, *(posixpath.join(folder, note) for note in NOTES)]
    texts: list[str] = []
    for name in names:
        if name == main or name in archive:
            target = _DocumentText(headings)
            archive.parse(name, target)
            texts.append(target.text())
    return "\n".join(text for text in texts if text)


def _main_part(archive: Archive) -> str:
    root = archive.tree(RELATIONSHIPS)
    targets = [one.get("Target", "") for one in root if str(one.get("Type", "")).endswith("/officeDocument")]
    return targets[0].lstrip("/") if targets else MAIN_PART


def _headings(archive: Archive, name: str) -> set[str]:
    """Return the identifiers of the styles of headings, and of those that are based on them."""
    if name not in archive:
        return set()
    based: dict[str, list[str]] = {}
    found: list[str] = []
    for style in archive.tree(name).findall("{*}style"):
        identifier = next((value for key, value in style.items() if key.endswith("}styleId")), "")
        parts = {part.tag.rpartition("}")[2]: value_of(part.attrib) for part in style.iter("{*}*")}
        based.setdefault(parts.get("basedOn", ""), []).append(identifier)
        title = parts.get("name", "").lower()
        if title.startswith("heading ") or title in TITLES or is_heading_level(parts.get("outlineLvl", "")):
            found.append(identifier)
    headings: set[str] = set()
    while found:
        identifier = found.pop()
        if identifier not in headings:
            headings.add(identifier)
            found += based.get(identifier, [])
    return headings


def is_heading_level(value: str) -> bool:
    """Return whether an outline level is that of a heading."""
    return len(value) == 1 and value.isdecimal() and int(value) < DEEPEST_HEADING


def value_of(attributes: Any) -> str:
    """Return the attribute ``val`` of an element, in any namespace."""
    return next((value for key, value in attributes.items() if key.rpartition("}")[2] == "val"), "")
