"""Invalid PDF, DOCX and EPUB documents: damaged, encrypted, without text, or malicious."""

import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.data.reading.test_documents import (
    BOOK,
    ONE,
    PAGE,
    TEXTS,
    add,
    new_pdf,
    package,
    refused,
    write_docx,
    write_epub,
    write_pdf,
)
from tests.helpers import Fails
from wholegpt.data.reading.documents import archives, pdf
from wholegpt.data.reading.files import ReadingReport, read_documents
from wholegpt.settings.schema import DataConfig


def scan(path: Path) -> None:
    images: Any = pytest.importorskip("PIL.Image")
    document = new_pdf()
    document.image(images.new("L", (50, 50), 128), 40, 40)
    document.output(str(path))


def encrypted_pdf(path: Path) -> None:
    document = new_pdf()
    add(document, ONE)
    document.set_encryption(owner_password="a", user_password="b")
    document.output(str(path))


def write_bytes(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def truncated(write: Callable[[Path], None]) -> Callable[[Path], None]:
    def both(path: Path) -> None:
        write(path)
        path.write_bytes(path.read_bytes()[:1000])

    return both


def zipped(files: dict[str, str | bytes], **options: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", **{"compression": zipfile.ZIP_DEFLATED, **options}) as archive:
            for name, content in files.items():
                archive.writestr(name, content)

    return write


RELATIONSHIPS = (
    '<Relationships><Relationship Type="x/officeDocument" Target="/word/document.xml"/></Relationships>'
)
LAUGHS = "<!DOCTYPE a [<!ENTITY a 'ha'><!ENTITY b '&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;'>]>"
FILE = "<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/hostname'>]>"
PROTECTED = (
    '<encryption><EncryptedData><CipherReference URI="book/text/b.xhtml"/></EncryptedData></encryption>'
)


def word(document: str | bytes, **options: Any) -> Callable[[Path], None]:
    return zipped({"_rels/.rels": RELATIONSHIPS, "word/document.xml": document}, **options)


def book(**changes: str | bytes) -> Callable[[Path], None]:
    files = BOOK | {f"book/{name.replace('_', '.')}": content for name, content in changes.items()}
    return lambda path: write_epub(path, files)


def password_bit(path: Path) -> None:
    """Set the encryption flag of all files in an archive, as zip programs do."""
    write_epub(path, BOOK)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0"))


BAD: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "scan": (
        "a.pdf",
        scan,
        "has no text; if its pages are images, recognize their text first, with a program for OCR",
    ),
    "no text in a book": (
        "a.epub",
        book(package_opf=package("c.xhtml"), c_xhtml=PAGE.format("<img src='a.png'/>")),
        "has no text",
    ),
    "password": ("a.pdf", encrypted_pdf, "is encrypted; save a copy without a password or copy protection"),
    "password of Word": (
        "a.docx",
        write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" * 99),
        "is encrypted",
    ),
    "password of zip": ("a.epub", password_bit, "is encrypted"),
    "copy protection": (
        "a.epub",
        lambda path: write_epub(path, {**BOOK, "META-INF/encryption.xml": PROTECTED}),
        "is encrypted",
    ),
    "cut pdf": ("a.pdf", write_bytes(b"%PDF-1.7\n" + bytes(99)), "is damaged"),
    "cut docx": ("a.docx", truncated(write_docx), "is damaged"),
    "cut epub": ("a.epub", truncated(lambda path: write_epub(path, BOOK)), "is damaged"),
    "text named pdf": (
        "a.pdf",
        write_bytes(b"text"),
        "is damaged, or not a PDF document",
    ),
    "text named docx": ("a.docx", write_bytes(b"text"), "has no list of files"),
    "empty": ("a.epub", write_bytes(b""), "has no list of files"),
    "no document": ("a.docx", zipped({"_rels/.rels": RELATIONSHIPS}), "'word/document.xml' is missing"),
    "no page": ("a.epub", book(package_opf=package("none.xhtml")), "'book/none.xhtml' is missing"),
    "no item": ("a.epub", book(package_opf=package(spine='<itemref idref="x"/>')), "names 'x', which"),
    "no package": (
        "a.epub",
        lambda path: write_epub(path, {"META-INF/container.xml": "<container/>"}),
        "names no package",
    ),
    "outside": ("a.epub", book(package_opf=package("../../../etc/passwd")), "is missing"),
    "not XML": ("a.docx", word("<a><b></a>"), "'word/document.xml' is not XML"),
    "not XML in a book": ("a.epub", book(package_opf="<a"), "'book/package.opf' is not XML"),
    "not UTF-8": (
        "a.epub",
        book(package_opf=package("c.xhtml"), c_xhtml=b"<p>\xe9</p>"),
        "'book/c.xhtml' is not utf-8",
    ),
    "billion laughs": ("a.docx", word(f"{LAUGHS}<a>&b;</a>"), "defines XML entities"),
    "billion laughs in UTF-16": (
        "a.docx",
        word(f"{LAUGHS}<a>&b;</a>".encode("utf-16")),
        "defines XML entities",
    ),
    "external entity": ("a.docx", word(f"{FILE}<a>&b;</a>"), "defines XML entities"),
    "entities in a package": (
        "a.epub",
        book(package_opf=LAUGHS + package("a.xhtml")),
        "defines XML entities",
    ),
    "entities in a page": (
        "a.epub",
        book(package_opf=package("c.xhtml"), c_xhtml=f"{FILE}<p>&b;</p>"),
        "defines XML entities",
    ),
    "other compression": (
        "a.docx",
        word("<a/>", compression=zipfile.ZIP_LZMA),
        "in a way that documents do not use",
    ),
    "zip bomb": ("a.docx", word(b" " * 2**20), "unpacks to more than 100,000 bytes at 'word/document.xml'"),
    "many small pages": (
        "a.epub",
        book(
            package_opf=package(*(f"{n}.xhtml" for n in range(30))),
            **{f"{n}_xhtml": " " * 9000 for n in range(30)},
        ),
        "unpacks to more than 100,000 bytes",
    ),
    "large tree": ("a.epub", book(package_opf=" " * 60_000), "unpacks to more than 50,000 bytes"),
    "many files": ("a.docx", zipped({f"{n}": "" for n in range(300)}), "holds more files than any document"),
}


@pytest.mark.parametrize("case", BAD)
def test_invalid_documents_are_rejected(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pypdfium2")
    monkeypatch.setattr(archives, "LARGEST_CONTENT", 100_000)
    monkeypatch.setattr(archives, "LARGEST_TREE", 50_000)
    monkeypatch.setattr(archives, "LARGEST_DIRECTORY", 10_000)
    name, write, message = BAD[case]
    write(tmp_path / name)
    assert message in refused(tmp_path / name)


def test_zip_bomb_is_rejected(tmp_path: Path) -> None:
    word(b" " * (archives.LARGEST_CONTENT + 1))(tmp_path / "a.docx")
    assert (tmp_path / "a.docx").stat().st_size < 2**19
    assert "unpacks to more than 268,435,456 bytes" in refused(tmp_path / "a.docx")


def pdf_of_forms(levels: int) -> bytes:
    """Return a PDF page that draws a form ten times, which draws another ten times, and so on."""
    resources = "/Resources<</XObject<</X {} 0 R>>>>"
    draws = "<<{}/Length 60>>stream\n" + "/X Do " * 10 + "\nendstream"
    form = "/Type/XObject/Subtype/Form/BBox[0 0 9 9]"
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        "<</Type/Pages/Count 1/Kids[3 0 R]>>",
        f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Contents 4 0 R{resources.format(5)}>>",
        draws.format(""),
        *(draws.format(form + resources.format(number + 6)) for number in range(levels)),
        f"<<{form}/Length 0>>stream\n\nendstream",
    ]
    body = "".join(f"{number} 0 obj\n{one}\nendobj\n" for number, one in enumerate(objects, 1))
    return f"%PDF-1.4\n{body}trailer<</Root 1 0 R>>\n%%EOF".encode()


def test_pdf_that_takes_too_long_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pypdfium2")
    monkeypatch.setattr(pdf, "MOST_SECONDS", 1)
    (tmp_path / "a.pdf").write_bytes(pdf_of_forms(1))
    assert "has no text" in refused(tmp_path / "a.pdf")
    (tmp_path / "a.pdf").write_bytes(pdf_of_forms(20))
    assert "PDFium fails on it, or needs more than 1 seconds" in refused(tmp_path / "a.pdf")


def test_document_with_too_much_text_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wholegpt.data.reading.decoding.LONGEST_RECORD", 300)
    write_pdf(tmp_path / "a.pdf")
    assert "has more than 300 characters; it is not read" in refused(tmp_path / "a.pdf")
    write_epub(tmp_path / "a.epub", {**BOOK, "book/a first.xhtml": PAGE.format("<p>long " * 300)})
    assert "has more than 300 characters; it is not read" in refused(tmp_path / "a.epub")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    path.mkdir()
    scan(path / "scan.pdf")
    encrypted_pdf(path / "secret.pdf")
    write_docx(path / "good.docx")
    (path / "a.txt").write_text("a text\n")
    return path


def test_bad_documents_of_a_folder_are_listed_in_one_message(folder: Path) -> None:
    message = refused(folder)
    assert message.startswith(f"{folder}: 2 files cannot be read: {folder / 'scan.pdf'}: has no text")
    assert f"{folder / 'secret.pdf'}: is encrypted" in message
    assert message.endswith("--on-bad-text skip leaves out files that are not text")


def test_bad_documents_of_a_folder_can_be_skipped(folder: Path) -> None:
    report = ReadingReport()
    documents = list(read_documents(folder, DataConfig(on_bad_text="skip"), report))
    assert documents == ["a text\n", TEXTS["a.docx"][1]]
    assert report.skipped == {"documents that cannot be read": 2}
    assert "scan.pdf: has no text" in report.lines()[1] and "secret.pdf: is encrypted" in report.lines()[1]


def test_missing_library_is_reported_with_the_install_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fails: Fails
) -> None:
    (folder / "scan.pdf").unlink()
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    monkeypatch.setitem(sys.modules, "lxml.etree", None)
    monkeypatch.setitem(sys.modules, "lxml", None)
    message = "is not installed; pip install 'wholegpt[documents]'"
    assert f"{folder / 'secret.pdf'}: pypdfium2 {message}" in fails(
        "data", "stats", str(folder / "secret.pdf")
    )
    assert f"{folder / 'good.docx'}: lxml {message}" in refused(folder)
    report = ReadingReport()
    assert list(read_documents(folder, DataConfig(on_bad_text="skip"), report)) == ["a text\n"]
    assert report.skipped == {"documents that cannot be read": 2}


def test_fields_and_encodings_are_rejected_for_documents(tmp_path: Path, fails: Fails) -> None:
    path = tmp_path / "a.epub"
    write_epub(path, BOOK)
    control = ("train", str(path), "--data.control", "x", "--out", str(tmp_path / "run"))
    assert "has no fields for data.control" in fails(*control)
    assert "--encoding has no effect" in fails("data", "stats", str(path), "--encoding", "latin-1")


def test_document_from_standard_input(tmp_path: Path) -> None:
    write_epub(tmp_path / "a.epub", BOOK)
    content = (tmp_path / "a.epub").read_bytes()
    command = [sys.executable, "-m", "wholegpt", "data", "stats", "-", "--json"]
    result = subprocess.run(command, input=content, capture_output=True, check=True)
    assert b'"documents": 1' in result.stdout


def test_cdata_sections_in_an_epub(tmp_path: Path) -> None:
    page = PAGE.format("<p>a <![CDATA[b < c]]> d</p>")
    write_epub(tmp_path / "a.epub", BOOK | {"book/text/b.xhtml": page})
    (text,) = read_documents(tmp_path / "a.epub", DataConfig(), ReadingReport())
    assert text.endswith("\na b < c d\n")


def test_epub_entry_without_a_name_is_rejected(tmp_path: Path) -> None:
    described = str(BOOK["book/package.opf"]).replace("<spine>", "<spine><itemref/>")
    write_epub(tmp_path / "a.epub", BOOK | {"book/package.opf": described})
    assert "its reading order names ''" in refused(tmp_path / "a.epub")


def test_text_extraction_takes_linear_time(tmp_path: Path) -> None:
    """A word of 300,000 letters, and a table cell with 3,000 paragraphs."""
    started = time.process_time()
    assert pdf._with_whole_words("x" * 300_000) == "x" * 300_000
    cell = "<w:p><w:r><w:t>one two</w:t></w:r></w:p>" * 3_000
    word(f"<w:tbl><w:tr><w:tc>{cell}</w:tc></w:tr></w:tbl>")(tmp_path / "a.docx")
    (text,) = read_documents(tmp_path / "a.docx", DataConfig(), ReadingReport())
    assert text == " ".join(["one two"] * 3_000) + "\n"
    assert time.process_time() - started < 5
