"""GPT-1 tokenizers, normalization, the plain twin of BPE training (E1), the fast path, and unfit tokenizers."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import Fails, text_of
from wholegpt.cli import main
from wholegpt.errors import TokenizerError
from wholegpt.settings.choices import Normalization
from wholegpt.tokenizers import (
    Tokenizer,
    byte_tokenizer,
    gpt2_tokenizer,
    open_tokenizer,
    quality,
    train_bpe,
    train_character,
    train_gpt1,
)
from wholegpt.tokenizers.plain import learn_merges

UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
MIXED = text_of(5000) + " Don't PANIC: naïve café, 東京 🙂 1984!\n\n"


def merges_of(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    merges = json.loads(tokenizer.to_json())["model"]["merges"]
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
    return [(left, right) for left, right in pairs]


def twin(texts: list[str], merges: int) -> list[tuple[str, str]]:
    return [(merge.left, merge.right) for merge in learn_merges(texts, merges)]


def test_plain_twin_learns_the_same_merges_on_shakespeare(shared_data: Path) -> None:
    text = (shared_data / "tinyshakespeare.txt").read_text(encoding="utf-8")
    assert twin([text], 500) == merges_of(train_bpe([text], 257 + 500))


@given(st.lists(st.text("ab \n", max_size=30), min_size=1, max_size=4))
def test_the_plain_twin_learns_the_same_merges_of_anything(texts: list[str]) -> None:
    """Two letters cause many ties and overlaps; the fast path stops when no pair occurs twice."""
    fast = merges_of(train_bpe(texts, 400))
    assert twin(texts, len(fast)) == fast


def test_counts_of_merges_by_hand() -> None:
    """'ab' six times in words, then 'ab' + 'ab' twice."""
    merges = list(learn_merges(["abab ab abab x ab"], 2))
    assert [(m.left, m.right, m.count) for m in merges] == [("a", "b", 6), ("Ġ", "ab", 3)]


def test_gpt1_ids_equal_those_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = train_gpt1([MIXED], 40)
    model = json.loads(ours.to_json())["model"]
    assert len(model["merges"]) == 40
    theirs = transformers.OpenAIGPTTokenizer(
        vocab=model["vocab"], merges=[tuple(merge) for merge in merges_of(ours)]
    )
    for text in (MIXED, "  The OF and,\n(a) b's \u2003é e\u0301 ß İ \u6771 \x07 unseen: ζ"):
        assert ours.encode(text) == theirs(text)["input_ids"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges_of(ours)), ""]
    (tmp_path / "merges.txt").write_text("\n".join(lines))
    assert open_tokenizer(tmp_path).encode(MIXED) == ours.encode(MIXED)


def test_gpt1_lower_cases_words() -> None:
    tokenizer = train_gpt1([MIXED], 60)
    assert tokenizer.decode(tokenizer.encode("The  OF,\nand")) == "the of , and"
    assert not tokenizer.keeps_text and tokenizer.end_of_text_id == tokenizer.vocab_size - 1
    assert tokenizer.id_of("<unk>") in tokenizer.encode("ζ")


@pytest.mark.parametrize("normalization", [Normalization.nfc, Normalization.nfkc])
@given(text=UNICODE)
def test_decoding_gives_the_normalized_text(normalization: Normalization, text: str) -> None:
    tokenizer = train_bpe([MIXED], 300, normalization)
    form = "NFC" if normalization is Normalization.nfc else "NFKC"
    if all(
        unicodedata.category(character) != "Cn" for character in text
    ):  # unassigned in this Python's Unicode version
        assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize(form, text)


def test_lower_case(tmp_path: Path) -> None:
    for tokenizer in (train_bpe([MIXED], 300, lowercase=True), train_character([MIXED], lowercase=True)):
        assert tokenizer.decode(tokenizer.encode("The OF And")) == "the of and"
        tokenizer.save(tmp_path / "tokenizer.json")
        again = Tokenizer.load(tmp_path / "tokenizer.json")
        assert not again.keeps_text and again.encode("The OF") == tokenizer.encode("the of")


def fast_and_slow(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert [ids.tolist() for ids in tokenizer.encode_all(texts)] == [tokenizer.encode(text) for text in texts]


@given(st.lists(UNICODE, max_size=4))
def test_fast_path_gives_the_same_ids(texts: list[str]) -> None:
    fast_and_slow(TRAINED, texts)


TRAINED = train_bpe([MIXED, text_of(20_000, 3)], 600)


def test_fast_path_is_used_only_if_the_ids_are_equal(shared_data: Path) -> None:
    assert TRAINED._fast is not None and gpt2_tokenizer(shared_data / "gpt2")._fast is not None
    assert byte_tokenizer()._fast is None and train_gpt1([MIXED], 50)._fast is None
    assert train_bpe([MIXED], 300, lowercase=True)._fast is None
    content: dict[str, Any] = json.loads(TRAINED.to_json())
    merges = content["model"]["merges"]
    merges[0], merges[20] = merges[20], merges[0]
    import tokenizers as library

    assert Tokenizer(library.Tokenizer.from_str(json.dumps(content)))._fast is None


def test_long_white_space_and_long_words() -> None:
    texts = ["a" + 30_000 * " " + "b", "\n" * 25_000, "x" * 30_000, "plain"]
    fast_and_slow(TRAINED, texts)


@pytest.mark.slow
def test_gpt2_ids_of_a_whole_corpus(shared_data: Path) -> None:
    tokenizer = gpt2_tokenizer(shared_data / "gpt2")
    lines = (shared_data / "english.jsonl").read_text(encoding="utf-8").strip().split("\n")
    texts = [json.loads(line)["text"] for line in lines]
    fast_and_slow(tokenizer, texts)


def test_quality_by_hand() -> None:
    tokenizer = byte_tokenizer()
    measured = quality(tokenizer, ["aab", "é"])
    assert (measured.texts, measured.changed_texts, measured.unknown_share) == (2, 0, 0.0)
    assert measured.bytes_per_token == 1.0
    assert measured.unused_share == pytest.approx((257 - 4) / 257)
    measured.check()


def test_tokenizer_with_many_unknown_tokens_is_rejected(tmp_path: Path, fails: Fails) -> None:
    unknown = quality(train_gpt1([MIXED], 50), ["ζωή " * 50])
    with pytest.raises(TokenizerError, match=r"9\d\.\d%|100\.0% of the tokens are unknown symbols"):
        unknown.check()
    train_gpt1([MIXED], 50).save(tmp_path / "tokenizer.json")
    greek = (chr(0x3B1 + i % 17) + chr(0x3B1 + i // 17 % 17) + chr(0x3B1 + i // 289) for i in range(1000))
    (tmp_path / "greek.txt").write_text(" ".join(greek))
    message = fails(
        *("data", "prepare", tmp_path / "greek.txt", "--out", tmp_path / "out", "--quiet"),
        *("--tokenizer.path", tmp_path / "tokenizer.json"),
    )
    assert "100.0% of the tokens are unknown symbols" in message
    assert not (tmp_path / "out").exists()


def test_tokenizer_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Fails) -> None:
    (tmp_path / "text.txt").write_text(MIXED)
    out = tmp_path / "tokenizer.json"
    command = ["tokenizer", "train", str(tmp_path / "text.txt"), "--out", str(out), "--vocab-size", "300"]
    assert main([*command, "--explain", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["merges"]) == 3 and result["held_out"]["changed_texts"] == 0
    fast = merges_of(Tokenizer.load(out))[:3]
    assert [(merge["left"], merge["right"]) for merge in result["merges"]] == fast
    assert main(["tokenizer", "show", str(out), "the of"]) == 0
    pieces, ids = capsys.readouterr().out.splitlines()
    assert pieces.replace("|", "") == "the of"
    assert np.array_equal([int(i) for i in ids.split()], Tokenizer.load(out).encode("the of"))
    assert "--explain supports only --kind bpe" in fails(
        *command, "--overwrite", "--explain", "3", "--kind", "byte"
    )
