"""Control codes in prepared data: attributes of records, headers, dropout and counts."""

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import text_of
from wholegpt.console import Console
from wholegpt.data import PreparedData, open_corpus, prepare
from wholegpt.data.control_codes import MOST_VALUES, attributes_of, header, header_for, length_of
from wholegpt.data.reading.decoding import Piece
from wholegpt.data.text.card import card_page
from wholegpt.errors import ConfigError, DataError
from wholegpt.settings.choices import TokenizerKind
from wholegpt.settings.schema import Config, DataConfig, TokenizerConfig
from wholegpt.settings.validation import check

QUIET = Console(quiet=True)
FIELDS = ("sentiment", "domain")
KNOWN = {"sentiment": {"positive": 2, "negative": 1}, "true": {"true": 1}}


def records(count: int = 80) -> list[dict[str, Any]]:
    """Return texts with a sentiment each, and every second one with a domain."""
    made: list[dict[str, Any]] = []
    for i in range(count):
        record = {"text": text_of(60, i), "sentiment": ("negative", "positive")[i % 3 > 0]}
        made.append({**record, "domain": "news"} if i % 2 else record)
    return made


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def parquet(path: Path, lines: list[dict[str, Any]]) -> None:
    pyarrow: Any = importlib.import_module("pyarrow")
    columns = {name: [line.get(name) for line in lines] for name in ("text", *FIELDS)}
    importlib.import_module("pyarrow.parquet").write_table(pyarrow.table(columns), path)


def pieces(path: Path, **settings: Any) -> list[Piece]:
    return list(open_corpus(DataConfig(source=(str(path),), **settings)).pieces())


def prepared(
    path: Path, out: Path, kind: TokenizerKind = TokenizerKind.byte, **settings: Any
) -> PreparedData:
    config = DataConfig(source=(str(path),), **{"control_dropout": 0.0, **settings})
    return prepare(open_corpus(config), config, TokenizerConfig(kind), out, QUIET)


def documents_of(data: PreparedData) -> list[list[str]]:
    """Return the documents of both sides of the split as a model sees them."""
    texts = [
        data.tokenizer.decode(side.read(0, len(side)).tolist()) for side in (data.train, data.validation)
    ]
    return [text.split("<|endoftext|>") for text in texts]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"domain": "news", "sentiment": " good "}, "sentiment: good, domain: news\n"),
        ({"domain": 3, "sentiment": True}, "sentiment: true, domain: 3\n"),
        ({"domain": 0.5, "sentiment": None}, "domain: 0.5\n"),
        ({"domain": float("nan"), "sentiment": ""}, ""),
        ({}, ""),
    ],
)
def test_header_is_one_line_in_the_order_of_the_setting(record: dict[str, Any], expected: str) -> None:
    assert header(attributes_of(record, "text", FIELDS)) == expected


@pytest.mark.parametrize(("words", "length"), [(19, "short"), (20, "medium"), (199, "medium"), (200, "long")])
def test_length_is_derived_if_no_field_gives_it(words: int, length: str) -> None:
    assert length_of("word " * words) == length
    assert attributes_of({}, "word " * words, ("length",)) == (("length", length),)
    assert attributes_of({"length": "my own"}, "word", ("length",)) == (("length", "my own"),)


def test_every_table_format_gives_the_same_attributes(tmp_path: Path) -> None:
    made = records(6)
    expected = [
        Piece(one["text"], attributes=attributes_of(one, one["text"], (*FIELDS, "length"))) for one in made
    ]
    write(tmp_path / "a.jsonl", made)
    (tmp_path / "a.json").write_text(json.dumps(made))
    with (tmp_path / "a.csv").open("w") as file:
        table = csv.DictWriter(file, ["domain", "text", "sentiment"])
        table.writeheader()
        table.writerows(made)
    names = ["a.jsonl", "a.json", "a.csv"]
    if importlib.util.find_spec("pyarrow"):
        parquet(tmp_path / "a.parquet", made)
        names.append("a.parquet")
    for name in names:
        assert pieces(tmp_path / name, control=(*FIELDS, "length")) == expected, name


def test_each_document_starts_with_its_header(tmp_path: Path) -> None:
    made = records()
    data = prepared(write(tmp_path / "a.jsonl", made), tmp_path / "out", control=FIELDS)
    train, validation = documents_of(data)
    expected = [header(attributes_of(one, one["text"], FIELDS)) + one["text"] for one in made]
    assert sorted(train + validation) == sorted(expected)
    counted = data.manifest.control
    assert list(counted) == list(FIELDS)
    for value in ("positive", "negative"):
        assert counted["sentiment"][value] == sum(f"sentiment: {value}" in text for text in train)
    assert counted["domain"] == {"news": sum(", domain: news\n" in text for text in train)}
    assert data.card["control"] == counted and "- domain: news" in card_page(data.card)


def test_control_dropout_omits_a_share_of_the_headers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", records(400))
    data = prepared(path, tmp_path / "out", control=FIELDS, control_dropout=0.25)
    train, validation = documents_of(data)
    headed = [text for text in train + validation if text.startswith("sentiment: ")]
    assert len(train + validation) == 400 and 0.7 < len(headed) / 400 < 0.8
    for side in (train, validation):
        assert 0.6 < sum(text.startswith("sentiment: ") for text in side) / len(side) < 0.9
    in_training = sum(text.startswith("sentiment: ") for text in train)
    assert sum(data.manifest.control["sentiment"].values()) == in_training
    again = prepared(path, tmp_path / "again", control=FIELDS, control_dropout=0.25)
    assert documents_of(again) == [train, validation]


@pytest.mark.parametrize("kind", [TokenizerKind.byte, TokenizerKind.character, TokenizerKind.bpe])
def test_characters_and_bytes_include_the_headers(kind: TokenizerKind, tmp_path: Path) -> None:
    made = [{**one, "sentiment": "ünsure"} for one in records()]
    data = prepared(write(tmp_path / "a.jsonl", made), tmp_path / "out", kind, control=("sentiment",))
    for texts, side in zip(documents_of(data), (data.manifest.train, data.manifest.validation), strict=True):
        assert side.characters == sum(map(len, texts))
        assert side.bytes == sum(len(text.encode()) for text in texts)
    assert data.card["text"]["characters"] == sum(len(one["text"]) for one in made)


def test_split_document_has_its_header_on_both_sides(tmp_path: Path) -> None:
    lines = [{"text": text_of(400), "sentiment": "positive"}]
    train, validation = documents_of(
        prepared(write(tmp_path / "a.jsonl", lines), tmp_path / "out", control=("sentiment",))
    )
    assert len(train) == len(validation) == 1
    head = "sentiment: positive\n"
    assert train[0].removeprefix(head) + validation[0].removeprefix(head) == lines[0]["text"]
    assert train[0].startswith(head) and validation[0].startswith(head)


def test_duplicates_are_found_despite_different_headers(tmp_path: Path) -> None:
    made = records(60)
    duplicates = [{**one, "sentiment": "neither"} for one in made]
    path = write(tmp_path / "a.jsonl", made + duplicates)
    data = prepared(path, tmp_path / "out", control=("sentiment",), deduplicate="exact")
    assert data.manifest.train.documents + data.manifest.validation.documents == len(made)
    assert "neither" not in data.manifest.control["sentiment"]
    assert data.card["text"]["identical_documents"] == len(made)


@pytest.mark.parametrize(
    ("value", "problem"),
    [("x" * 101, "101 characters"), ("a\nb", "line break"), ([1], "but list"), ("\ud800", "not text")],
)
def test_invalid_attribute_value_is_a_bad_line(value: Any, problem: str, tmp_path: Path) -> None:
    lines = [{"text": "a", "sentiment": "good"}, {"text": "b", "sentiment": value}]
    path = write(tmp_path / "a.jsonl", lines)
    with pytest.raises(DataError, match=rf"a\.jsonl: line 2 has in field 'sentiment' .*{problem}"):
        pieces(path, control=("sentiment",))
    corpus = open_corpus(DataConfig(source=(str(path),), control=("sentiment",), on_bad_line="skip"))
    assert [piece.text for piece in corpus.pieces()] == ["a"]
    assert corpus.report.skipped == {"bad lines": 1}


def test_field_with_too_many_values_is_rejected(tmp_path: Path) -> None:
    lines = [{"text": f"text {i}", "id": i} for i in range(MOST_VALUES + 1)]
    with pytest.raises(DataError, match="'id', for which the documents have more than 100 different values"):
        prepared(write(tmp_path / "a.jsonl", lines), tmp_path / "out", control=("id",))
    prepared(write(tmp_path / "b.jsonl", lines[:-1]), tmp_path / "out", control=("id",))


def test_field_missing_from_all_records_is_rejected(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", records())
    with pytest.raises(DataError, match=r"no document has the field 'sentimant'.*did you mean 'sentiment'"):
        prepared(path, tmp_path / "out", control=("sentimant",))


def test_plain_text_has_no_fields(text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text('{"text": "a"}')
    for source in (text_file, tmp_path / "one.json", Path("python-docs")):
        with pytest.raises(DataError, match=r"no fields for data\.control"):
            pieces(source, control=("length",))


def test_control_fields_are_not_taken_for_the_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"review": "good", "sentiment": "very positive indeed"}])
    assert [piece.text for piece in pieces(path, control=("sentiment",))] == ["good"]


@pytest.mark.parametrize("names", [("a", "a"), ("",), ("a\nb",), ("review",)])
def test_invalid_field_names_are_rejected(names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"data\.control"):
        check(Config(data=DataConfig(control=names, text_field="review")))


def test_requested_control_codes_give_the_header_of_training() -> None:
    assert header_for({"true": True, "sentiment": "positive"}, KNOWN) == "sentiment: positive, true: true\n"
    with pytest.raises(ConfigError, match="did you mean 'positive'"):
        header_for({"sentiment": "positiv"}, KNOWN)
    with pytest.raises(ConfigError, match="there are: positive, negative"):
        header_for({"sentiment": "xyz"}, KNOWN)
    with pytest.raises(ConfigError, match="no field 'sentimant'"):
        header_for({"sentimant": "positive"}, KNOWN)
    with pytest.raises(ConfigError, match="trained without"):
        header_for({"sentiment": "positive"}, {})
