"""Text extraction from PDF, DOCX and EPUB documents written by other programs."""

import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wholegpt.data.reading.files import ReadingReport, read_documents
from wholegpt.errors import DataError
from wholegpt.settings.schema import DataConfig

ONE = "The first paragraph has some words that fill more than one line of the page, so its printed lines are joined."
TWO = "A second paragraph follows after a space, and it also needs more than a single line to be printed on the page."
VERSES = ("Roses are red,", "violets are blue,", "short lines are verses,", "and so are these two.")


def read(path: Path, **options: Any) -> str:
    (document,) = read_documents(path, DataConfig(**options), ReadingReport())
    return document


def refused(path: Path) -> str:
    with pytest.raises(DataError) as error:
        list(read_documents(path, DataConfig(), ReadingReport()))
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    return str(error.value)


def new_pdf() -> Any:
    fpdf: Any = pytest.importorskip("fpdf")
    document = fpdf.FPDF(format=(420, 595), unit="pt")
    document.set_margin(40)
    document.set_font("Helvetica", size=11)
    document.add_page()
    return document


def add(document: Any, text: str, space: float = 0, size: float = 11) -> None:
    """Print a justified paragraph."""
    document.set_font("Helvetica", size=size)
    document.multi_cell(0, text=text, new_x="LMARGIN", new_y="NEXT", align="J")
    document.ln(space)


def write_pdf(path: Path) -> None:
    document = new_pdf()
    add(document, "A heading", 6, size=18)
    for text in (ONE, TWO):
        add(document, text, 8)
    for verse in VERSES:
        add(document, verse)
    document.add_page()
    add(document, "The last page: naïve café.")
    document.output(str(path))


def write_docx(path: Path) -> None:
    docx: Any = pytest.importorskip("docx")
    document = docx.Document()
    document.add_heading("A title", 0)
    document.add_paragraph(ONE)
    document.add_paragraph(TWO)
    document.add_heading("A heading", 1)
    document.add_paragraph("one", style="List Bullet")
    document.add_paragraph("two", style="List Bullet")
    table = document.add_table(2, 3)
    for row, texts in zip(table.rows, (("", "left", "right"), ("a", "1\n2", "é")), strict=True):
        for cell, text in zip(row.cells, texts, strict=True):
            cell.text = text
    paragraph = document.add_paragraph("a tab\tand a")
    paragraph.add_run().add_break()
    paragraph.add_run("line break")
    document.save(str(path))


CONTAINER = """<?xml version="1.0"?><container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container">
<rootfiles><rootfile full-path="book/package.opf" media-type="application/oebps-package+xml"/></rootfiles>
</container>"""
PAGE = """<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.1//EN" "http://www.w3.org/TR/xhtml11/DTD/xhtml11.dtd">
<html xmlns="http://www.w3.org/1999/xhtml"><head><title>Title</title><script src="a.js"/><style/></head>
<body>{}</body></html>"""


def package(*pages: str, spine: str | None = None) -> str:
    items = "".join(
        f'<item id="i{number}" href="{page}" media-type="application/xhtml+xml"/>'
        for number, page in enumerate(pages)
    )
    order = spine or "".join(f'<itemref idref="i{number}"/>' for number in range(len(pages)))
    return (
        '<package xmlns="http://www.idpf.org/2007/opf" version="3.0"><manifest>'
        f'<item id="css" href="style.css" media-type="text/css"/>{items}</manifest><spine>{order}</spine></package>'
    )


def write_epub(path: Path, files: dict[str, str | bytes]) -> None:
    """Write an EPUB 3.3 archive: the media type first and uncompressed, then the container."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mimetype", "application/epub+zip", zipfile.ZIP_STORED)
        for name, content in ({"META-INF/container.xml": CONTAINER} | files).items():
            archive.writestr(name, content)


BOOK: dict[str, str | bytes] = {
    "book/text/b.xhtml": PAGE.format("<h1>Second</h1><p>It&nbsp;ends &mdash; <i>here</i><br/>and here.</p>"),
    "book/package.opf": package("a%20first.xhtml", "text/b.xhtml"),
    "book/a first.xhtml": PAGE.format("<h1>First</h1><p>It was\n dark.</p><p>And caf&#233;.</p>"),
}

TEXTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a.pdf": (
        write_pdf,
        "\n".join(["A heading", "", ONE, "", TWO, "", *VERSES, "", "The last page: naïve café.", ""]),
    ),
    "a.docx": (
        write_docx,
        "\n".join(
            [
                *("A title", "", ONE, TWO, "", "A heading", "", "one", "two", ""),
                *("\tleft\tright", "a\t1 2\té", "", "a tab\tand a", "line break", ""),
            ]
        ),
    ),
    "a.epub": (
        lambda path: write_epub(path, BOOK),
        "First\n\nIt was dark.\n\nAnd café.\n\nSecond\n\nIt\u00a0ends — here\nand here.\n",
    ),
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_of_a_document(name: str, tmp_path: Path) -> None:
    write, text = TEXTS[name]
    path = tmp_path / name
    write(path)
    assert read(path) == text
    for renamed in ("no suffix", "b.txt"):  # the format is detected by the content
        assert read(path.rename(tmp_path / renamed)) == text
        path = tmp_path / renamed
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read(packed) == text
    packed.rename(tmp_path / "b.gz")
    path.unlink()
    assert read(tmp_path) == text, "in a folder, by the content"


@pytest.mark.parametrize("name", TEXTS)
def test_document_named_as_a_table_is_rejected(name: str, tmp_path: Path) -> None:
    TEXTS[name][0](tmp_path / "a.csv")
    assert "convert it to plain text first" in refused(tmp_path / "a.csv")


def test_hyphenated_words_are_joined(tmp_path: Path) -> None:
    """Words are joined the way the document spells them elsewhere."""
    document = new_pdf()
    for line in ("We saw cooper-", "ation and well-", "known things and unex-", "pected ones.", "The end."):
        document.cell(text=line, new_x="LMARGIN", new_y="NEXT")
    document.ln(20)
    document.cell(text="cooperation, well-known")
    document.output(str(tmp_path / "a.pdf"))
    assert (
        read(tmp_path / "a.pdf")
        .replace(" \n", "\n")
        .startswith("We saw cooperation and well-known things and unex-\npected ones.\nThe end.\n\n")
    )


def test_indented_paragraphs_and_lists_in_a_pdf(tmp_path: Path) -> None:
    document = new_pdf()
    for text in (ONE, TWO):
        document.multi_cell(0, text=f"\u00a0\u00a0\u00a0\u00a0{text}", new_x="LMARGIN", new_y="NEXT")
    for text in (ONE, TWO):
        document.cell(15, text="-")
        document.multi_cell(0, text=text, new_x="LMARGIN", new_y="NEXT")
    document.output(str(tmp_path / "a.pdf"))
    assert read(tmp_path / "a.pdf").split("\n") == [ONE, TWO, f"- {ONE}", f"- {TWO}", ""]


def test_tracked_changes_controls_footnotes_and_styles_of_a_docx(tmp_path: Path) -> None:
    docx: Any = pytest.importorskip("docx")
    shapes: Any = pytest.importorskip("docx.oxml")
    names = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    document = docx.Document()
    style = document.styles.add_style("Überschrift", 1)
    style.base_style = document.styles["Heading 2"]
    paragraph = document.add_paragraph("before ")
    for xml in (
        "<w:ins {}><w:r><w:t>inserted</w:t></w:r></w:ins>",
        "<w:del {}><w:r><w:tab/><w:delText>deleted</w:delText></w:r></w:del>",
        "<w:moveFrom {}><w:r><w:t>moved</w:t></w:r></w:moveFrom>",
        "<w:sdt {}><w:sdtContent><w:r><w:t> control</w:t></w:r></w:sdtContent></w:sdt>",
        "<w:r {}><w:fldChar w:fldCharType='begin'/><w:instrText>PAGE</w:instrText></w:r>",
    ):
        paragraph._p.append(shapes.parse_xml(xml.format(names)))
    document.add_paragraph("own heading", style="Überschrift")
    document.add_paragraph("after")
    document.save(str(tmp_path / "a.docx"))
    with zipfile.ZipFile(tmp_path / "a.docx", "a") as archive:
        archive.writestr(
            "word/footnotes.xml",
            f"<w:footnotes {names}><w:footnote><w:p><w:r><w:t>a note</w:t></w:r></w:p></w:footnote></w:footnotes>",
        )
    assert read(tmp_path / "a.docx") == "before inserted control\n\nown heading\n\nafter\n\na note\n"
