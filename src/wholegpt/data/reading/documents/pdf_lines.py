"""Print the lines of a PDF document with their positions. ``pdf`` runs this program in a process of its own,
with limits of time and memory: a few bytes can occupy PDFium for any time, and a damaged document may crash it.

The document is standard input. The output is one JSON object per page, or per problem: ``lines``, the arguments
of ``pdf.Line``, or ``encrypted``, ``damaged`` or ``too_long``, a message.

It imports only pypdfium2 and the standard library, since each document starts it.
"""

import contextlib
import ctypes
import json
import re
import resource
import signal
import sys
from collections.abc import Iterator
from typing import Any

HYPHEN = "\ufffe"
"""PDFium's character for the hyphen of a word that is divided at the end of a line."""
LINE_END = re.compile(f"\r\n|{HYPHEN}")
WIDE = re.compile(r"[\u1100-\u11ff\u2e80-\ua4cf\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")
"""Characters that are written without spaces between words."""


def pages(stream: Any, most_characters: int) -> Iterator[dict[str, Any]]:
    """Yield the lines of each page, or a problem."""
    import pypdfium2
    import pypdfium2.raw as pdfium

    characters = 0
    try:
        with pypdfium2.PdfDocument(stream) as document:
            for page in document:
                text_page = page.get_textpage()
                characters += text_page.count_chars()
                if characters > most_characters:
                    yield {"too_long": f"has more than {most_characters:,} characters"}
                    return
                yield {"lines": list(lines(text_page, pdfium))}
                text_page.close()
                page.close()
    except pypdfium2.PdfiumError as error:
        password = getattr(error, "err_code", None) == pdfium.FPDF_ERR_PASSWORD
        yield {"encrypted" if password else "damaged": str(error)}


def lines(text_page: Any, pdfium: Any) -> Iterator[tuple[str, float, float, float, float, float, bool]]:
    """Yield the printed lines of a page in the order of the document, which usually is the reading order."""
    text = text_page.get_text_range()

    def extent(position: int) -> tuple[float, float, float, float]:
        """Return left edge, right edge, baseline and font size of the character at a position in the text."""
        index = pdfium.FPDFText_GetCharIndexFromTextIndex(text_page, position)
        left, right, bottom, top, x, y = (ctypes.c_double() for _ in range(6))
        pdfium.FPDFText_GetCharBox(text_page, index, left, right, bottom, top)
        pdfium.FPDFText_GetCharOrigin(text_page, index, x, y)
        return left.value, right.value, y.value, pdfium.FPDFText_GetFontSize(text_page, index)

    at = 0
    for end in [*LINE_END.finditer(text), None]:
        stop = end.start() if end else len(text)
        line = text[at:stop]
        words = line.split(maxsplit=1)
        if words:
            start = at + len(line) - len(line.lstrip())
            first = 1 if WIDE.match(words[0]) else len(words[0])
            left, _, baseline, size = extent(start)
            right = extent(at + len(line.rstrip()) - 1)[1]
            first_word = extent(start + first - 1)[1] - left
            hyphen = bool(end and end[0] == HYPHEN)
            yield " ".join(line.split()), left, right, baseline, size or 1.0, first_word, hyphen
        at = end.end() if end else stop


def main(seconds: int, most_bytes: int, most_characters: int) -> None:
    """Write the pages of standard input to standard output."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    with contextlib.suppress(ValueError, OSError):  # macOS has no limit of memory
        resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    with open(0, "rb") as stream:
        for page in pages(stream, most_characters):
            sys.stdout.write(json.dumps(page) + "\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
