"""The text of EPUB books: zip archives of XHTML pages, with a list of their order."""

import io
import posixpath
from typing import Any
from urllib.parse import unquote, urlsplit

from wholegpt.data.reading.documents.archives import Archive
from wholegpt.data.reading.file_types import encrypted
from wholegpt.data.reading.markup import UNSEEN, page_text

PAGES = ("application/xhtml+xml", "text/html", "application/x-dtbook+xml")
"""Media types of pages with text."""
CONTAINER, ENCRYPTION = "META-INF/container.xml", "META-INF/encryption.xml"
UNSEEN_IN_BOOKS = UNSEEN | {"head"}
"""Readers of books do not show the title of a page, which repeats its heading."""


def book_text(stream: io.BufferedIOBase, where: str) -> str:
    """Return the pages of a book in reading order, separated by empty lines.

    Raises ``UnreadableDocumentError`` for a damaged or encrypted book.
    """
    archive = Archive(stream, where)
    protected = _protected(archive)
    texts: list[str] = []
    for name in _reading_order(archive):
        if name in protected:
            raise encrypted(where)
        texts.append(page_text(archive.page(name), UNSEEN_IN_BOOKS))
    return "\n".join(text for text in texts if text)


def _reading_order(archive: Archive) -> list[str]:
    """Return the names of the pages in the order of the package's spine."""
    package = next((one.get("full-path") for one in _all(archive.tree(CONTAINER), "rootfile")), None)
    if not package:
        raise archive.damaged(f"'{CONTAINER}' names no package")
    root = archive.tree(package)
    items = {one.get("id"): one for one in _all(root, "item")}
    spine = [one.get("idref") for one in _all(root, "itemref")]
    if missing := [one for one in spine if one not in items]:
        raise archive.damaged(f"its reading order names '{missing[0] or ''}', which it does not list")
    pages = [items[one].get("href", "") for one in spine if items[one].get("media-type") in PAGES]
    return [_inside(posixpath.dirname(package), href) for href in pages]


def _protected(archive: Archive) -> set[str]:
    """Return the names of encrypted files. Only fonts may be among them in a book that can be read."""
    if ENCRYPTION not in archive:
        return set()
    return {_inside("", one.get("URI", "")) for one in _all(archive.tree(ENCRYPTION), "CipherReference")}


def _inside(folder: str, reference: str) -> str:
    """Return the name in the archive of a reference from a file in ``folder``."""
    return posixpath.normpath(posixpath.join(folder, unquote(urlsplit(reference).path)))


def _all(root: Any, name: str) -> list[Any]:
    return root.findall(f".//{{*}}{name}")
