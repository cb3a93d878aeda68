"""Text for pretraining and tables of examples are read by the same rules in every format."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wholegpt.data import open_corpus
from wholegpt.data.examples.columns import TaskColumns, detect_columns
from wholegpt.data.reading import decoding as formats
from wholegpt.data.reading.files import ReadingReport, read_documents
from wholegpt.data.reading.tables import read_table
from wholegpt.errors import ConfigError, DataError
from wholegpt.settings.choices import TaskKind
from wholegpt.settings.schema import DataConfig

ROWS = [{"text": "a, b; c", "label": "x"}, {"text": "d | e", "label": "y"}, {"text": "f, g", "label": "x"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def separated(delimiter: str) -> bytes:
    cell = '"{}"'.format
    rows = [delimiter.join(map(cell, row.values())) for row in ROWS]
    return "\n".join([delimiter.join(ROWS[0]), *rows, ""]).encode()


def zstandard(content: bytes) -> bytes:
    library: Any = pytest.importorskip("zstandard")
    return library.ZstdCompressor().compress(content)


def parquet(path: Path) -> bytes:
    pyarrow: Any = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    columns["label"] = pyarrow.array(columns["label"]).dictionary_encode()  # the way pandas writes categories
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path.read_bytes()


def both(path: Path, **options: Any) -> tuple[list[str], list[dict[str, Any]]]:
    """Return what pretraining and fine-tuning each read from a file."""
    documents = list(read_documents(path, DataConfig(**options), ReadingReport()))
    return documents, read_table(path, **options).rows


def refusals(path: Path) -> tuple[str, str]:
    """Return both error messages for an invalid file, without the words that differ."""
    found: list[str] = []
    for read in (
        lambda: list(read_documents(path, DataConfig(), ReadingReport())),
        lambda: read_table(path),
    ):
        with pytest.raises(DataError) as error:
            read()
        found.append(str(error.value))
    return found[0], found[1]


CONTENTS: dict[str, bytes] = {
    "commas.csv": separated(","),
    "semicolons.csv": separated(";"),
    "tabs.csv": separated("\t"),
    "bars.csv": separated("|"),
    "crlf.csv": separated(",").replace(b"\n", b"\r\n"),
    "cr.csv": separated(",").replace(b"\n", b"\r"),
    "a.tsv": separated("\t").replace(b'"', b""),
    "crlf.tsv": separated("\t").replace(b'"', b"").replace(b"\n", b"\r\n"),
    "marked.csv": b"\xef\xbb\xbf" + separated(","),
    "lines.jsonl": LINES.encode(),
    "cr.jsonl": LINES.replace("\n", "\r").encode(),
    "list.json": json.dumps(ROWS).encode(),
    "lines.json": LINES.encode(),
    "list.jsonl": json.dumps(ROWS).encode(),
    "pretty.jsonl": json.dumps(ROWS, indent=2).encode(),
    "objects.jsonl": "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(),
    "objects.json": "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_text_and_tables_read_the_same_rows(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(CONTENTS[name])
    documents, rows = both(tmp_path / name)
    assert documents == [row["text"] for row in ROWS] and rows == ROWS


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstandard)],
)
def test_text_and_tables_are_decompressed(
    suffix: str, compress: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    for name, content in (
        ("a.csv", separated(",")),
        ("a.jsonl", LINES.encode()),
        ("a.parquet", parquet(tmp_path / "p")),
    ):
        path = tmp_path / (name + suffix)
        path.write_bytes(compress(content))
        assert both(path) == ([row["text"] for row in ROWS], ROWS)
        path.write_bytes(compress(content)[:-6])
        for refused in refusals(path):
            assert f"{name}{suffix}: " in refused and ("cut short" in refused or name == "a.parquet")


def test_text_and_tables_read_parquet(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet")
    assert both(tmp_path / "a.parquet") == ([row["text"] for row in ROWS], ROWS)


@pytest.mark.parametrize("folder", ["x.tsv.parts", "x.csv", "y.jsonl.d"])
def test_format_is_determined_by_the_file_suffix_only(folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir()
    path = tmp_path / folder / "a.csv"
    path.write_bytes(separated(","))
    assert both(path)[1] == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,text\na,b\n", "two columns have the same name, 'text'"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b", "x": NaN}\n', "line 2 holds NaN"),
        ("a.jsonl", '{"text": "a", "x": [-Infinity]}\n', "line 1 holds -Infinity"),
        ("a.jsonl", '{"text": "a", "x": 1e999}\n', "line 1 holds 1e999"),
        ("a.json", '[{"text": "a"}, {"text": "b", "x": NaN}]', "entry 2 holds NaN"),
        ("a.jsonl", '{"text": "a", "text": "b"}\n', "line 1 has the field 'text' twice"),
        ("a.csv", "text,label\na,b\nc\n", "line 3 has 1 columns, the first row 2"),
        ("a.csv", "text;label\na;b\nc;d\ne\n", "line 4 has 1 columns, the first row 2"),
        ("a.csv", 'text,label\na,b\n"c,d\n', "line 3 opens a quotation mark that is not closed"),
        ("a.csv", "text,label\na,\0b\n", "holds NUL characters"),
        ("a.jsonl", '{"text": "a"}\n{"text": "\\ud800"}\n', "line 2 holds half of a surrogate pair"),
        ("a.json", '[{"text": "a"}', "is not JSON"),
        ("a.json", '[{"text": "a"}] tail', "is not JSON"),
        ("a.json", '[{"text": "a"} {"text": "b"}]', "is not JSON"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ("a.jsonl", "\ufeff\ufeff{}", "is not JSON"),
    ],
)
def test_text_and_tables_give_the_same_errors(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    for refused in refusals(tmp_path / name):
        assert message in refused


def test_text_and_tables_skip_bad_lines(tmp_path: Path) -> None:
    for name, content in (
        ("a.csv", "text,label\na,x\nb\nc,y\n"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": NaN}\n{"text": "c", "label": "y"}\n'),
        ("a.json", '[{"text": "a", "label": "x"}, {"text": NaN}, {"text": "c", "label": "y"}]'),
        ("b.jsonl", '{"text": \n{"text": "a", "label": "x"}\n{"text": "c", "label": "y"}\n'),
    ):
        (tmp_path / name).write_text(content)
        documents, rows = both(tmp_path / name, on_bad_line="skip")
        assert documents == ["a", "c"] and [row["label"] for row in rows] == ["x", "y"]


def test_bad_bytes_in_tables(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\na,x\nb\xe9,y\nc\0,y\n")
    assert both(path, on_bad_text="skip") == (["a"], [{"text": "a", "label": "x"}])
    assert both(path, on_bad_text="replace")[0] == ["a", "b\ufffd", "c\ufffd"]
    assert both(path, on_bad_text="replace")[1][1]["text"] == "b\ufffd"


def test_unnamed_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label,\na,x,\nb,y,\n")
    assert both(path) == (["a", "b"], [{"text": t, "label": n, "unnamed": ""} for t, n in ("ax", "by")])
    path.write_text("text,,\na,x,1\n")
    assert read_table(path).columns == ("text", "unnamed 1", "unnamed 2")


def test_long_json_list_is_read_entry_by_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list exceeds the limit on one record, and entries cross block boundaries."""
    monkeypatch.setattr(formats, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(formats, "LONGEST_RECORD", 300_000)
    rows = [{"text": f"{n} " + "é" * (n % 700), "nested": {"list": [n, "]"]}} for n in range(3000)]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False))
    documents, found = both(tmp_path / "a.json")
    assert found == rows and documents == [row["text"] for row in rows]
    broken = json.dumps(rows, indent=1)[:-400] + "}"
    (tmp_path / "a.json").write_text(broken)
    assert "is not JSON" in refusals(tmp_path / "a.json")[1]


def test_single_object_in_a_json_file(tmp_path: Path) -> None:
    """It is read as plain text unless its field is requested; it is not a table."""
    path = tmp_path / "a.json"
    path.write_text('{\n  "body": "b"\n}\n')
    assert list(read_documents(path, DataConfig(), ReadingReport())) == [path.read_text()]
    assert list(read_documents(path, DataConfig(text_field="body"), ReadingReport())) == ["b"]
    with pytest.raises(DataError, match="holds one value; expected a list of objects"):
        read_table(path)


def test_empty_first_record_does_not_select_another_field(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": null, "url": "u"}\n{"text": "a", "url": "v"}\n')
    config = DataConfig(on_bad_line="skip")
    assert list(read_documents(tmp_path / "a.jsonl", config, ReadingReport())) == ["a"]


def test_encodings_in_folders(tmp_path: Path) -> None:
    for encoding in ("utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252"):
        folder = tmp_path / encoding
        folder.mkdir()
        for name, content in (
            ("a.txt", "un été"),
            ("b", "sans nom à côté"),
            ("c.jsonl", '{"text": "ligne né"}\n'),
            ("d.csv", "text,n\nâgé,1\nnoël,2\n"),
        ):
            (folder / name).write_bytes(content.encode(encoding))
        (folder / "e.txt.gz").write_bytes(gzip.compress("zippé".encode(encoding)))
        (folder / "f.bin").write_bytes(bytes(range(256)))
        report = ReadingReport()
        documents = list(read_documents(folder, DataConfig(encoding=encoding), report))
        assert documents == ["un été", "sans nom à côté", "ligne né", "âgé", "noël", "zippé"], encoding
        assert report.skipped == {"binary (.bin)": 1}


@pytest.mark.parametrize("encoding", ["hex", "rot13", "base64", "zlib", "undefined", "no-such", ""])
def test_codecs_that_are_not_character_encodings_are_rejected(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcd")
    with pytest.raises(DataError, match="which Python does not know"):
        list(read_documents(tmp_path / "a.txt", DataConfig(encoding=encoding), ReadingReport()))


@pytest.mark.parametrize(
    ("name", "options", "useless"),
    [
        ("a.txt", {"text_field": "text"}, "--text-field"),
        ("a.txt", {"on_bad_line": "skip"}, "--on-bad-line"),
        ("a.html", {"text_field": "text"}, "--text-field"),
        ("a.parquet", {"encoding": "latin-1"}, "--encoding"),
        ("python-docs", {"encoding": "latin-1"}, "--encoding"),
        ("python-docs", {"on_bad_text": "skip"}, "--on-bad-text"),
        ("a.jsonl", {"text_field": "text", "on_bad_line": "skip", "encoding": "latin-1"}, ""),
        (".", {"text_field": "text", "on_bad_line": "skip", "encoding": "latin-1"}, ""),
    ],
)
def test_options_without_effect_are_rejected(
    name: str, options: dict[str, Any], useless: str, tmp_path: Path
) -> None:
    for file in ("a.txt", "a.html", "a.parquet", "a.jsonl"):
        (tmp_path / file).write_text("text")
    config = DataConfig(source=(name if name == "python-docs" else str(tmp_path / name),), **options)
    if useless:
        with pytest.raises(ConfigError, match=f"{useless} has no effect here"):
            open_corpus(config)
    else:
        open_corpus(config)


@pytest.mark.parametrize("order", [("text", "TEXT", "label", "LABEL"), ("TEXT", "text", "LABEL", "label")])
def test_lower_case_column_name_is_preferred(tmp_path: Path, order: tuple[str, ...]) -> None:
    path = tmp_path / "t.jsonl"
    rows = [
        {"text": f"right {i}", "TEXT": "a longer wrong one", "label": "xy"[i % 2], "LABEL": "z"}
        for i in range(4)
    ]
    path.write_text("".join(json.dumps({name: row[name] for name in order}) + "\n" for row in rows))

    columns = detect_columns(read_table(path), TaskKind.classification, TaskColumns())

    assert (columns.texts, columns.target) == (("text",), "label")
    assert list(read_documents(path, DataConfig(), ReadingReport())) == [row["text"] for row in rows]


def test_column_names_are_detected_in_any_case(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("Text,Remark\n" + "".join(f"word {i},a much longer remark\n" for i in range(4)))

    columns = detect_columns(read_table(path), TaskKind.classification, TaskColumns())

    assert columns.texts == ("Text",)
    assert next(read_documents(path, DataConfig(), ReadingReport())) == "word 0"


@pytest.mark.parametrize("value", [5, ["a", "b"], {"en": "a"}])
def test_text_field_with_an_invalid_value_is_an_error(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"text": value, "label": "positive"}) + "\n")

    with pytest.raises(DataError, match="line 1 has no text in field 'text'"):
        list(read_documents(path, DataConfig(), ReadingReport()))


def test_parquet_text_column_with_bytes_is_an_error(tmp_path: Path) -> None:
    pyarrow: Any = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": [b"some bytes"], "label": ["positive"]}), path)

    with pytest.raises(DataError, match="has no text column 'text'"):
        list(read_documents(path, DataConfig(), ReadingReport()))


@pytest.mark.parametrize(
    ("first", "separator"),
    [("sep=;\n", ";"), ("SEP=|\r\n", "|"), ('"sep=^"\n', "^"), ("\ufeffsep=\t\n", "\t")],
)
def test_sep_line_of_a_csv_file_is_not_a_row(tmp_path: Path, first: str, separator: str) -> None:
    path = tmp_path / "t.csv"
    rows = [("text", "label"), ("a, b", "x"), ("c", "y")]
    path.write_text(first + "".join(separator.join(row) + "\n" for row in rows), newline="")

    assert both(path) == (["a, b", "c"], [{"text": "a, b", "label": "x"}, {"text": "c", "label": "y"}])
    assert read_table(path).locations == ["line 3", "line 4"]


def test_quoted_csv_fields_after_a_space(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('text, label\n"a, b", "x"\n"c", "y, z"\n')

    assert both(path) == (["a, b", "c"], [{"text": "a, b", "label": "x"}, {"text": "c", "label": "y, z"}])


def test_quotation_mark_inside_a_csv_text_is_text(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('label,text\nx, "a" is a letter\ny, b\n')

    assert both(path)[0] == [' "a" is a letter', " b"]


def test_malformed_tables_have_clear_messages(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "t.parquet").write_text("text,label\na,x\n")
    (tmp_path / "t.csv").write_text("text,label\na\rb,x\n", newline="")

    for one in refusals(tmp_path / "t.parquet"):
        assert "is damaged, or not a Parquet file as its name says" in one
    for one in refusals(tmp_path / "t.csv"):
        assert "line 2 has an unquoted carriage return within a line" in one
