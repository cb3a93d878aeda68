"""Deduplication finds planted duplicates and near-duplicates, and no others."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import text_of
from wholegpt.cli import main
from wholegpt.data.text.deduplication import Duplicates, find_duplicates
from wholegpt.errors import ConfigError

pytest.importorskip("rensa")


def found(documents: list[str], near: bool = True) -> Duplicates:
    return find_duplicates(([text] for text in documents), near)


def test_exact_duplicates_ignore_case_and_white_space() -> None:
    documents = ["One two.", "three", "one  TWO.\n", "one, two", "three", ""]
    duplicates = found(documents, near=False)
    assert duplicates.first.tolist() == [0, 1, 0, 3, 1, 5]
    assert (duplicates.exact, duplicates.near) == (2, 0)
    assert duplicates.kept.tolist() == [True, True, False, True, False, True]


def test_chain_of_near_duplicates_is_one_cluster() -> None:
    words = [f"w{i}" for i in range(100)]
    chain = [" ".join(words[:i] + [f"x{j}" for j in range(i)] + words[i:]) for i in (0, 1, 2)]
    assert found([*chain, "nothing of the kind"]).first.tolist() == [0, 0, 0, 3]


def changed(text: str, share: float, generator: random.Random, vocabulary: list[str]) -> str:
    words = text.split(" ")
    return " ".join(generator.choice(vocabulary) if generator.random() < share else word for word in words)


def test_planted_near_duplicates_of_real_documents(shared_data: Path) -> None:
    lines = (shared_data / "english.jsonl").read_text(encoding="utf-8").strip().split("\n")[::4]
    documents = [json.loads(line)["text"] for line in lines]
    alone = found(documents)
    originals = [i for i in np.flatnonzero(alone.kept) if len(documents[i].split()) >= 50][:200]
    vocabulary = [word for document in documents[:100] for word in document.split()]
    generator = random.Random(1)
    for share, least in ((0.0, 0.95), (0.05, 0.95), (0.1, 0.9)):
        copies = [changed(documents[i], share, generator, vocabulary) for i in originals]
        first = found([*documents, *copies]).first
        recall = np.mean([first[len(documents) + n] == i for n, i in enumerate(originals)])
        assert recall >= least, (share, recall)
    copies = [changed(documents[i], 0.5, generator, vocabulary) for i in originals]
    assert np.mean(found([*documents, *copies]).kept[len(documents) :]) > 0.99


def test_document_in_pieces_is_compared_as_a_whole() -> None:
    text = text_of(2000)
    half = text.index(" ", 1000)
    whole, pieces = [text], [text[:half], text[half:]]
    assert find_duplicates([whole, pieces], near=True).first.tolist() == [0, 0]


def test_prepare_removes_duplicates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documents = [text_of(300, seed) for seed in range(80)]
    lines = [json.dumps({"text": text}) + "\n" for text in [*documents, *(d.upper() for d in documents[:20])]]
    (tmp_path / "text.jsonl").write_text("".join(lines))
    command = ["data", "prepare", str(tmp_path / "text.jsonl"), "--tokenizer.kind", "byte", "--out"]
    assert main([*command, str(tmp_path / "all"), "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert main([*command, str(tmp_path / "fewer"), "--json", "--data.deduplicate", "exact"]) == 0
    printed = capsys.readouterr()
    fewer = json.loads(printed.out)
    count = [sum(result[side]["documents"] for side in ("train", "validation")) for result in (whole, fewer)]
    assert count == [100, 80]
    assert (
        "20 of 100 documents are duplicates of earlier ones, 0 are near-duplicates; they are removed"
        in printed.err
    )


def test_near_threshold_must_be_a_fraction() -> None:
    from wholegpt.settings.schema import Config, DataConfig
    from wholegpt.settings.validation import check

    with pytest.raises(ConfigError, match=r"data\.near_threshold"):
        check(Config(data=DataConfig(near_threshold=1.5)))


def test_scripts_without_spaces_and_texts_without_words() -> None:
    """Chinese is compared by characters; a text without words duplicates only identical texts."""
    generator = random.Random(0)
    documents = ["".join(chr(generator.randrange(0x4E00, 0x9FFF)) for _ in range(300)) for _ in range(20)]
    copies = [text[:100] + "一" + text[101:200] + "一" + text[201:] for text in documents]
    assert found([*documents, *copies]).first.tolist() == [*range(20), *range(20)]
    signs = ["!!!", "???", "🙂🙂", "—", "...", "!!!"]
    duplicates = found(signs)
    assert duplicates.first.tolist() == [0, 1, 2, 3, 4, 0] and duplicates.near == 0
    assert duplicates.similarity.tolist() == [1.0] * 6


def test_duplicates_in_pieces_ignore_white_space() -> None:
    """Piece boundaries depend on the white space."""
    words = text_of(3000).split()
    one = [" ".join(words[:200]), " " + " ".join(words[200:])]
    other = ["\n".join(words[:90]), "\n\n" + "  ".join(words[90:])]
    assert find_duplicates([one, other], near=False).first.tolist() == [0, 0]


def test_duplicate_clusters_by_hand() -> None:
    duplicates = found(["b b b", "a a a a", "B b b", "a  a a a", "c", "A a a a"], near=False)
    assert list(duplicates.clusters(str)) == [
        {
            "kept": {"document": 0, "excerpt": "0"},
            "left_out": [{"document": 2, "similarity": 1.0, "excerpt": "2"}],
        },
        {
            "kept": {"document": 1, "excerpt": "1"},
            "left_out": [{"document": i, "similarity": 1.0, "excerpt": str(i)} for i in (3, 5)],
        },
    ]
    assert list(found(["a", "b"], near=False).clusters(str)) == []
