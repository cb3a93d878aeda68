"""Rows without a valid example: rejected, or skipped and counted with ``--on-bad-line skip``."""

import json
from pathlib import Path
from typing import Any

import pytest

from wholegpt.cli import main
from wholegpt.console import Console
from wholegpt.data.examples.columns import TaskColumns
from wholegpt.data.examples.data import TaskData
from wholegpt.data.examples.tasks import Task, read_parts
from wholegpt.data.reading.tables import Reading, read_table
from wholegpt.errors import ConfigError, DataError
from wholegpt.settings.choices import TaskKind
from wholegpt.settings.schema import Config, DataConfig, FinetuningConfig
from wholegpt.settings.validation import check

GOOD = "".join(f"good film {n},pos\nbad film {n},neg\n" for n in range(20))
BAD_ROWS = {"an empty text": b",pos\n", "no label": b"a film,\n", "blanks": b"  ,neg\n"}


def read(path: Path, task: TaskKind = TaskKind.classification, validation: str = "", **data: Any) -> TaskData:
    finetuning = FinetuningConfig(task=task, model="a model", data=str(path), validation=validation)
    return TaskData.read(Config(data=DataConfig(**data), finetuning=finetuning))


@pytest.mark.parametrize("bad", BAD_ROWS)
def test_invalid_rows_are_rejected_or_skipped(bad: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\n" + BAD_ROWS[bad] + GOOD.encode())
    with pytest.raises(DataError, match=r"a\.csv: line 2: has .*; --on-bad-line skip leaves such rows out"):
        read(path, on_bad_text="skip")
    data = read(path, on_bad_line="skip")
    assert len(data.train) + len(data.validation) == 40 and data.task.labels == ("neg", "pos")


def test_broken_lines_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\n" + GOOD.encode() + b"ragged\nfilm \xff,pos\n")
    with pytest.raises(DataError, match="is not utf-8"):
        read(path, on_bad_line="skip")
    with pytest.raises(DataError, match="line 42 has 1 columns"):
        read(path, on_bad_text="skip")
    data = read(path, on_bad_line="skip", on_bad_text="skip")
    assert len(data.train) + len(data.validation) == 40
    data = read(path, on_bad_line="skip", on_bad_text="replace")
    assert len(data.train) + len(data.validation) == 41


def test_held_out_examples_and_other_tasks(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + GOOD)
    (tmp_path / "dev.csv").write_text("text,label\ngood,pos\nodd,unheard-of\n,neg\n")
    held_out = str(tmp_path / "dev.csv")
    with pytest.raises(DataError, match=r"dev\.csv: line 3: the label 'unheard-of'"):
        read(tmp_path / "a.csv", validation=held_out)
    assert len(read(tmp_path / "a.csv", validation=held_out, on_bad_line="skip").validation) == 1
    questions: list[dict[str, Any]] = [{"question": "?", "choices": None, "answer": 0}]
    questions += [{"question": f"{n}?", "choices": ["a", "b"], "answer": n % 2} for n in range(30)]
    questions += [{"question": "?", "choices": ["a", "b"], "answer": 7}]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(one) + "\n" for one in questions))
    data = read(tmp_path / "q.jsonl", TaskKind.choice, on_bad_line="skip")
    assert len(data.train) + len(data.validation) == 30
    scores = "".join(f"a {n},b {n},{n / 4}\n" for n in range(30)) + "a,b,\na,b,much\n"
    (tmp_path / "s.csv").write_text("text1,text2,score\n" + scores)
    data = read(tmp_path / "s.csv", TaskKind.similarity, on_bad_line="skip")
    assert len(data.train) + len(data.validation) == 30 and data.task.scores


def test_skipped_rows_are_counted_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + GOOD + 11 * ",pos\n")
    finetuning = FinetuningConfig(task=TaskKind.classification, model="a model", data=str(path))
    TaskData.read(Config(data=DataConfig(on_bad_line="skip"), finetuning=finetuning), Console())
    notes = capsys.readouterr().err
    assert "skipped 11 rows without an example" in notes and "a.csv: line 42: " in notes and "…" in notes
    path.write_text("text,label\n,pos\n,neg\n")
    with pytest.raises(DataError, match="holds no examples; skipped 2 rows without an example"):
        read(path, on_bad_line="skip")


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_encodings_of_tables(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(("text,label\n" + GOOD.replace("film", "été")).encode(encoding))
    assert "été" in read(tmp_path / "a.csv", encoding=encoding).train[0].parts[0][0]


@pytest.mark.parametrize(
    "data",
    [
        {"text_field": "text"},
        {"control": ("label",)},
        {"deduplicate": "exact"},
        {"clean": "ftfy"},
        {"encoding": "latin-1"},
    ],
)
def test_text_settings_are_rejected(data: dict[str, Any], tmp_path: Path) -> None:
    """An encoding has no effect on Parquet, and the other settings have none on examples."""
    finetuning = FinetuningConfig(
        task=TaskKind.classification, model="a model", data=str(tmp_path / "a.parquet")
    )
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=r"does not apply to examples|has no effect here"):
        check(Config(data=DataConfig(**data), finetuning=finetuning))
        read(tmp_path / "a.parquet", **data)


def test_evaluation_reads_compressed_and_encoded_example_files(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = [{"id": "é", "context": "a", "choices": ["a", "b"], "answer": n % 2} for n in range(4)]
    broken = [{"context": "x", "choices": ["a", "b"], "answer": 5}, {"context": "y"}]
    lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in [*examples, *broken])
    (tmp_path / "a.jsonl").write_bytes((lines + "{\n").encode("latin-1"))
    call = ["evaluate", str(trained_run), str(tmp_path / "a.jsonl"), "--encoding", "latin-1", "--json"]
    assert main([*call, "--quiet"]) == 2
    assert "line 5: answer is 5" in capsys.readouterr().err
    assert main([*call, "--on-bad-line", "skip"]) == 0
    result = capsys.readouterr()
    assert json.loads(result.out)["examples"] == 4 and "skipped 1 bad line, 2 rows" in result.err


def test_prediction_skips_rows_without_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\ngood film,pos\n,pos\nbad film,\n")
    task = Task(TaskKind.classification, ("neg", "pos"), columns=TaskColumns(("text",), (), "label"))

    with pytest.raises(
        DataError, match=r"a\.csv: line 3: has an empty text in 'text'; --on-bad-line skip leaves"
    ):
        read_parts(read_table(path), task, Reading())

    reading = Reading(on_bad_line="skip")
    assert read_parts(reading.table(path), task, reading) == [(("good film",),), (("bad film",),)]
    assert reading.report.skipped == {"rows without an example": 1}


@pytest.mark.parametrize("option", ["--encoding=latin-1", "--on-bad-line=skip", "--on-bad-text=skip"])
def test_table_options_are_rejected_with_text_arguments(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "nowhere", "some text", option]) == 2
    assert f"{option.partition('=')[0]} is for a table (--data); leave it out" in capsys.readouterr().err
