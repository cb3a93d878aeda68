"""Contamination: planted n-grams are found in evaluation text, and nothing else is reported."""

import json
import random
from pathlib import Path

import pytest

from tests.helpers import text_of
from wholegpt.cli import main
from wholegpt.data.text.contamination import contamination


def words(count: int, seed: int) -> list[str]:
    generator = random.Random(seed)
    return ["".join(generator.choice("abcdefghij") for _ in range(6)) for _ in range(count)]


def test_exactly_the_planted_ngrams_are_found() -> None:
    training = [words(300, seed) for seed in range(50)]
    evaluation = [words(100, 1000 + seed) for seed in range(40)]
    generator = random.Random(0)
    planted = generator.sample(range(40), 15)
    for number in planted:
        source, at, to = generator.randrange(50), generator.randrange(287), generator.randrange(87)
        evaluation[number][to : to + 13] = training[source][at : at + 13]
    overlaps = contamination([[" ".join(one)] for one in training], [[" ".join(one)] for one in evaluation])
    assert [one.document for one in overlaps if one.found] == sorted(planted)
    assert all(one.ngrams == 88 for one in overlaps)
    assert all(one.found == 1 for one in overlaps if one.found)
    for number in planted:
        assert overlaps[number].excerpt in " ".join(evaluation[number])


def test_ngrams_are_matched_despite_case_and_punctuation() -> None:
    (overlap,) = contamination([["To be, or not to be"]], [["to BE -- or... not;"]], words=4)
    assert (overlap.ngrams, overlap.found, overlap.excerpt, overlap.share) == (1, 1, "to be or not", 1.0)


def test_contamination_by_hand() -> None:
    """Of the trigrams a b c, b c d and c d e, the first and last occur in training, across pieces of a document."""
    training = [["a b c x", " y c"], ["d e"], [" d e c ", "d e"]]
    (overlap, short) = contamination(training, [["a b c d e"], ["a b"]], words=3)
    assert (overlap.ngrams, overlap.found, overlap.excerpt) == (3, 2, "a b c")
    assert (short.ngrams, short.share) == (0, 0.0)


def test_contamination_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documents = [text_of(400, seed) for seed in range(5)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in documents))
    known = " ".join(documents[3].split()[5:40])
    asked = ["nothing of that here", f"before {known} behind"]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in asked))
    command = ["data", "contamination", str(tmp_path / "train.jsonl"), str(tmp_path / "test.jsonl")]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["documents"], result["contaminated"], result["too_short"]) == (2, 1, 1)
    (found,) = result["contaminated_documents"]
    assert (
        found["document"] == 1
        and found["found"] == 35 - 12
        and found["excerpt"] in known.lower().replace(".", "")
    )
    assert main(command) == 0
    assert "1 of 2 documents" in capsys.readouterr().out


def test_warning_about_a_contaminated_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    duplicates = [text_of(300, seed % 40) for seed in range(80)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in duplicates))
    command = [
        "data",
        "prepare",
        str(tmp_path / "text.jsonl"),
        "--tokenizer.kind",
        "byte",
        "--quiet",
        "--out",
    ]
    assert main([*command, str(tmp_path / "all")]) == 0
    warned = capsys.readouterr().err
    assert "documents occurs in the training text, so the evaluation is too optimistic" in warned
    assert "--data.deduplicate near" in warned
    assert main([*command, str(tmp_path / "fewer"), "--data.deduplicate", "exact"]) == 0
    assert "occurs in the training text" not in capsys.readouterr().err
