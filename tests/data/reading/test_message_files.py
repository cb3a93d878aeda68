"""Conversations in message files, as text for pretraining."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import TINY
from wholegpt.cli import main
from wholegpt.data import open_corpus
from wholegpt.data.chat.template import DEFAULT_TEMPLATE
from wholegpt.data.reading.files import ReadingReport, read_documents, read_pieces
from wholegpt.errors import DataError
from wholegpt.settings.schema import DataConfig

ASKED = {"role": "user", "content": "Who?"}
ANSWERED = {"role": "assistant", "content": "Me."}
TOLD = {"role": "system", "content": "Be brief."}
FROM = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "Who?"},
    {"from": "gpt", "value": "Me."},
]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "Who?"}]}, ANSWERED]
SHORT = "<|user|>Who?<|assistant|>Me."
WITH_SYSTEM = f"<|system|>Be brief.{SHORT}"
NOTE = "conversations were rendered as text by the chat template"


def read(path: Path, **options: Any) -> tuple[list[str], ReadingReport]:
    report = ReadingReport()
    return list(read_documents(path, DataConfig(**options), report)), report


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"messages": [ASKED, ANSWERED]}, SHORT),
        ({"messages": [TOLD, ASKED, ANSWERED]}, WITH_SYSTEM),
        ({"messages": [ASKED, ANSWERED, ASKED, ANSWERED]}, f"{SHORT}<|endoftext|>{SHORT}"),
        ({"messages": [ASKED, ANSWERED, ASKED]}, f"{SHORT}<|endoftext|><|user|>Who?"),
        ({"messages": PARTS}, SHORT),
        ({"id": "a longer text than any message", "messages": [ASKED, ANSWERED]}, SHORT),
        ({"id": "x", "conversations": FROM}, WITH_SYSTEM),
        ({"conversations": FROM[1:], "system": "Be brief."}, WITH_SYSTEM),
        ({"Conversation": json.dumps(FROM)}, WITH_SYSTEM),
    ],
)
def test_conversation_is_one_document(record: dict[str, Any], text: str, tmp_path: Path) -> None:
    documents, report = read(write(tmp_path / "a.jsonl", record, record))
    assert documents == [text, text]
    assert NOTE in str(report) and not report.skipped
    (tmp_path / "a.json").write_text(json.dumps([record], indent=1))
    assert read(tmp_path / "a.json")[0] == [text]
    (tmp_path / "a.json").write_text(json.dumps(record, indent=1))
    assert read(tmp_path / "a.json")[0] == [text]


def test_template_equals_that_of_instruction_tuning(tmp_path: Path) -> None:
    """transformers renders it the same way; the final end-of-text is the token between documents."""
    transformers: Any = pytest.importorskip("transformers.utils.chat_template_utils")
    messages = [TOLD, ASKED, ANSWERED, {"role": "user", "content": " <b> & {{ x }}\n"}, ANSWERED]
    rendered, _ = transformers.render_jinja_template([messages], chat_template=DEFAULT_TEMPLATE)
    documents, _ = read(write(tmp_path / "a.jsonl", {"messages": messages}))
    assert f"{documents[0]}<|endoftext|>" == rendered[0]


def test_conversations_in_other_tables(tmp_path: Path) -> None:
    pyarrow: Any = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    columns = {"id": ["a", "b"], "messages": [[ASKED, ANSWERED]] * 2, "system": ["Be brief.", None]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet")[0] == [WITH_SYSTEM, SHORT]
    cell = json.dumps([ASKED, ANSWERED]).replace('"', '""')
    (tmp_path / "a.csv").write_text(f'id,messages\n1,"{cell}"\n')
    assert read(tmp_path / "a.csv")[0] == [SHORT]


def test_text_field_is_preferred_to_messages(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", {"messages": [ASKED, ANSWERED], "text": "a text", "chat": [ASKED, ANSWERED]}
    )
    assert read(path)[0] == ["a text"]
    assert read(path, text_field="messages")[0] == read(path, text_field="chat")[0] == [SHORT]


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"messages": []}, "expected a list of messages, found []"),
        ({"messages": [ASKED]}, "has no assistant message"),
        ({"messages": [ASKED, ASKED, ANSWERED]}, "user and assistant must alternate"),
        (
            {"messages": [ASKED, {"role": "tool", "content": "x"}]},
            "message 2: the role 'tool' belongs to tool calls",
        ),
        ({"messages": [ASKED, {"role": "assistant"}]}, "message 2: a message needs a content"),
        ({"messages": [ASKED, ANSWERED], "tools": [{"name": "x"}]}, "tool calls are not supported"),
        ({"messages": [TOLD, ASKED, ANSWERED], "system": "Be long."}, "differs from the one in the messages"),
        ({"messages": 3}, "has no text in field 'messages'"),
    ],
)
def test_other_records_are_bad_lines(record: dict[str, Any], problem: str, tmp_path: Path) -> None:
    good = {"messages": [ASKED, ANSWERED]}
    path = write(tmp_path / "a.jsonl", good, record, good)
    with pytest.raises(DataError, match=r"a\.jsonl: line 2 ") as refused:
        read(path)
    assert problem in str(refused.value) and "--on-bad-line skip" in str(refused.value)
    documents, report = read(path, on_bad_line="skip")
    assert documents == [SHORT, SHORT] and report.skipped == {"bad lines": 1}


def test_control_codes_of_conversations(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"messages": [ASKED, ANSWERED], "domain": "chat"})
    (piece,) = read_pieces(path, DataConfig(control=("domain", "length")), ReadingReport())
    assert piece.attributes == (("domain", "chat"), ("length", "short"))


def many(path: Path) -> Path:
    words = ["the sea", "a hill", "some rain", "one tree", "no wind"]
    return write(
        path,
        *(
            {"messages": [TOLD, {"role": "user", "content": f"Draw {word} {n}"}, ANSWERED]}
            for n in range(20)
            for word in words
        ),
    )


def test_stats_training_and_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, run = str(many(tmp_path / "a.jsonl")), str(tmp_path / "run")
    assert main(["data", "stats", source]) == 0
    assert NOTE in capsys.readouterr().out
    assert main(["data", "stats", source, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"]["documents"] == 100
    assert main(["train", source, "--out", run, *TINY]) == 0
    capsys.readouterr()
    assert main(["evaluate", run, source, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["bits_per_byte"] > 0 and NOTE in err


def test_conversations_of_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    (tmp_path / "local").mkdir()
    write(tmp_path / "local" / "train.jsonl", {"id": "x", "messages": [TOLD, ASKED, ANSWERED]})
    corpus = open_corpus(DataConfig(source=(f"hf:{tmp_path / 'local'}",)))
    assert [piece.text for piece in corpus.pieces()] == [WITH_SYSTEM]
