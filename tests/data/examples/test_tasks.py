"""Task examples: column detection, labels, answers, encoding and truncation of sequences, invalid rows."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wholegpt.data.examples.columns import TaskColumns
from wholegpt.data.examples.data import read_labeled, shares
from wholegpt.data.examples.tasks import (
    CLASSIFY,
    DELIMITER,
    SPECIAL_TOKENS,
    START,
    Task,
    TaskExample,
    encode_example,
    label_names,
    read_examples,
    read_parts,
)
from wholegpt.data.reading.tables import Reading, Table, read_table
from wholegpt.errors import DataError
from wholegpt.settings.choices import TaskKind
from wholegpt.tokenizers import byte_tokenizer

TOKENIZER = byte_tokenizer().with_special_tokens(SPECIAL_TOKENS)
ENTAILMENT, CLASSIFICATION = TaskKind.entailment, TaskKind.classification


def table(*rows: dict[str, Any]) -> Table:
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    return Table(Path("t.jsonl"), columns, list(rows), [f"line {i}" for i, _ in enumerate(rows, 1)])


def test_columns_of_real_tables(shared_data: Path) -> None:
    expected = {
        ("sst2/train.tsv", TaskKind.classification): (6920, ("0",), "1", ["0", "1"]),
        ("sick/train.tsv", TaskKind.entailment): (
            4500,
            ("sentence_A", "sentence_B"),
            "entailment_judgment",
            ["CONTRADICTION", "ENTAILMENT", "NEUTRAL"],
        ),
        ("sick/train.tsv", TaskKind.similarity): (
            4500,
            ("sentence_A", "sentence_B"),
            "relatedness_score",
            None,
        ),
        ("mrpc/train.tsv", TaskKind.similarity): (3576, ("#1 String", "#2 String"), "Quality", ["0", "1"]),
    }
    for (name, task), (rows, texts, target, labels) in expected.items():
        examples, columns = read_examples(read_table(shared_data / name), task)
        assert (len(examples), columns.texts, columns.target) == (rows, texts, target)
        if labels:
            assert label_names(examples, name) == labels
        else:
            scores = [float(example.target) for example in examples]
            assert min(scores) == 1 and max(scores) == 5


def test_sequences_of_each_task() -> None:
    pair = table(
        {"a": "the first one", "b": "the second", "verdict": "yes"}, {"a": "x y", "b": "z", "verdict": "no"}
    )
    (first, _), columns = read_examples(pair, ENTAILMENT)
    assert columns == TaskColumns(("a", "b"), (), "verdict")
    assert first == TaskExample((("the first one", "the second"),), "yes")
    (first, _), _ = read_examples(pair, TaskKind.similarity)
    assert first.parts == (("the first one", "the second"), ("the second", "the first one"))
    asked = table({"context": "c", "question": "q?", "choices": ["one", "two"], "answer": "B"})
    assert read_examples(asked, TaskKind.choice)[0] == [TaskExample((("c q?", "one"), ("c q?", "two")), 1)]
    lettered = table({"question": "q?", "A": "one", "B": "two", "answer": "one"})
    assert read_examples(lettered, TaskKind.choice)[0] == [TaskExample((("q?", "one"), ("q?", "two")), 0)]


@pytest.mark.parametrize(
    ("values", "scores"),
    [
        (["0", "1", "1"], False),
        (["1.5", "2", "3"], True),
        ([str(i) for i in range(12)], True),
        (["a", "1"], False),
        (["a", "b", *map(str, range(12))], False),
    ],
)
def test_numbers_are_scores_or_labels(values: list[str], scores: bool) -> None:
    rows = [{"text1": f"left {i}", "text2": f"right {i}", "label": value} for i, value in enumerate(values)]
    examples, _ = read_examples(table(*rows), TaskKind.similarity)
    assert isinstance(examples[0].target, float) is scores
    (example, *_), _ = read_examples(table(*rows), TaskKind.similarity, scores=False)
    assert isinstance(example.target, str)


def test_json_number_as_an_answer_is_an_index_before_a_text() -> None:
    for answer, index in ((0, 0), ("0", 2), (2, 2), ("C", 2), ("1", 0)):
        row = {"question": "How many?", "choices": ["1", "2", "0"], "answer": answer}
        assert read_examples(table(row), TaskKind.choice)[0][0].target == index


def test_integers_are_one_label_in_any_notation() -> None:
    rows = [{"text": "a", "label": label} for label in (1, 1.0, "1")]
    assert [one.target for one in read_examples(table(*rows), CLASSIFICATION)[0]] == ["1", "1", "1"]


def test_columns_of_the_training_table_are_reused_if_present(tmp_path: Path) -> None:
    """A missing column is detected again; the others are kept."""
    row = {"kind": "x", "title": "short", "text": "the longest of all of these"}
    task = Task(CLASSIFICATION, ("x", "y"), columns=TaskColumns(("title",), (), "label"))
    assert read_parts(table(row), task, Reading()) == [(("short",),)]
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert read_labeled(tmp_path / "a.jsonl", Reading(), task) == [TaskExample((("short",),), "x")]


def test_large_integer_labels_are_exact() -> None:
    rows = [{"text": "a", "label": label} for label in (1000001.0, 1000002.0)]
    assert [one.target for one in read_examples(table(*rows), CLASSIFICATION)[0]] == ["1000001", "1000002"]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=40), st.sampled_from([0.05, 0.1, 0.3]))
def test_shares_of_groups_add_up_and_leave_one_per_group(sizes: list[int], fraction: float) -> None:
    taken = shares(sizes, fraction)
    assert all(0 <= one < size for one, size in zip(taken, sizes, strict=True))
    wanted = round(sum(size * fraction for size in sizes))
    assert sum(taken) <= wanted
    if all(size > 1 / fraction for size in sizes):
        assert sum(taken) == wanted
    assert all(abs(one - size * fraction) < 1 for one, size in zip(taken, sizes, strict=True) if size > 1)


def test_labels_are_sorted() -> None:
    def labeled(*labels: str) -> list[TaskExample]:
        return [TaskExample((("a",),), label) for label in labels * 2]

    assert label_names(labeled("10", "9", "-1"), "x") == ["-1", "9", "10"]
    assert label_names(labeled("b", "a", "10"), "x") == ["10", "a", "b"]
    for labels, message in (
        (("a",), "every example has the label 'a'"),
        (tuple(map(str, range(1001))), "1,001 different"),
    ):
        with pytest.raises(DataError, match=message):
            label_names(labeled(*labels), "x")
    with pytest.raises(DataError, match="label 'c' has a single example"):
        label_names([*labeled("a", "b"), TaskExample((("a",),), "c")], "x")
    seen = table({"text": "a", "label": "good"}, {"text": "b", "label": "godo"})
    with pytest.raises(DataError, match=r"line 2: the label 'godo' is not in the training examples; .*good"):
        read_examples(seen, CLASSIFICATION, labels=["bad", "good"])


@given(
    st.lists(st.lists(st.text(max_size=30), min_size=1, max_size=2), min_size=1, max_size=3),
    st.integers(6, 60),
)
def test_sequences_are_truncated_at_the_longest_part(parts: list[list[str]], context_length: int) -> None:
    encoded = encode_example(parts, TOKENIZER, context_length)
    start, delimiter, classify = (TOKENIZER.id_of(name) for name in (START, DELIMITER, CLASSIFY))
    lost = 0
    for texts, sequence in zip(parts, encoded.sequences, strict=True):
        assert len(sequence) <= context_length
        assert sequence[0] == start and sequence[-1] == classify
        found = [[]]
        for token in sequence[1:-1]:
            found = [*found, []] if token == delimiter else [*found[:-1], [*found[-1], token]]
        whole = [TOKENIZER.encode(text) for text in texts]
        assert [ids[: len(kept)] for ids, kept in zip(whole, found, strict=True)] == found
        cut = [len(ids) - len(kept) for ids, kept in zip(whole, found, strict=True)]
        lost += sum(cut)
        if any(cut):
            assert len(sequence) == context_length
            assert all(len(kept) + 1 >= max(map(len, found)) for kept, n in zip(found, cut, strict=True) if n)
    assert encoded.cut == lost


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        (
            CLASSIFICATION,
            [{"text": "a", "label": "x"}, {"text": " ", "label": "y"}],
            "line 2: has an empty text in 'text'",
        ),
        (CLASSIFICATION, [{"text": "a", "label": None}], "line 1: has no label in 'label'"),
        (CLASSIFICATION, [{"text": 3, "label": "x"}], "has no text but 3 in 'text'"),
        (CLASSIFICATION, [{"only": "a"}], "needs 1 column of texts and one of labels.* among only"),
        (ENTAILMENT, [{"text": "a", "label": "x"}], "needs 2 columns of texts"),
        (
            TaskKind.choice,
            [{"context": "a", "answer": 0}],
            "no column for choices; there are context, answer",
        ),
        (
            TaskKind.choice,
            [{"context": "a", "choices": ["b", "c"], "answer": 2}],
            "the answer is 2; expected 0 to 1, A to B",
        ),
        (TaskKind.choice, [{"context": "a", "choices": ["b", "c"], "answer": "D"}], "the answer is 'D'"),
        (
            TaskKind.choice,
            [{"context": "a", "choices": ["b", ""], "answer": 0}],
            "at least two answers, none empty",
        ),
        (
            TaskKind.choice,
            [
                {"context": "a", "choices": ["b", "c", "d", "e"], "answer": 0},
                {"context": "a", "choices": ["b", "c"], "answer": 0},
            ],
            "line 2: has 2 answers, and the first example 4",
        ),
    ],
)
def test_invalid_examples_are_rejected(task: TaskKind, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_examples(table(*rows), task)


def test_missing_column_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "a", "label": "b"}) + "\n")
    for columns in (TaskColumns(target="class"), TaskColumns(texts=("review",))):
        with pytest.raises(DataError, match=r"has no column '(class|review)'; there are text, label"):
            read_examples(read_table(path), CLASSIFICATION, columns)
    rows = [{"text1": "a", "text2": "b", "label": value} for value in ("1.5", "high")]
    with pytest.raises(DataError, match="line 2: 'high' in 'label' is not a number"):
        read_examples(table(*rows), TaskKind.similarity, scores=True)
    rows = [{"text1": "a", "text2": "b", "label": value} for value in (*map(str, range(20)), "n/a")]
    with pytest.raises(
        DataError, match="line 21: 'n/a' in 'label' is not a number, unlike nearly all others"
    ):
        read_examples(table(*rows), TaskKind.similarity)
    with pytest.raises(DataError, match="line 2: the score 1e300 is beyond"):
        read_examples(
            table(*({"text1": "a", "text2": "b", "label": x} for x in ("0.5", "1e300"))), TaskKind.similarity
        )
