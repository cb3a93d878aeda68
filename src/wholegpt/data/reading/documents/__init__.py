"""The text of documents: PDF, DOCX and EPUB files."""

from collections.abc import Iterator

from wholegpt.data.reading import decoding as formats
from wholegpt.data.reading.decoding import Piece, Source, checked, refuse_control
from wholegpt.data.reading.documents.epub import book_text
from wholegpt.data.reading.documents.pdf import pdf_text
from wholegpt.data.reading.documents.word import word_text
from wholegpt.data.reading.file_types import UnreadableDocumentError

READERS = {".pdf": pdf_text, ".docx": word_text, ".epub": book_text}


def read_document(source: Source) -> Iterator[Piece]:
    """Yield one document: the text of a PDF, DOCX or EPUB file.

    Raises ``UnreadableDocumentError`` for a file that is damaged, encrypted, too large or without text, and
    ``ModuleNotFoundError`` without the library that reads it.
    """
    refuse_control(source)
    text = READERS[source.format](source.stream, source.where)
    if len(text) > formats.LONGEST_RECORD:
        raise UnreadableDocumentError(
            f"{source.where}: has more than {formats.LONGEST_RECORD:,} characters; it is not read"
        )
    if not text:
        raise UnreadableDocumentError(
            f"{source.where}: has no text; if its pages are images, recognize their text first, with a program for OCR"
        )
    yield from checked(source, iter((Piece(text),)))
