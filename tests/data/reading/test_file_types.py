"""File type detection: advice for binary formats, encodings, and the text of HTML pages and notebooks."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import TINY, Fails
from wholegpt.cli import main
from wholegpt.data.reading.files import ReadingReport, read_documents
from wholegpt.errors import DataError
from wholegpt.settings.schema import DataConfig


def archive(*names: str, first: tuple[str, str] | None = None) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        if first:
            file.writestr(*first)
        for name in names:
            file.writestr(name, "content")
    return content.getvalue()


def tar() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        file.addfile(tarfile.TarInfo("a.txt"))
    return content.getvalue()


TEXT = b"some text that is long enough " * 20
FILES: dict[str, tuple[bytes, str]] = {
    "a.txt": (gzip.compress(TEXT), "is gzip-compressed, which its name does not say"),
    "b.txt": (bz2.compress(TEXT), "is bzip2-compressed"),
    "c.txt": (lzma.compress(TEXT), "is xz-compressed"),
    "d.zip": (archive("a.txt"), "is a zip archive; unpack it"),
    "d.7z": (b"7z\xbc\xaf\x27\x1c\0\4" + bytes(range(200)), "is a 7z archive"),
    "d.tar": (tar(), "is a tar archive"),
    "d.tar.gz": (gzip.compress(tar()), "is a tar archive"),
    "e.pdf": (
        b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<< /Type /Catalog >>\nendobj\n" * 9,
        "is damaged, or not a PDF document",
    ),
    "f.docx": (archive("[Content_Types].xml", "word/document.xml"), "'_rels/.rels' is missing"),
    "f.xlsx": (archive("[Content_Types].xml", "xl/workbook.xml"), r"is an Excel workbook"),
    "f.epub": (archive("a.xhtml", first=("mimetype", "application/epub+zip")), "container.xml' is missing"),
    "f.odt": (
        archive("content.xml", first=("mimetype", "application/vnd.oasis.opendocument.text")),
        "is an OpenDocument",
    ),
    "f.doc": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "is an Office document"),
    "f.ps": (b"%!PS-Adobe-3.0\n%%Title: some text", "is a PostScript document"),
    "f.rtf": (b"{\\rtf1\\ansi some text}", "is an RTF document"),
    "g.png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is a PNG image"),
    "g.jpg": (b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(range(100)), "is a JPEG image"),
    "g.gif": (b"GIF89a\x01\0\x01\0\x80\0\0", "is a GIF image"),
    "g.mp3": (b"ID3\4\0\0\0\0\0\0", "is an audio recording"),
    "h.db": (b"SQLite format 3\0" + bytes(100), "is an SQLite database"),
    "h.exe": (b"MZ\x90\0\3\0\0\0" + bytes(100), "is an executable"),
    "h": (b"\x7fELF\2\1\1" + bytes(100), "is an executable"),
    "i.pkl": (pickle.dumps({"text": "x"}), "is a Python pickle"),
    "i.safetensors": (
        struct.pack("<Q", 20) + b'{"a": {"dtype": "F32"}}' + bytes(50),
        "is a safetensors file",
    ),
    "i.gguf": (b"GGUF\3\0\0\0" + bytes(50), "is a model in GGUF"),
    "i.pt": (archive("archive/data.pkl"), "is a PyTorch file"),
    "j.csv": (b"PAR1\x15\0" + bytes(50), "is a Parquet file"),
    "k.jsonl": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
        "is a Git LFS pointer",
    ),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_binary_files_are_rejected_with_advice(name: str, encoding: str, tmp_path: Path) -> None:
    content, message = FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as refused:
        list(read_documents(tmp_path / name, DataConfig(encoding=encoding), ReadingReport()))
    assert "latin-1" not in str(refused.value)


def test_binary_files_in_a_folder_are_skipped_and_listed(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("GIF89a is a format, as are GGUF, ORC and ID3")
    for name in ("f.xlsx", "f.rtf", "i.pkl", "h"):
        (tmp_path / name).write_bytes(FILES[name][0])
    report = ReadingReport()
    assert list(read_documents(tmp_path, DataConfig(encoding="latin-1"), report)) == [
        "GIF89a is a format, as are GGUF, ORC and ID3"
    ]
    assert report.skipped == {f"binary ({kind})": 1 for kind in (".xlsx", ".rtf", ".pkl", "no suffix")}
    assert any("f.xlsx" in line for line in report.lines())


@pytest.mark.parametrize(
    ("content", "encoding", "message"),
    [
        ("text é".encode("utf-16"), "utf-8", "--encoding utf-16"),
        ("text é".encode("utf-32"), "utf-8", "--encoding utf-32"),
        (b"\xfe\xff" + "text".encode("utf-16-be"), "latin-1", "--encoding utf-16"),
        (b"\xfe\xff" + "text".encode("utf-16-be"), "utf-16-le", "--encoding utf-16"),
        ("only letters here".encode("utf-16-le"), "utf-8", "--encoding utf-16-le"),
        ("only letters here".encode("utf-16-be"), "utf-8", "--encoding utf-16-be"),
    ],
)
def test_encodings_indicated_by_the_content(
    content: bytes, encoding: str, message: str, tmp_path: Path
) -> None:
    for path in (tmp_path / "a.txt", tmp_path):
        (tmp_path / "a.txt").write_bytes(content)
        with pytest.raises(DataError, match=message):
            list(read_documents(path, DataConfig(encoding=encoding), ReadingReport()))


def test_utf_8_byte_order_mark_overrides_the_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("text é".encode("utf-8-sig"))
    with pytest.raises(DataError, match="leave --encoding out"):
        list(read_documents(tmp_path / "a.txt", DataConfig(encoding="latin-1"), ReadingReport()))
    assert list(read_documents(tmp_path, DataConfig(encoding="latin-1"), ReadingReport())) == ["text é"]


def test_utf_16_without_a_byte_order_mark_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(("слово и дело " * 40).encode("utf-16-le"))
    with pytest.raises(DataError, match="for UTF-16 give --encoding utf-16-le or utf-16-be"):
        list(read_documents(tmp_path / "a.txt", DataConfig(), ReadingReport()))


def test_position_of_a_nul_character_is_in_bytes(tmp_path: Path) -> None:
    text = 5000 * "ab" + "\0c"
    (tmp_path / "a.txt").write_bytes(text.encode("utf-16"))
    with pytest.raises(DataError, match="holds NUL characters, the first at byte 20002; "):
        list(read_documents(tmp_path / "a.txt", DataConfig(encoding="utf-16"), ReadingReport()))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32", "utf-16-le", "utf-16-be"])
def test_byte_order_mark_is_not_part_of_the_text(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufefftext".encode(encoding.removesuffix("-sig")))
    if encoding in ("utf-16", "utf-32"):
        (tmp_path / "a.txt").write_bytes("text".encode(encoding))
    config = DataConfig(encoding=encoding)
    assert list(read_documents(tmp_path / "a.txt", config, ReadingReport())) == ["text"]


def test_latin_1_is_not_suggested_for_random_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(byte for byte in os.urandom(20_000) if byte))
    with pytest.raises(DataError) as refused:
        list(read_documents(tmp_path / "a.bin", DataConfig(), ReadingReport()))
    assert "latin-1" not in str(refused.value)
    with pytest.raises(DataError, match="control characters, so it is not a text file"):
        list(read_documents(tmp_path / "a.bin", DataConfig(encoding="latin-1"), ReadingReport()))


PAGE = """<!DOCTYPE html><html><head><title>Seite &amp; Titel</title><style>p {color: red}</style>
<script>if (a < b) document.write("<p>no</p>")</script></head><body><h1>Caf&eacute;</h1>
<p>A <b>bold</b>ness,
   on one line<br>and another.<ul><li>one <li>two</ul><pre>
def f():
    return 1
</pre><table><tr><td>a</td><td>b</td></tr><tr><td>c<td>d</table><!-- no --></body></html>"""


def test_text_of_html_pages(tmp_path: Path) -> None:
    pytest.importorskip("lxml")
    (tmp_path / "a.html").write_text(PAGE)
    (tmp_path / "b.htm.gz").write_bytes(gzip.compress(PAGE.encode("utf-16")))
    (tmp_path / "c.txt").write_text(PAGE)
    (document,) = read_documents(tmp_path / "a.html", DataConfig(), ReadingReport())
    assert document.split("\n") == [
        *("Seite & Titel", "", "Café", "", "A boldness, on one line", "and another.", ""),
        *("one", "two", "", "", "def f():", "    return 1", "", "a\tb", "c\td", ""),
    ]
    config = DataConfig(encoding="utf-16")
    assert list(read_documents(tmp_path / "b.htm.gz", config, ReadingReport())) == [document]
    assert list(read_documents(tmp_path / "c.txt", DataConfig(), ReadingReport())) == [PAGE]
    for empty in ("", " ", "<!-- nothing -->", "<p>", "<script>x</script>"):
        (tmp_path / "a.html").write_text(empty)
        assert not list(read_documents(tmp_path / "a.html", DataConfig(), ReadingReport()))


def test_deeply_nested_html(tmp_path: Path) -> None:
    pytest.importorskip("lxml")
    (tmp_path / "a.html").write_text("<div>" * 100_000 + "deep" + "<!--" * 10_000)
    assert list(read_documents(tmp_path / "a.html", DataConfig(), ReadingReport())) == ["deep\n"]


def test_text_of_notebooks(tmp_path: Path) -> None:
    cells: list[dict[str, Any]] = [
        {"cell_type": "markdown", "source": ["# Title\n", "words"]},
        {"cell_type": "code", "source": "x = 1\n", "outputs": [{"text": "no output"}]},
        {"cell_type": "code", "source": []},
    ]
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"cells": cells, "nbformat": 4}))
    assert list(read_documents(path, DataConfig(), ReadingReport())) == ["# Title\nwords\n\nx = 1\n"]
    path.write_text(json.dumps({"worksheets": [{"cells": [{"input": ["y = 2"]}]}], "nbformat": 3}))
    assert list(read_documents(tmp_path, DataConfig(), ReadingReport())) == ["y = 2\n"]
    for bad in ("[]", '{"cells": 3}', '{"cells": [3]}', '{"cells": [{"source": 3}]}', "{", "[" * 100_000):
        path.write_text(bad)
        with pytest.raises(DataError, match="is not a Jupyter notebook"):
            list(read_documents(path, DataConfig(), ReadingReport()))


@pytest.mark.parametrize("inside", [True, False])
def test_file_names_that_are_not_utf8(
    inside: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / ("folder" if inside else os.fsdecode(b"f\xe9"))
    folder.mkdir()
    path = folder / os.fsdecode(b"caf\xe9.txt")
    path.write_bytes(b"some words to learn from, and more of them\n" * 40)
    (folder / os.fsdecode(b"bild\xe9.png")).write_bytes(FILES["g.png"][0])
    source, out = str(folder if inside else path), str(tmp_path / "out")
    assert main(["data", "prepare", source, "--out", out, "--tokenizer.kind", "byte"]) == 0
    assert main(["data", "stats", source, "--json"]) == 0
    assert main(["data", "stats", out]) == 0
    for name in ("card.json", "manifest.json"):
        json.loads((tmp_path / "out" / name).read_text())
    (folder / os.fsdecode(b"caf\xe9.jsonl")).write_bytes(b"{")
    assert main(["data", "stats", str(folder / os.fsdecode(b"caf\xe9.jsonl"))]) == 2
    assert "bug" not in capfd.readouterr().err


def test_run_on_a_file_whose_name_is_not_utf8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Fails, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's folder gets a UTF-8 name, which safetensors requires; the run can be repeated from its config."""
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"caf\xe9.txt")
    Path(name).write_text("some words to learn from, and more of them\n" * 60)
    assert "is not UTF-8, which safetensors requires of names" in fails(
        "train", name, "--out", os.fsdecode(b"r\xe9"), *TINY
    )
    assert main(["train", name, *TINY]) == 0
    assert main(["train", "--config", "runs/caf_/config.yaml", "--out", "again"]) == 0
    assert main(["evaluate", "again", name]) == 0
    weights = [next(Path(run).glob("checkpoints/*/model.safetensors")) for run in ("runs/caf_", "again")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert "bug" not in capsys.readouterr().err
