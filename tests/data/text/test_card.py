"""Data cards: recomputed statistics, hashes, warnings, and the commands that show them."""

import hashlib
import json
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.helpers import Fails, text_of, tiny
from wholegpt.cli import main
from wholegpt.data import PreparedData
from wholegpt.files import read_json

LATIN, GREEK = "some words of English text here ", "λόγος καὶ ἔργον "


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two sources, a table and texts in several Unicode scripts, with a duplicate and a binary file."""
    documents = [text_of(200, seed) for seed in range(60)]
    lines = [json.dumps({"body": text, "id": i}) + "\n" for i, text in enumerate([*documents, documents[3]])]
    (tmp_path / "table.jsonl").write_text("".join(lines))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "greek.txt").write_text(GREEK * 20, encoding="utf-8")
    (tmp_path / "texts" / "mixed.md").write_text(LATIN + "東京 Москва", encoding="utf-8")
    (tmp_path / "texts" / "picture.png").write_bytes(b"\x89PNG\0")
    return tmp_path


def prepare(folder: Path, out: str, *more: str) -> tuple[list[str], Path]:
    sources = [str(folder / "table.jsonl"), str(folder / "texts")]
    target = folder / out
    return ["data", "prepare", *sources, "--out", str(target), "--tokenizer.kind", "byte", *more], target


def texts_of(folder: Path) -> list[list[str]]:
    lines = (folder / "table.jsonl").read_text().splitlines()
    files = [folder / "texts" / name for name in ("greek.txt", "mixed.md")]
    return [
        [json.loads(line)["body"] for line in lines],
        [file.read_text(encoding="utf-8") for file in files],
    ]


def test_statistics_of_the_card_are_correct(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, out = prepare(folder, "out", "--data.license", "CC0-1.0")
    assert main([*command, "--json"]) == 0
    printed = capsys.readouterr()
    card, sources = read_json(out / "card.json"), texts_of(folder)
    everything = [text for source in sources for text in source]
    assert json.loads(printed.out)["card"] == card["sha256"] and card["license"] == "CC0-1.0"
    for found, texts in zip(card["sources"], sources, strict=True):
        assert (found["documents"], found["characters"], found["bytes"]) == (
            len(texts),
            sum(map(len, texts)),
            sum(len(text.encode()) for text in texts),
        )
    table, files = card["sources"]
    content = hashlib.sha256((folder / "table.jsonl").read_bytes()).hexdigest()
    assert table["files_sha256"] == content and table["text_fields"] == {"body": 1}
    assert files["skipped"] == {"binary (.png)": 1} and files["files"] == 2
    lengths = sorted(map(len, everything))
    assert card["text"]["characters_of_documents"]["most"] == lengths[-1]
    assert card["text"]["characters_of_documents"]["median"] == lengths[(len(lengths) - 1) // 2]
    assert card["text"]["identical_documents"] == 1
    letters = Counter(
        unicodedata.name(c).split()[0]
        for text in everything
        for c in text
        if unicodedata.category(c)[0] == "L"
    )
    assert card["unicode_scripts"] == pytest.approx({k: n / letters.total() for k, n in letters.items()})
    assert set(letters) == {"LATIN", "GREEK", "CJK", "CYRILLIC"}
    data = PreparedData.open(out)
    for side, tokens in (("train", data.train), ("validation", data.validation)):
        assert card[side]["tokens"] == len(tokens) == sum(card[side]["source_tokens"])
        assert card[side]["bytes_per_token"] == card[side]["bytes"] / len(tokens)
    assert sum(card[side]["bytes"] for side in ("train", "validation")) == sum(
        len(t.encode()) for t in everything
    )
    page = (out / "card.md").read_text(encoding="utf-8")
    for word in ("CC0-1.0", card["sha256"], "GREEK", "1 binary (.png)", "63 documents", content):
        assert word in page
    assert main(["data", "stats", str(out)]) == 0
    assert capsys.readouterr().out.strip() == page.strip()
    assert main(["data", "stats", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == card


def test_a_card_of_an_older_version_is_shown_with_current_names(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, out = prepare(folder, "data")
    assert main([*command, "--quiet"]) == 0
    card = read_json(out / "card.json")
    capsys.readouterr()
    assert main(["data", "stats", str(out)]) == 0
    shown = capsys.readouterr().out
    old = {"unicode_scripts": "alphabets", "license": "licence"}
    older = {old.get(name, name): value for name, value in card.items()}
    old = {"contaminated": "overlapping", "mostly_contaminated": "mostly_overlapping"}
    older["contamination"] = {old.get(name, name): value for name, value in card["contamination"].items()}
    (out / "card.json").write_text(json.dumps(older))
    assert PreparedData.open(out).card == card
    assert main(["data", "stats", str(out)]) == 0
    assert capsys.readouterr().out == shown


def test_hash_depends_only_on_the_data(folder: Path) -> None:
    command, _ = prepare(folder, "one")
    assert main([*command, "--quiet"]) == 0
    (folder / "texts").rename(folder / "renamed")
    renamed = [part.replace("/texts", "/renamed") for part in command]
    assert main([*(part.replace("/one", "/two") for part in renamed), "--data.license", "none"]) == 0
    (folder / "renamed" / "mixed.md").write_text(LATIN)
    assert main([part.replace("/one", "/three") for part in renamed]) == 0
    one, two, three = (read_json(folder / name / "card.json")["sha256"] for name in ("one", "two", "three"))
    assert one == two != three


def test_run_records_its_card_and_warns_about_other_data(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, run = str(folder / "table.jsonl"), folder / "run"
    assert main(["train", source, "--out", str(run), *tiny()]) == 0
    card = read_json(run / "data" / "card.json")["sha256"]
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["card"] == card
    assert read_json(run / "lineage.json")["data_card"] == card
    capsys.readouterr()
    repeat = ["train", "--config", str(run / "config.yaml"), "--quiet", "--out"]
    assert main([*repeat, str(folder / "same")]) == 0
    assert "data.card" not in capsys.readouterr().err
    with (folder / "table.jsonl").open("a") as file:
        file.write(json.dumps({"body": "one more"}) + "\n")
    assert main([*repeat, str(folder / "other")]) == 0
    assert "this is not the data that data.card names" in capsys.readouterr().err


def test_warning_about_many_duplicates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.dumps({"text": text_of(100, seed % 80)}) + "\n" for seed in range(100)]
    (tmp_path / "t.jsonl").write_text("".join(lines))
    command = ["data", "prepare", str(tmp_path / "t.jsonl"), "--tokenizer.kind", "byte", "--out"]
    assert main([*command, str(tmp_path / "all")]) == 0
    assert "20 of 100 documents duplicate an earlier one; --data.deduplicate exact" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "fewer"), "--data.deduplicate", "exact"]) == 0
    assert "the same as an earlier one" not in capsys.readouterr().err
    clusters = [
        json.loads(line) for line in (tmp_path / "fewer" / "duplicates.jsonl").read_text().splitlines()
    ]
    assert [(c["kept"]["document"], [d["document"] for d in c["left_out"]]) for c in clusters] == [
        (i, [i + 80]) for i in range(20)
    ]
    duplicates = read_json(tmp_path / "fewer" / "card.json")["duplicates"]
    assert duplicates == {"method": "exact", "left_out_exact": 20, "left_out_near": 0}


def test_data_stats_of_text(folder: Path, capsys: pytest.CaptureFixture[str], fails: Fails) -> None:
    assert main(["data", "stats", str(folder / "table.jsonl"), str(folder / "texts")]) == 0
    shown = capsys.readouterr().out
    assert (
        "63, of which 1 are byte-for-byte duplicates" in shown
        and "GREEK" in shown
        and "1 binary (.png)" in shown
    )
    (folder / "empty.txt").write_text("")
    assert "holds no text" in fails("data", "stats", str(folder / "empty.txt"))


def test_data_deduplicate_lists_clusters_and_writes_the_kept_documents(
    folder: Path, capsys: pytest.CaptureFixture[str], fails: Fails
) -> None:
    pytest.importorskip("rensa")
    changed = text_of(200, 5).replace("the", "a", 1)
    with (folder / "table.jsonl").open("a") as file:
        file.write(json.dumps({"body": changed}) + "\n")
    out = folder / "kept.jsonl"
    command = ["data", "deduplicate", str(folder / "table.jsonl")]
    assert main([*command, "--json", "--out", str(out)]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (found["documents"], found["kept"], found["exact"], found["near"]) == (62, 60, 1, 1)
    near = found["clusters"][1]
    assert near["kept"]["document"] == 5 and near["left_out"][0]["document"] == 61
    assert 0.45 <= near["left_out"][0]["similarity"] < 1
    kept = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    assert kept == texts_of(folder)[0][:60]
    assert main([*command, "--exact"]) == 0
    assert "61 of 62 documents kept; left out: 1 exact and 0 near duplicates" in capsys.readouterr().out
    assert "already exists" in fails(*command, "--out", str(out))
    assert "data.near_words is 0" in fails(*command, "--words", "0")


def test_skipped_documents_are_reported_by_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "table.jsonl"
    path.write_text('{"text": "one text of some words"}\n{"text": ""}\n{"text": "another text of words"}\n')
    for command in (["deduplicate", "--exact"], ["contamination", str(path)]):
        assert main(["data", command[0], str(path), *command[1:]]) == 0
        assert "skipped 1 empty document" in capsys.readouterr().err


def test_cleaning_repairs_text_with_ftfy(tmp_path: Path) -> None:
    """UTF-8 decoded as Windows-1252, HTML entities, and curly quotes."""
    pytest.importorskip("ftfy")
    broken = "The Mona Lisa doesnâ€™t have eyebrows &amp; “smiles”. "
    (tmp_path / "t.txt").write_text(broken * 20, encoding="utf-8")
    command = ["data", "prepare", str(tmp_path / "t.txt"), "--tokenizer.kind", "byte", "--quiet", "--out"]
    assert main([*command, str(tmp_path / "out"), "--data.clean", "ftfy"]) == 0
    data = PreparedData.open(tmp_path / "out")
    text = data.tokenizer.decode(data.train.read(0, len(data.train)).tolist())
    assert text.startswith('The Mona Lisa doesn\'t have eyebrows & "smiles". The Mona')
    assert np.all(data.train.read(0, 50) < 128)
