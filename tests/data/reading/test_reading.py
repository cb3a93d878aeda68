"""Every file format gives the same documents; unreadable files are reported with the line or byte."""

import gzip
import hashlib
import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wholegpt.data import Corpus, open_corpus
from wholegpt.data.reading import decoding as formats
from wholegpt.data.reading.files import ReadingReport, read_documents
from wholegpt.errors import DataError
from wholegpt.settings.schema import DataConfig

DOCUMENTS = ["first, with a comma", "second\twith é and “quotes” \U0001f642", "third\u2028line"]


def json_lines(path: Path) -> None:
    path.write_text("".join(json.dumps({"id": 1, "text": d}) + "\n" for d in DOCUMENTS))


def json_list(path: Path) -> None:
    path.write_text(json.dumps([{"text": d} for d in DOCUMENTS], ensure_ascii=False))


def json_texts(path: Path) -> None:
    path.write_text(json.dumps(DOCUMENTS))


def separated(path: Path) -> None:
    rows = [f'{i},"{d.replace(chr(34), chr(34) * 2)}"' for i, d in enumerate(DOCUMENTS)]
    path.write_text("\n".join(["id,text", *rows]) + "\n")


def parquet(path: Path) -> None:
    pyarrow: Any = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"n": [1, 2, 3], "text": DOCUMENTS}), path)


def compressed(write: Callable[[Path], None], compress: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def both(path: Path) -> None:
        write(path)
        path.write_bytes(compress(path.read_bytes()))

    return both


def zstandard(content: bytes) -> bytes:
    library: Any = pytest.importorskip("zstandard")
    return library.ZstdCompressor().compress(content)


WRITERS = {
    "a.jsonl": json_lines,
    "a.ndjson": json_lines,
    "a.json": json_list,
    "b.json": json_texts,
    "a.csv": separated,
    "a.parquet": parquet,
    "a.jsonl.gz": compressed(json_lines, gzip.compress),
    "a.csv.zst": compressed(separated, zstandard),
}


def read(path: Path, **settings: Any) -> tuple[list[str], ReadingReport]:
    report = ReadingReport()
    return list(read_documents(path, DataConfig(**settings), report)), report


def opened(path: Path, **settings: Any) -> Corpus:
    return open_corpus(DataConfig(source=(str(path),), **settings))


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_documents(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    documents, report = read(tmp_path / name)
    assert documents == DOCUMENTS and not report.skipped
    assert report.bytes == (tmp_path / name).stat().st_size


def test_folder_with_every_format(tmp_path: Path) -> None:
    for name, write in WRITERS.items():
        write(tmp_path / name)
    (tmp_path / "c.md").write_text("# a page")
    (tmp_path / "Makefile").write_text("all:\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0")
    (tmp_path / "program").write_bytes(os.urandom(500) + b"\0")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    documents, report = read(tmp_path)
    assert documents == ["all:\n", *len(WRITERS) * DOCUMENTS, "# a page"]
    assert report.files == len(WRITERS) + 2
    assert report.skipped == {
        "binary (.png)": 1,
        "binary (no suffix)": 1,
        "linked folders": 1,
        "broken links, pipes and devices": 1,
    }


def test_tab_separated_values_and_columns_by_number(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('a "good" film\t1\na bad one\t0\n')
    assert read(path, text_field="0")[0] == ['a "good" film', "a bad one"]
    path.write_text("label\tsentence\n1\ta good film\n0\ta bad one\n")
    documents, report = read(path)
    assert documents == ["a good film", "a bad one"] and "text taken from 'sentence'" in str(report)


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ({"title": "a very long title indeed", "text": "t"}, "text"),
        ({"title": "a title", "content": "c"}, "content"),
        ({"name": "short", "story": "the longest text of all", "n": 3}, "story"),
    ],
)
def test_text_field_is_detected(record: dict[str, Any], field: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    assert read(tmp_path / "a.jsonl")[0] == [record[field]]
    with pytest.raises(DataError, match=r"line 1 has no text in field 'other' \(found: .*--text-field"):
        read(tmp_path / "a.jsonl", text_field="other")


def test_bad_line_is_reported_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": \n{"text": 5}\n{"text": "b"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl: line 3 is not JSON"):
        read(path)
    documents, report = read(path, on_bad_line="skip")
    assert documents == ["a", "b"] and report.skipped == {"bad lines": 2}
    (tmp_path / "a.csv").write_text("text,n\na,1\nb\nc,3\n")
    with pytest.raises(DataError, match=r"a\.csv: line 3 has 1 columns, the first row 2"):
        read(tmp_path / "a.csv")
    assert read(tmp_path / "a.csv", on_bad_line="skip")[0] == ["a", "c"]


def test_bad_bytes_are_reported_with_their_offset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "BLOCK_BYTES", 5)
    path = tmp_path / "a.txt"
    path.write_bytes("ééé".encode() + b"abc\xffd\xfe")
    with pytest.raises(DataError, match=r"a\.txt: byte 9 \(0xff\) is not utf-8; .*--on-bad-text replace"):
        read(path)
    documents, report = read(path, on_bad_text="replace")
    assert documents == ["éééabc\ufffdd\ufffd"]
    assert report.skipped == {"bad bytes, replaced by U+FFFD": 2}
    documents, report = read(path, on_bad_text="skip")
    assert documents == [] and report.skipped == {"documents with bytes or characters that are not text": 1}
    path.write_bytes(b"\xe9t\xe9")
    assert read(path, encoding="latin-1")[0] == ["été"]
    path.write_bytes("\ufeffmarked".encode())
    assert read(path)[0] == ["marked"]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300), st.integers(1, 40))
def test_pieces_of_a_long_text_join_to_the_whole(text: str, size: int) -> None:
    import io

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "PIECE_CHARACTERS", size)
        patch.setattr(formats, "BLOCK_BYTES", 7)
        source = formats.Source("x", io.BytesIO(text.encode()), DataConfig(), ReadingReport())
        if "\0" in text or text.startswith("\ufeff"):
            return
        pieces = list(formats.read_text(source))
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.begins for piece in pieces] == [True, *(len(pieces) - 1) * [False]][: len(pieces)]
    for before, after in pairwise(pieces):
        assert not before.text[-1].isspace() and after.text[0] in " \n"


def test_pieces_end_at_a_word_boundary_if_possible() -> None:
    """Tokenizers such as GPT-4's join a line end to the punctuation before it."""
    assert formats._last_cut("one two!\nthree.\n") == 3
    assert formats._last_cut("!! ??   \n..") == 5
    assert formats._last_cut(" !!") == formats._last_cut("  ") == 0
    assert formats._last_cut(5_000_000 * " ") == 0


def test_texts_without_white_space_to_split_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "PIECE_CHARACTERS", 1000)
    monkeypatch.setattr(formats, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(formats, "LONGEST_RECORD", 10_000)
    (tmp_path / "a.txt").write_text("a" * 20_000)
    with pytest.raises(DataError, match=r"holds more than 10,000 characters without white space"):
        read(tmp_path / "a.txt")
    (tmp_path / "a.jsonl").write_text('{"text": "' + "a" * 20_000)
    with pytest.raises(DataError, match=r"line 1 is longer than 10,000 characters"):
        read(tmp_path / "a.jsonl")
    (tmp_path / "a.json").write_text('["' + "a" * 30_000)
    with pytest.raises(DataError, match=r"longer than 10,000 characters; .*\.jsonl"):
        read(tmp_path / "a.json")


def test_damaged_and_binary_files(tmp_path: Path) -> None:
    whole = gzip.compress(b"some text " * 100)
    for name, content, message in (
        ("cut.txt.gz", whole[:-20], "damaged or cut short"),
        ("no.txt.gz", b"not gzip", "damaged or cut short"),
        ("no.txt.zst", b"not zstandard at all", "damaged"),
        ("cut.txt.zst", zstandard(b"some text " * 1000)[:-5], "damaged or cut short"),
        ("no.parquet", b"not parquet", "no.parquet"),
        ("a.txt", b"binary \0\1\2", "holds NUL bytes, so it is not a text file"),
        ("a.json", b"[1, 2", "is not JSON"),
        ("b.json", b"[1, 2]", "entry 1 is not an object with named fields but '1'"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            read(tmp_path / name)
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "missing.txt")


def test_rest_of_a_list_that_is_not_json_can_be_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("good text")
    (tmp_path / "b.json").write_text(
        '[{"text": "first"}, {"text": "second"}, {"text": oops}, {"text": "lost"}]'
    )
    with pytest.raises(
        DataError, match=r"entry 3, line 1, is not JSON.*--on-bad-line skip leaves out the rest"
    ):
        list(opened(tmp_path).pieces())
    skipping = opened(tmp_path, on_bad_line="skip")
    assert [piece.text for piece in skipping.pieces()] == ["good text", "first", "second"]
    assert skipping.report.skipped == {"files cut at bad JSON": 1}


def test_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' * 100)
    pieces = opened(path).pieces()
    next(pieces)
    with path.open("a") as file:
        file.write('{"text": "b"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl: changed while it was read"):
        list(pieces)


def test_dataset_of_the_datasets_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    (tmp_path / "local").mkdir()
    json_lines(tmp_path / "local" / "train.jsonl")
    corpus = open_corpus(DataConfig(source=(f"hf:{tmp_path / 'local'}",)))
    assert [piece.text for piece in corpus.pieces()] == DOCUMENTS
    with pytest.raises(DataError, match=r"hf:/no/such: cannot be loaded"):
        list(open_corpus(DataConfig(source=("hf:/no/such",))).pieces())


def test_report_has_the_hash_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    digests = [opened(tmp_path) for _ in range(2)]
    for corpus in digests:
        list(corpus.pieces())
    assert digests[0].report.sha256 == digests[1].report.sha256 == hashlib.sha256(b"one").hexdigest()
    (tmp_path / "a.txt").write_text("two")
    other = opened(tmp_path)
    list(other.pieces())
    assert other.report.sha256 != digests[0].report.sha256


def test_long_text_with_bad_bytes_ends_before_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole documents are skipped; of a document read in pieces, only the pieces from the bad bytes on."""
    monkeypatch.setattr(formats, "PIECE_CHARACTERS", 100)
    monkeypatch.setattr(formats, "BLOCK_BYTES", 100)
    good, bad = b"good words " * 100, b"bad \xff " + b"words " * 10
    for name, content in (("a", good), ("b", bad + good), ("c", good + bad + good), ("d", good)):
        (tmp_path / f"{name}.txt").write_bytes(content)
    corpus = open_corpus(DataConfig(source=(str(tmp_path),), on_bad_text="skip"))
    documents: list[str] = []
    for piece in corpus.pieces():
        documents += [""] if piece.begins else []
        documents[-1] += piece.text
    assert [documents[0], documents[2]] == [good.decode()] * 2 and len(documents) == 3
    assert good.decode().startswith(documents[1]) and len(documents[1]) > 800
    assert corpus.report.skipped == {
        "documents with bytes or characters that are not text": 1,
        "ends of long documents, from bytes or characters that are not text": 1,
    }


def test_unclosed_quotation_mark_counts_all_lines_it_spans(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,n\na,1\n"b,2\n' + "c,3\n" * 50)
    documents, report = read(tmp_path / "a.csv", on_bad_line="skip")
    assert documents == ["a"] and report.skipped == {"bad lines": 51}


def test_empty_files_and_documents_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": ""}\n')
    (tmp_path / "b.txt").write_text("")
    corpus = open_corpus(DataConfig(source=(str(tmp_path),)))
    assert [piece.text for piece in corpus.pieces()] == ["a"]
    assert corpus.report.skipped == {"empty documents": 1, "empty files": 1}


@pytest.mark.parametrize("encoding", ["nonsense", "base64", "rot13", ""])
def test_unknown_encoding_is_rejected_for_files_and_folders(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_text("some text")

    for source in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(DataError, match="which Python does not know"):
            open_corpus(DataConfig(source=(str(source),), encoding=encoding))


@pytest.mark.parametrize("source", ["", " ", "hf:", "hf: "])
def test_empty_source_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    (tmp_path / "a.txt").write_text("text of the current folder")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(DataError, match=r"is empty|names no dataset"):
        open_corpus(DataConfig(source=(source,)))


def test_encoding_applies_to_the_files_of_a_folder_that_are_not_utf_8(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("ünder “quotes”\n", encoding="utf-8")
    (folder / "b.txt").write_text("é été\n", encoding="latin-1")
    (folder / "c.txt").write_text("ASCII\n")
    (folder / "empty.txt").write_bytes(b"")
    corpus = open_corpus(DataConfig(source=(str(folder),), encoding="latin-1"))
    assert "".join(piece.text for piece in corpus.pieces()) == "ünder “quotes”\né été\nASCII\n"
    assert str(corpus.report) == "3 files; 1 file read as utf-8; skipped 1 empty file"
    (folder / "a.txt").write_text("ünder\n", encoding="utf-8")
    alone = open_corpus(DataConfig(source=(str(folder / "a.txt"),), encoding="latin-1"))
    assert [piece.text for piece in alone.pieces()] == ["Ã¼nder\n"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16"])
def test_ascii_files_beside_utf_16(encoding: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("an even number of bytes\n")
    (folder / "b.txt").write_text("ASCII, too\n", encoding=encoding)
    (folder / "c.txt").write_text("an odd number\n")
    corpus = open_corpus(DataConfig(source=(str(folder),), encoding=encoding))
    read = "".join(piece.text for piece in corpus.pieces())
    assert read == "an even number of bytes\nASCII, too\nan odd number\n"
    assert str(corpus.report) == "3 files; 2 files read as utf-8"


def test_encoding_that_uses_only_ascii_bytes(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_bytes("テスト\n".encode("iso2022_jp"))
    corpus = open_corpus(DataConfig(source=(str(tmp_path / "folder"),), encoding="iso2022_jp"))
    assert [piece.text for piece in corpus.pieces()] == ["テスト\n"]
