"""Tables of labeled examples in every format: header detection, separators and invalid files."""

import json
from pathlib import Path

import pytest

from wholegpt.data.reading.tables import read_table
from wholegpt.errors import DataError


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    rows = [{"text": "a, b", "label": "x"}, {"text": 'say "c"', "label": "y"}, {"text": "d", "label": "x"}]
    forms = {
        "a.csv": 'text,label\r\n"a, b",x\r\n"say ""c""",y\r\n\r\nd,x\r\n',
        "a.tsv": 'text\tlabel\na, b\tx\nsay "c"\ty\nd\tx\n',
        "a.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "a.json": json.dumps(rows),
    }
    for name, content in forms.items():
        table = read_table(write(tmp_path / name, "\ufeff" + content if name != "a.json" else content))
        assert table.columns == ("text", "label") and table.rows == rows, name
        assert table.column("label") == ["x", "y", "x"]
    assert read_table(tmp_path / "a.json").where(1).endswith("a.json: entry 2")
    assert read_table(tmp_path / "a.csv").where(2).endswith("a.csv: line 5")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("text\tlabel\none\tgood\ntwo\tbad\nthree\tgood\n", True),
        ("one\tgood\ntwo\tbad\nthree\tgood\n", False),  # the label occurs again
        ("one\t1\ntwo\t0\n", False),  # a number
        ("one\t\ntwo\t0\n", False),
        ("#1\tquality\none\ttwo\n", True),
        ("body of letter\na line of verse\n", True),
        ("a line of verse\nanother of them\n", False),  # too many words for the name of a single column
    ],
)
def test_header_row_is_detected(content: str, named: bool, tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "a.tsv", content))
    assert len(table.rows) == content.count("\n") - named
    assert (table.columns[0] == "0") is not named


@pytest.mark.parametrize(
    ("content", "expected", "rows"),
    [
        ("first film\nsecond film\n", ("0",), [{"0": "first film"}, {"0": "second film"}]),
        ("text\nthe text\ntext\n", ("text",), [{"text": "the text"}, {"text": "text"}]),
        (
            ",text\n0,a film\n1,another\n",
            (),
            [{"unnamed": "0", "text": "a film"}, {"unnamed": "1", "text": "another"}],
        ),
        ('text\na\n""\nb\n\n', (), [{"text": "a"}, {"text": ""}, {"text": "b"}]),
        ("text;label\na, b;x\n;\n", (), [{"text": "a, b", "label": "x"}]),
        ("text,label\ra,x\rb,y\r", (), [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]),
    ],
)
def test_first_rows_and_separators(
    content: str, expected: tuple[str, ...], rows: list[dict[str, str]], tmp_path: Path
) -> None:
    assert read_table(write(tmp_path / "a.csv", content), "utf-8", expected).rows == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "holds no rows"),
        ("a.csv", "text,label\n", "holds no rows"),
        ("a.csv", "text,label\na,b,c\n", "line 2 has 3 columns, the first row 2"),
        ("a.csv", 'text,label\n"a,b\n', "line 2 opens a quotation mark that is not closed"),
        ("a.csv", "text,text\na,b\n", "two columns have the same name"),
        ("a.jsonl", '{"a": 1}\n[1]\n', "line 2 is not an object with named fields"),
        ("a.jsonl", "{\n", "line 1 is not JSON"),
        ("a.jsonl", '{"a": "b"}\n{"a": "\\ud800"}\n', "line 2 holds half of a surrogate pair"),
        ("a.json", '[{"a": "\\udfff"}]', "entry 1 holds half of a surrogate pair"),
        ("a.json", '{"a": 1}', "expected a list of objects"),
        ("a.json", "[", "is not JSON"),
        ("a.xlsx", "", "is not a table; expected a name ending in .csv"),
    ],
)
def test_invalid_files_are_rejected(name: str, content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_table(write(tmp_path / name, content))


def test_missing_file_and_missing_column(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "a.csv")
    table = read_table(write(tmp_path / "b.csv", "text,label\na,b\n"))
    with pytest.raises(DataError, match="no column 'class'; there are text, label"):
        table.column("class")
