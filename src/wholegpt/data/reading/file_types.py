"""File types: text formats by the suffix, binary formats by the first bytes, documents by either."""

import codecs
import re
from pathlib import Path

from wholegpt.errors import DataError

COMPRESSED = {".gz": "gzip", ".zst": "Zstandard", ".bz2": "bzip2", ".xz": "xz"}
JSON = (".jsonl", ".ndjson", ".json")
SEPARATED = (".csv", ".tsv")
PARQUET = (".parquet", ".pq")
TABLES = (*SEPARATED, *JSON, *PARQUET)
HTML = (".html", ".htm", ".xhtml")
NOTEBOOK = ".ipynb"
DOCUMENTS = (".pdf", ".docx", ".epub")
OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
"""First bytes of older Office documents, and of encrypted ones."""
SNIFFED_BYTES = 8192
MOST_CONTROL = 0.1
"""Largest share of control characters at the start of a text; with more, the file is binary."""

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f-\x84\x86-\x9f]")
_WORD_PART = re.compile(rb"PK\x03\x04.{26}word/", re.DOTALL)
"""The start of a file in the folder ``word`` of a zip archive."""
_MARKS = (
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
    (b"\xef\xbb\xbf", "utf-8"),
)
"""Byte-order marks, longer ones first."""

_UNPACK = "unpack it and name the folder"
_CONVERT = "convert it to plain text first"
_NO_TEXT = "it holds no text to read"
_MODEL = "it holds weights, not text; a model is named where a model is asked for"
_SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"%PDF-", "a PDF document", f"{_CONVERT} (pdftotext)"),
    (0, b"{\\rtf", "an RTF document", _CONVERT),
    (0, b"%!PS-Adobe-", "a PostScript document", f"{_CONVERT} (ps2ascii)"),
    (0, OFFICE, "an Office document (.doc, .xls or .ppt)", _CONVERT),
    (30, b"mimetypeapplication/epub+zip", "an EPUB book", _CONVERT),
    (
        30,
        b"mimetypeapplication/vnd.oasis.opendocument",
        "an OpenDocument file (.odt, .ods or .odp)",
        _CONVERT,
    ),
    (0, b"PK\x03\x04", "a zip archive", _UNPACK),
    (0, b"PK\x05\x06", "a zip archive", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (0, b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"\x04\x22\x4d\x18", "LZ4-compressed data", "decompress it first"),
    (
        0,
        b"version https://git-lfs.github.com/spec/",
        "a Git LFS pointer, not the file itself",
        "run git lfs pull",
    ),
    (0, b"\x89PNG", "a PNG image", _NO_TEXT),
    (0, b"\xff\xd8\xff", "a JPEG image", _NO_TEXT),
    (0, b"GIF87a", "a GIF image", _NO_TEXT),
    (0, b"GIF89a", "a GIF image", _NO_TEXT),
    (0, b"II*\0", "a TIFF image", _NO_TEXT),
    (0, b"MM\0*", "a TIFF image", _NO_TEXT),
    (8, b"WEBP", "a WebP image", _NO_TEXT),
    (8, b"WAVE", "an audio recording (WAV)", _NO_TEXT),
    (0, b"ID3", "an audio recording (MP3)", _NO_TEXT),
    (0, b"\xff\xfb", "an audio recording (MP3)", _NO_TEXT),
    (0, b"fLaC", "an audio recording (FLAC)", _NO_TEXT),
    (0, b"OggS", "an audio or video recording (Ogg)", _NO_TEXT),
    (4, b"ftypheic", "a HEIC image", _NO_TEXT),
    (4, b"ftypmif1", "a HEIC image", _NO_TEXT),
    (4, b"ftypavif", "an AVIF image", _NO_TEXT),
    (4, b"ftyp", "an audio or video recording (MP4)", _NO_TEXT),
    (0, b"\x1aE\xdf\xa3", "a video recording (Matroska)", _NO_TEXT),
    (0, b"SQLite format 3\0", "an SQLite database", "export its table to .csv or .jsonl"),
    (0, b"\x7fELF", "an executable", _NO_TEXT),
    (0, b"\xcf\xfa\xed\xfe", "an executable", _NO_TEXT),
    (0, b"\xca\xfe\xba\xbe", "an executable", _NO_TEXT),
    (0, b"\0asm", "an executable (WebAssembly)", _NO_TEXT),
    (0, b"GGUF", "a model in GGUF", _MODEL),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", "export its table to .csv or .jsonl"),
    (0, b"\x93NUMPY", "a NumPy array", "write its texts to .csv or .jsonl"),
    (0, b"ARROW1", "an Arrow file", "write it as .parquet"),
    (0, b"ORC", "an ORC file", "write it as .parquet"),
    (0, b"Obj\x01", "an Avro file", "write it as .parquet"),
    (0, b"bplist00", "a binary property list", _NO_TEXT),
)
"""Offset and bytes of a signature, the format, and advice."""
_CERTAIN = (b"%PDF-", b"{\\rtf", b"%!PS-Adobe-", b"version https://git-lfs.github.com/spec/")
"""Text-only signatures that are certain without a control character: no other text starts with them."""
_IN_ZIP = (
    (b"word/", "a Word document (.docx)", _CONVERT),
    (b"xl/", "an Excel workbook (.xlsx)", "save its sheet as .csv"),
    (b"ppt/", "a PowerPoint presentation (.pptx)", _CONVERT),
    (b"data.pkl", "a PyTorch file", _MODEL),
    (b".npy", "an archive of NumPy arrays", "write its texts to .csv or .jsonl"),
)
"""Names inside zip archives that identify the format."""
_COMPRESSIONS = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"BZh": ".bz2", b"\xfd7zXZ\0": ".xz"}


def check_encoding(encoding: str) -> None:
    """Raise ``DataError`` for a character encoding that Python does not know."""
    try:
        found = codecs.lookup(encoding)
        "".encode(encoding)  # rejects codecs from bytes to bytes, such as hex and zlib
        known = found.incrementaldecoder is not None
    except (LookupError, ValueError, TypeError):
        known = False
    if not known:
        raise DataError(f"data.encoding is '{encoding}', which Python does not know; try utf-8 or latin-1")


def file_format(path: Path) -> str:
    """Return the lower-case suffix of a file's format; a compression suffix after it is ignored."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def document_format(start: bytes) -> str:
    """Return the suffix of a PDF, DOCX or EPUB document with these first bytes; empty for anything else."""
    if start.startswith(b"%PDF-"):
        return ".pdf"
    if start.startswith(b"PK\x03\x04"):
        if start[30:].startswith(b"mimetypeapplication/epub+zip"):
            return ".epub"
        if _WORD_PART.search(start):
            return ".docx"
    return ""


def is_table(path: Path) -> bool:
    """Return whether a file's name is that of a table."""
    return file_format(path) in TABLES


def compression(start: bytes) -> str:
    """Return the suffix of the compression of a file with these first bytes; empty if it is not compressed."""
    for magic, suffix in _COMPRESSIONS.items():
        if start.startswith(magic) and (
            suffix != ".bz2" or start[4:10] in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")
        ):
            return suffix
    return ""


def byte_order_mark(start: bytes) -> str:
    """Return the encoding of the byte-order mark at the start of a file; empty if there is none."""
    return next((encoding for mark, encoding in _MARKS if start.startswith(mark)), "")


def binary_format(start: bytes) -> str:
    """Return the binary format of a file with these first bytes and advice; empty if it may be text."""
    for at, magic, name, advice in _SIGNATURES:
        if start[at : at + len(magic)] != magic:
            continue
        if magic.isascii() and magic.decode().isprintable() and magic not in _CERTAIN and b"\0" not in start:
            continue  # ordinary text that starts with these letters
        inside = [(n, a) for mark, n, a in _IN_ZIP if mark in start] if magic == b"PK\x03\x04" else []
        name, advice = (inside or [(name, advice)])[0]
        return f"is {name}; {advice}"
    if start.startswith((b"PAR1\x15", b"PAR1\x19")):
        return "is a Parquet file; give it a name that ends in .parquet"
    if start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5" and len(start) > 1:
        return "is a Python pickle, which is never opened; write its texts to .jsonl"
    if start[8:10] == b'{"' and int.from_bytes(start[:8], "little") < 2**32:
        return f"is a safetensors file; {_MODEL}"
    if start.startswith(b"MZ") and b"\0" in start[:128]:
        return f"is an executable; {_NO_TEXT}"
    if start.startswith(b"BM") and start[6:10] == b"\0\0\0\0":
        return f"is a BMP image; {_NO_TEXT}"
    if suffix := compression(start):
        return (
            f"is {COMPRESSED[suffix]}-compressed, which its name does not say; give it a name that ends in {suffix}, "
            "or decompress it first"
        )
    return ""


class NotTextError(DataError):
    """A file is not text in the encoding that was asked for. ``data.on_bad_text`` may skip it in a folder."""


class OtherEncodingError(NotTextError):
    """A file begins like text in another encoding than the one that was asked for."""


class UndecodableError(DataError):
    """A file has bytes that are not text in the encoding that was asked for."""


class UnreadableDocumentError(NotTextError):
    """A document is damaged, encrypted, too large or without text, or the library that reads it is missing."""


def encrypted(where: str) -> UnreadableDocumentError:
    """Return the error for an encrypted document."""
    return UnreadableDocumentError(
        f"{where}: is encrypted; save a copy without a password or copy protection"
    )


def check_text(start: bytes, encoding: str, where: str) -> None:
    """Raise ``NotTextError`` if the first bytes of a file are a binary format or not text in ``encoding``."""
    if problem := binary_format(start):
        raise NotTextError(f"{where}: {problem}")
    marked = byte_order_mark(start)
    if marked and not _fits(marked, encoding, start):
        advice = f"give --encoding {marked}" if marked != "utf-8" else "leave --encoding out"
        raise OtherEncodingError(
            f"{where}: starts with the byte-order mark of {marked.upper()}, so it is not {encoding}; {advice}"
        )
    if not is_binary(start, encoding):
        return
    if wide := _unmarked_utf16(start):
        raise OtherEncodingError(
            f"{where}: looks like UTF-16 without a byte-order mark; try --encoding {wide}"
        )
    if b"\0" in start or _decodes(start, encoding):
        wide = "utf" in encoding.lower() and "8" not in encoding
        found = "NUL bytes" if b"\0" in start else "many control characters"
        advice = "; for UTF-16 give --encoding utf-16-le or utf-16-be" if b"\0" in start and not wide else ""
        raise NotTextError(f"{where}: holds {found}, so it is not a text file{advice}")


def looks_like_text(start: bytes, encoding: str, named_text: bool = False) -> bool:
    """Return whether the first bytes of a file are text in ``encoding``, or in UTF-16 or UTF-32 with a
    byte-order mark.

    A file whose name marks it as text (``named_text``) may be in another encoding.
    """
    if binary_format(start):
        return False
    marked = byte_order_mark(start)
    if marked and not _fits(marked, encoding, start):
        return _decodes(start, marked) and not is_binary(start, marked)
    readable = named_text or _decodes(start, encoding)
    return bool(_unmarked_utf16(start)) or (readable and not is_binary(start, encoding))


def is_binary(start: bytes, encoding: str) -> bool:
    """Return whether there are more control characters than in text; undecodable bytes alone do not count."""
    if _decodes(start, encoding):
        text = codecs.getincrementaldecoder(encoding)().decode(start)
        return len(_CONTROL.findall(text)) > MOST_CONTROL * len(text)
    return len(_CONTROL.findall(start.decode("ascii", "ignore"))) > MOST_CONTROL / 2 * len(start)


def _decodes(start: bytes, encoding: str) -> bool:
    try:
        codecs.getincrementaldecoder(encoding)().decode(start)
    except UnicodeError:
        return False
    return True


def _fits(marked: str, encoding: str, start: bytes) -> bool:
    """Return whether a byte-order mark fits ``encoding``, including an explicit byte order."""
    name = codecs.lookup(encoding).name
    orders = {"-le": b"\xff", "-be": b"\xfe\0"}
    return name.startswith(marked) and start[:1] in orders.get(name[-3:], start[:1])


def _unmarked_utf16(start: bytes) -> str:
    """Return the byte order of UTF-16 text that is nearly all Latin-1; empty for anything else."""
    pairs = start[: len(start) // 2 * 2]
    for encoding, high in (("utf-16-le", pairs[1::2]), ("utf-16-be", pairs[::2])):
        if len(high) > 3 and high.count(0) > 0.9 * len(high):
            text = pairs.decode(encoding, "replace")
            if not _CONTROL.search(text) and "\ufffd" not in text:
                return encoding
    return ""
