"""Zip archives that documents are stored in, and the XML in them, read within limits."""

import html
import importlib
import io
import zipfile
import zlib
from typing import Any

from wholegpt.data.reading.file_types import UnreadableDocumentError, encrypted

LARGEST_DIRECTORY = 2**22
"""Maximum bytes of an archive's list of files, some 50,000 names: ``zipfile`` reads it whole."""
LARGEST_CONTENT = 2**28
"""Maximum bytes that are decompressed of one archive."""
LARGEST_TREE = 2**23
"""Maximum bytes of XML that is held as a tree, which takes up to thirty times as much memory."""
_END, _END_64 = b"PK\x05\x06", b"PK\x06\x07"
_LONGEST_END = 22 + 2**16 - 1
"""Bytes of the end of an archive: a fixed part and a comment."""
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""The compressions that documents use. Python bounds the memory of no other."""


class Archive:
    """A zip archive of which single files are read."""

    def __init__(self, stream: io.BufferedIOBase, where: str) -> None:
        """Read the list of files. Raises ``UnreadableDocumentError`` if it is damaged or too large."""
        self._where, self._read = where, 0
        self._check_directory(stream)
        try:
            self._zip = zipfile.ZipFile(stream)
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
            raise self.damaged(str(error)) from None

    def _check_directory(self, stream: io.BufferedIOBase) -> None:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(max(0, size - _LONGEST_END - 20))
        end = stream.read()
        at = end.rfind(_END)
        if at < 0:
            raise self.damaged("it has no list of files at its end")
        directory = int.from_bytes(end[at + 12 : at + 16], "little")
        if directory > LARGEST_DIRECTORY or end[max(0, at - 20) :].startswith(_END_64):
            raise UnreadableDocumentError(
                f"{self._where}: holds more files than any document, or is larger than 4 GB; it is not read"
            )

    def __contains__(self, name: str) -> bool:
        return name in self._zip.NameToInfo

    def read(self, name: str, most_bytes: int = LARGEST_CONTENT) -> bytes:
        """Return the content of a file. Raises ``UnreadableDocumentError`` for one that is missing, damaged,
        encrypted or too large.
        """
        if name not in self:
            raise self.damaged(f"'{name}' is missing in it")
        entry = self._zip.getinfo(name)
        if entry.flag_bits & 1:
            raise encrypted(self._where)
        if entry.compress_type not in _METHODS:
            raise self.damaged(f"'{name}' is compressed in a way that documents do not use")
        self._read += entry.file_size
        if entry.file_size > most_bytes or self._read > LARGEST_CONTENT:
            most = most_bytes if entry.file_size > most_bytes else LARGEST_CONTENT
            raise UnreadableDocumentError(
                f"{self._where}: unpacks to more than {most:,} bytes at '{name}'; it is not read"
            )
        try:
            return self._zip.read(entry)
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, NotImplementedError) as error:
            raise self.damaged(f"'{name}': {error}") from None

    def tree(self, name: str) -> Any:
        """Return the root element of a file of XML."""
        try:
            return _etree().fromstring(self._xml(name, LARGEST_TREE), _parser())
        except _etree().XMLSyntaxError as error:
            raise self.damaged(f"'{name}' is not XML: {error}") from None

    def parse(self, name: str, target: Any) -> None:
        """Send the events of a file of XML to a parser target of lxml."""
        parser = _parser(target=target)
        try:
            parser.feed(self._xml(name))
            parser.close()
        except _etree().XMLSyntaxError as error:
            raise self.damaged(f"'{name}' is not XML: {error}") from None

    def page(self, name: str) -> str:
        """Return the text of a file of XHTML in its encoding, which is UTF-8 or UTF-16."""
        content = self._xml(name)
        wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        try:
            return _without_cdata(content.decode("utf-16" if wide else "utf-8-sig"))
        except UnicodeDecodeError as error:
            raise self.damaged(f"'{name}' is not {error.encoding}") from None

    def _xml(self, name: str, most_bytes: int = LARGEST_CONTENT) -> bytes:
        content = self.read(name, most_bytes)
        if b"<!ENTITY" in content.replace(b"\0", b""):  # without the zeros of UTF-16
            raise UnreadableDocumentError(
                f"{self._where}: '{name}' defines XML entities, which can stand for any amount of text or for other "
                "files; it is not read"
            )
        return content

    def damaged(self, problem: str) -> UnreadableDocumentError:
        """Return the error for a damaged document."""
        return UnreadableDocumentError(
            f"{self._where}: is damaged, or not in the format of its name: {problem}"
        )


def _etree() -> Any:
    return importlib.import_module("lxml.etree")


def _parser(**options: Any) -> Any:
    return _etree().XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, **options
    )


def _without_cdata(page: str) -> str:
    """Return a page with the text of its CDATA sections escaped, since a parser of HTML does not know them."""
    first, *others = page.split("<![CDATA[")
    parts = [first]
    for other in others:
        content, end, rest = other.partition("]]>")
        parts.append(html.escape(content, quote=False) + rest if end else other)
    return "".join(parts)
