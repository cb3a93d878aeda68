"""Corpora, splits, shards, and the window loader."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import text_of
from wholegpt.console import Console
from wholegpt.data import (
    Corpus,
    PreparedData,
    TokenShards,
    WindowLoader,
    open_corpus,
    prepare,
    write_documents,
)
from wholegpt.data.reading.corpora import tinyshakespeare
from wholegpt.data.reading.decoding import Piece
from wholegpt.data.text.loader import permute, windows_before
from wholegpt.data.text.splitting import SIDES, draw_documents, plan_split
from wholegpt.data.text.vocabulary import fitting_vocabulary
from wholegpt.errors import DataError
from wholegpt.settings.choices import Split, TokenizerKind
from wholegpt.settings.schema import DataConfig, TokenizerConfig, TrainingConfig

QUIET = Console(quiet=True)
CHARACTERS = TokenizerConfig(TokenizerKind.character)


def documents_of(corpus: Corpus) -> list[str]:
    return [piece.text for piece in corpus.pieces()]


def prepared(source: Path, out: Path, **settings: Any) -> PreparedData:
    config = DataConfig(source=(str(source),), **settings)
    return prepare(open_corpus(config), config, CHARACTERS, out, QUIET)


def test_split_by_fraction_holds_out_the_last_tenth(text_file: Path, tmp_path: Path) -> None:
    text = text_file.read_text()
    data = prepared(text_file, tmp_path / "out")
    boundary = int(len(text) * 0.9)
    assert data.tokenizer.decode(data.train.read(0, len(data.train)).tolist()) == text[:boundary]
    assert data.tokenizer.decode(data.validation.read(0, len(text)).tolist()) == text[boundary:]
    assert (data.manifest.train.characters, data.manifest.validation.characters) == (
        boundary,
        len(text) - boundary,
    )
    assert "last 10%" in data.manifest.split
    data.verify()


def test_split_by_documents_keeps_them_whole(tmp_path: Path) -> None:
    documents = [f"document {i}: {text_of(50, i)}" for i in range(200)]
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))
    data = prepared(path, tmp_path / "out")
    end = data.tokenizer.end_of_text_id
    sides = []
    for tokens in (data.train, data.validation):
        ids = tokens.read(0, len(tokens)).tolist()
        borders = [i for i, token in enumerate(ids) if token == end]
        starts, ends = [0, *(b + 1 for b in borders)], [*borders, len(ids)]
        sides.append([data.tokenizer.decode(ids[a:b]) for a, b in zip(starts, ends, strict=True)])
    assert sorted(sides[0] + sides[1]) == sorted(documents)
    assert 8 <= len(sides[1]) <= 40
    assert data.manifest.train.documents == len(sides[0])


TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), min_size=1, max_size=8
)


@given(TEXTS, st.floats(0.05, 0.9))
def test_fraction_split_loses_nothing(documents: list[str], fraction: float) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        write_documents(Path(folder), map(Piece, documents)) as store,
    ):
        plan = plan_split(store, "x", Split.fraction, DataConfig(validation_fraction=fraction))
        train, validation = ("".join(plan.texts(store, side)) for side in SIDES)
    assert train + validation == "".join(documents)
    assert len(train) == int(sum(map(len, documents)) * (1 - fraction))


def test_documents_split_always_has_both_sides(tmp_path: Path) -> None:
    for count in (2, 3, 10):
        with write_documents(tmp_path, map(Piece, ["text"] * count)) as store:
            plan = plan_split(store, "x", Split.documents, DataConfig(validation_fraction=0.01))
            assert len(plan.train) and len(plan.validation)
            assert len(plan.train) + len(plan.validation) == count


@given(
    st.lists(st.integers(0, 200) | st.integers(0, 100_000), min_size=2, max_size=200),
    st.floats(0.02, 0.6),
)
def test_held_out_share_is_as_close_as_whole_documents_allow(sizes: list[int], fraction: float) -> None:
    """Holding out one more document alone would not be closer, and the split is deterministic."""
    bytes_of = np.array(sizes)
    held_out = draw_documents(bytes_of, fraction)
    assert held_out.any() and not held_out.all()
    assert (held_out == draw_documents(bytes_of, fraction)).all()
    if (bytes_of > 0).sum() < 2:
        return
    wanted, found = fraction * sum(sizes), int(bytes_of[held_out].sum())
    assert found > 0 and found < sum(sizes)
    left = bytes_of[~held_out]
    if held_out.sum() > 1 and len(left) > 1:
        assert min(abs(found + one - wanted) for one in left.tolist()) >= abs(found - wanted) - 1e-6


SKEWED: dict[str, list[int]] = {
    "equal sizes": [100] * 500,
    "one huge": [1_000_000] + [100] * 500,
    "half of it huge": [50_000] + [100] * 500,
    "a few files and 200 short rows": [90_000, 110_000, 60_000, 100_000, 95_000] + [60] * 200,
    "geometric sizes": [2**i for i in range(18)] * 4,
}


@pytest.mark.parametrize("name", SKEWED)
def test_one_tenth_of_the_bytes_is_held_out_for_any_document_sizes(name: str, tmp_path: Path) -> None:
    texts = ["x" * size for size in SKEWED[name]]
    with write_documents(tmp_path, map(Piece, texts)) as store:
        plan = plan_split(store, "x", Split.automatic, DataConfig())
        found = [sum(map(len, plan.texts(store, side))) for side in SIDES]
    assert sum(found) == sum(SKEWED[name])
    assert found[1] / sum(found) == pytest.approx(0.1, abs=0.003)


def test_split_description_states_the_actual_share(tmp_path: Path) -> None:
    with write_documents(tmp_path, map(Piece, ["x" * 10_000, *["y" * 20] * 59])) as store:
        plan = plan_split(store, "x", Split.automatic, DataConfig(split=Split.documents))
    assert plan.description == "56 of 60 documents, drawn at random, are held out, 10% of the bytes"
    with write_documents(tmp_path, map(Piece, ["x" * 10_000, *["y"] * 59])) as store:
        plan = plan_split(store, "x", Split.automatic, DataConfig(split=Split.documents))
    assert len(plan.train) == 1 and plan.description.endswith(
        "0.587% of the bytes (whole documents come no closer to 10%; --data.split fraction does)"
    )


def test_pieces_of_a_document_stay_on_one_side(tmp_path: Path) -> None:
    pieces = [Piece(f"{document}.{part} ", part == 0) for document in range(60) for part in range(3)]
    with write_documents(tmp_path, pieces) as store:
        plan = plan_split(store, "x", Split.automatic, DataConfig())
        sides = [{text.split(".")[0] for text in plan.texts(store, side)} for side in SIDES]
    assert len(sides[0]) + len(sides[1]) == 60 and not sides[0] & sides[1]


def test_folder_is_read_in_order_and_skipped_files_are_reported(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "b.md").write_text("second")
    (folder / "a.txt").write_text("first")
    (folder / "sub" / "c.py").write_text("third")
    (folder / ".hidden.txt").write_text("no")
    (folder / "image.png").write_bytes(b"\x89PNG\0")
    corpus = open_corpus(DataConfig(source=(str(folder),)))
    assert documents_of(corpus) == ["first", "second", "third"]
    assert str(corpus.report) == "3 files; skipped 1 binary (.png), 1 hidden"


def test_multiple_sources_are_one_corpus(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(name)
    corpus = open_corpus(DataConfig(source=(str(tmp_path / "a.txt"), str(tmp_path / "b.txt"))))
    assert documents_of(corpus) == ["a", "b"] and corpus.name == "a+b"


def test_text_is_kept_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"a\r\nb\rc\n\xe2\x80\xa8d")
    assert documents_of(open_corpus(DataConfig(source=(str(path),)))) == ["a\r\nb\rc\n\u2028d"]


def test_python_docs_corpus() -> None:
    corpus = open_corpus(DataConfig(source=("python-docs",)))
    documents = documents_of(corpus)
    assert len(documents) == len(set(documents)) > 5000
    assert 1_500_000 < sum(map(len, documents)) < 4_000_000
    assert corpus.split is Split.fraction and "python" in corpus.provenance
    assert any("The `while` statement" in d or 'The "while" statement' in d for d in documents)


def test_python_stdlib_corpus() -> None:
    documents = documents_of(open_corpus(DataConfig(source=("python-stdlib",))))
    assert len(documents) > 300 and any("class JSONEncoder" in d for d in documents)


def test_checksum_of_tinyshakespeare_is_verified(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sum(map(len, documents_of(tinyshakespeare()))) == 1_115_394
    (tmp_path / "tinyshakespeare.txt").write_text("not it")
    monkeypatch.setenv("WHOLEGPT_DATA", str(tmp_path))
    with pytest.raises(DataError, match="sha256 differs"):
        tinyshakespeare()


def test_damaged_shards_are_detected(text_file: Path, tmp_path: Path) -> None:
    data = prepared(text_file, tmp_path / "out")
    shard = tmp_path / "out" / "train-00000.bin"
    content = bytearray(shard.read_bytes())
    content[10] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"train-00000\.bin: damaged"):
        data.verify()
    shard.write_bytes(content[:-2])
    with pytest.raises(DataError, match="missing or truncated"):
        PreparedData.open(tmp_path / "out")
    manifest = tmp_path / "out" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 99'))
    with pytest.raises(DataError, match="format version 99 is newer"):
        PreparedData.open(tmp_path / "out")


def test_tokens_are_read_across_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wholegpt.data.text.encoding.SHARD_BYTES", 70)
    documents = [text_of(20, seed) for seed in range(60)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))
    data = prepared(tmp_path / "text.jsonl", tmp_path / "many")
    monkeypatch.undo()
    whole = prepared(tmp_path / "text.jsonl", tmp_path / "one")
    assert len(data.manifest.train.shards) > 3 and len(whole.manifest.train.shards) == 1
    everything = whole.train.read(0, len(whole.train))
    assert len(data.train) == len(everything)
    for start in range(0, len(everything), 7):
        for length in (1, 6, 20, 60):
            assert np.array_equal(data.train.read(start, length), everything[start : start + length])


@given(st.integers(1, 3000), st.integers(0, 2**63 - 1))
def test_permute_is_a_permutation(size: int, key: int) -> None:
    assert sorted(permute(np.arange(size), size, key).tolist()) == list(range(size))


def test_permutations_differ_and_look_shuffled() -> None:
    size = 5000
    first, second = (permute(np.arange(size), size, key) for key in (1, 2))
    assert (first == second).mean() < 0.01
    assert abs(np.corrcoef(np.arange(size), first)[0, 1]) < 0.05
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.05


@given(st.integers(2, 400), st.integers(1, 30), st.integers(1, 9), st.integers(0, 1000), st.integers(0, 3))
def test_every_window_once_an_epoch(n_tokens: int, context: int, batch: int, seed: int, epoch: int) -> None:
    if n_tokens <= context:
        return
    loader = WindowLoader(TokenShards([np.arange(n_tokens)]), context, TrainingConfig(batch_size=batch), seed)
    n = loader.windows_per_epoch
    starts = loader.window_starts(np.arange(epoch * n, (epoch + 1) * n))
    assert np.array_equal(np.diff(np.sort(starts)), np.full(n - 1, context))
    assert starts.min() >= 0 and starts.max() + context + 1 <= n_tokens
    assert n_tokens - (n * context) <= 3 * context


def test_batch_depends_only_on_seed_and_step() -> None:
    tokens, training = TokenShards([np.arange(1000)]), TrainingConfig(batch_size=4)
    first, later = (WindowLoader(tokens, 8, training, seed=5) for _ in range(2))
    batch = first.batch(37)
    assert np.array_equal(batch.token_ids, later.batch(37).token_ids)
    assert np.array_equal(batch.targets, batch.token_ids + 1)
    assert not np.array_equal(batch.token_ids, WindowLoader(tokens, 8, training, seed=6).batch(37).token_ids)


def test_default_vocabulary_grows_with_the_text() -> None:
    """1,024·√megabytes rounded to a power of two, between a minimum and a maximum."""
    sizes = [fitting_vocabulary(characters) for characters in (0, 10**6, 4 * 10**6, 16 * 10**6, 10**12)]
    assert sizes == [512, 1024, 2048, 4096, 32_768]


def test_batch_growth_uses_every_window_once() -> None:
    """5 windows, then evenly up to 13 over 4 steps; each step continues where the last one ended."""
    training = TrainingConfig(batch_size=13, initial_batch_size=5, batch_growth_steps=4)
    sizes = np.diff([windows_before(step, training) for step in range(8)])
    assert sizes.tolist() == [5, 7, 9, 11, 13, 13, 13]
    loader = WindowLoader(TokenShards([np.arange(100_000)]), 8, training, seed=5)
    starts = np.concatenate([loader.batch(step).token_ids[:, 0].numpy() for step in range(7)])
    assert np.array_equal(starts, loader.window_starts(np.arange(sizes.sum())))
    constant = TrainingConfig(batch_size=13)
    assert [windows_before(step, constant) for step in range(3)] == [0, 13, 26]
