"""Exports have the same token ids, end tokens and chat templates in other programs, or are rejected."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from tests.helpers import Fails
from tests.interop.models import KINDS, random_model, tokenizer_of
from wholegpt.checkpoint import ModelMetadata, save_model
from wholegpt.cli import main
from wholegpt.console import Console
from wholegpt.errors import CheckpointError
from wholegpt.interop import parity_report
from wholegpt.interop.conversion import export_model
from wholegpt.interop.gguf import TensorType
from wholegpt.interop.gguf import write as write_gguf
from wholegpt.interop.gguf_file import GgufFile
from wholegpt.interop.gguf_tokenizer import read_tokenizer
from wholegpt.interop.parity_report import TEXT, ForeignModel, compare
from wholegpt.settings.choices import Normalization
from wholegpt.tokenizers import Tokenizer, byte_tokenizer, train_bpe, train_character
from wholegpt.tokenizers.published import QWEN2_SPLIT

gguf = pytest.importorskip("gguf")
QUIET = Console(quiet=True)
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def changed(tokenizer: Tokenizer, **parts: Any) -> Tokenizer:
    """Return ``tokenizer`` with other parts and with added ``tokens``."""
    library = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    library.add_tokens(parts.pop("tokens", []))
    for name, part in parts.items():
        setattr(library, name, part)
    return Tokenizer(library)


def model_for(tokenizer: Tokenizer) -> Any:
    return random_model(replace(KINDS["gpt2"], vocab_size=tokenizer.vocab_size))


BASE = tokenizer_of(300)
AddedToken, normalizers = tokenizers.AddedToken, tokenizers.normalizers
REFUSED = {
    "lower case": (train_bpe(["a b c " * 9], 270, lowercase=True), "(Lowercase)"),
    "composed": (train_bpe(["a b c " * 9], 270, Normalization.nfc), "(NFC)"),
    "compatible": (train_bpe(["a b c " * 9], 270, Normalization.nfkc, lowercase=True), "(NFKC, Lowercase)"),
    "characters": (train_character(["abc"], lowercase=True), "(Lowercase)"),
    "one normalizer": (changed(BASE, normalizer=normalizers.NFC()), "(NFC)"),
    "lstrip": (
        changed(BASE, tokens=[AddedToken("<x>", lstrip=True, special=True)]),
        "its token '<x>' is lstrip",
    ),
    "single word": (
        changed(BASE, tokens=[AddedToken("xyz", single_word=True)]),
        "its token 'xyz' is single_word",
    ),
    "overlap": (changed(BASE, tokens=["ab", "bcd"]), "'ab' and 'bcd' can overlap"),
    "digits": (
        changed(
            BASE,
            pre_tokenizer=tokenizers.pre_tokenizers.Sequence(
                [
                    tokenizers.pre_tokenizers.Digits(individual_digits=False),
                    tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
                ]
            ),
        ),
        "does not support the word split",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_tokenizer_that_llama_cpp_does_not_support_is_rejected(
    name: str, tmp_path: Path, fails: Fails
) -> None:
    tokenizer, expected = REFUSED[name]
    save_model(tmp_path / "model", model_for(tokenizer), tokenizer)
    message = fails("export", tmp_path / "model", "--to", "gguf", "--out", tmp_path / "out")
    assert expected in message and not (tmp_path / "out").exists()


def test_ignore_merges_is_rejected(tmp_path: Path, fails: Fails) -> None:
    content = json.loads(BASE.to_json())
    content["model"]["ignore_merges"] = True
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(content)))
    save_model(tmp_path / "model", model_for(tokenizer), tokenizer)
    assert "does not support the word split" in fails("export", tmp_path / "model", "--to", "gguf")


def test_added_tokens_keep_their_type(tmp_path: Path) -> None:
    tokenizer = changed(BASE, tokens=[" " * 8, " " * 4, "<think>"]).with_special_tokens(["<|end|>"])
    write_gguf(tmp_path / "m.gguf", model_for(tokenizer), tokenizer, TensorType.f32)
    written = fields(tmp_path / "m.gguf")
    names, kinds = written["tokenizer.ggml.tokens"], written["tokenizer.ggml.token_type"]
    found = dict(zip(names, kinds, strict=True))
    types = gguf.TokenType
    assert found[" " * 8] == found["<think>"] == types.USER_DEFINED
    assert found["<|end|>"] == found["<|endoftext|>"] == types.CONTROL
    assert written["tokenizer.ggml.add_bos_token"] is False


@pytest.mark.parametrize("kind", ["bytes", "BPE", "characters", "Qwen2", "added"])
def test_tokenizer_of_the_gguf_file_gives_the_same_ids(kind: str, tmp_path: Path) -> None:
    """Read the way llama.cpp reads it; the export compares the ids itself, even if llama.cpp is not installed."""
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(QWEN2_SPLIT), "isolated")
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = {
        "bytes": byte_tokenizer(),
        "BPE": BASE,
        "characters": tokenizer_of(65),
        "Qwen2": changed(BASE, pre_tokenizer=tokenizers.pre_tokenizers.Sequence([split, byte_level])),
        "added": changed(BASE, tokens=[" " * 8, "<think>"]).with_special_tokens(["<|end|>"]),
    }[kind]
    save_model(tmp_path / "model", model_for(tokenizer), tokenizer)
    made = export_model(tmp_path / "model", "gguf", tmp_path / "out", console=QUIET)
    assert made.parity_reports[0].equal_token_ids is True
    file = GgufFile(next(made.path.glob("*.gguf")))
    again = read_tokenizer(file.metadata, file.path)
    text = tokenizer.known_part(TEXT) + "".join(tokenizer.name_of(i) for i in sorted(tokenizer.special_ids))
    assert again.encode(text, allow_special=True) == tokenizer.encode(text, allow_special=True)


def test_character_tokenizer_with_special_tokens(tmp_path: Path) -> None:
    letters = {"<pad>": 0, **{letter: i for i, letter in enumerate("abc \n", start=1)}}
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(letters, unk_token="<pad>"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    library.decoder = tokenizers.decoders.Fuse()
    library.add_special_tokens(["<pad>", "<|endoftext|>"])
    tokenizer = Tokenizer(library)
    write_gguf(tmp_path / "m.gguf", model_for(tokenizer), tokenizer, TensorType.f32)
    assert fields(tmp_path / "m.gguf")["tokenizer.ggml.tokens"] == [
        "<pad>",
        *"abc",
        "Ġ",
        "Ċ",
        "<|endoftext|>",
    ]


def chat_model(folder: Path, **metadata: Any) -> Tokenizer:
    tokenizer = BASE.with_special_tokens(["<|user|>", "<|assistant|>", "<|end|>", "<|padding|>"])
    save_model(folder, model_for(tokenizer), tokenizer, ModelMetadata(chat_template=CHAT, **metadata))
    return tokenizer


def test_end_of_turn_token_is_in_both_exports(tmp_path: Path) -> None:
    tokenizer = chat_model(tmp_path / "model")
    end, padding = tokenizer.id_of("<|end|>"), tokenizer.id_of("<|padding|>")
    folder = export_model(tmp_path / "model", "huggingface", tmp_path / "hf", console=QUIET).path
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == end and generation["pad_token_id"] == padding
    assert json.loads((folder / "tokenizer_config.json").read_text())["pad_token"] == "<|padding|>"
    (file,) = export_model(tmp_path / "model", "gguf", tmp_path / "gguf", console=QUIET).path.glob("*.gguf")
    written = fields(file)
    assert written["tokenizer.ggml.eos_token_id"] == written["tokenizer.ggml.eot_token_id"] == end
    assert written["tokenizer.ggml.bos_token_id"] == tokenizer.end_of_text_id
    assert written["tokenizer.ggml.padding_token_id"] == padding
    # bos_token is empty here; other programs would insert their own.
    assert written["tokenizer.chat_template"] == '{% set bos_token = "" %}' + CHAT


def test_multiple_end_tokens_are_exported(tmp_path: Path) -> None:
    save_model(tmp_path / "model", model_for(BASE), BASE, ModelMetadata(end_token_ids=(7, 5)))
    folder = export_model(tmp_path / "model", "huggingface", tmp_path / "hf", console=QUIET).path
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [5, 7]
    (file,) = export_model(tmp_path / "model", "gguf", tmp_path / "gguf", console=QUIET).path.glob("*.gguf")
    written = fields(file)
    assert (written["tokenizer.ggml.eos_token_id"], written["tokenizer.ggml.eot_token_id"]) == (5, 7)


@pytest.mark.parametrize("kind", ["gpt1", "gpt2", "modern"])
def test_config_has_the_keys_that_the_llama_cpp_converter_reads(kind: str, tmp_path: Path) -> None:
    """The keys that ``convert_hf_to_gguf.py`` reads for GPT-2 and for Qwen3."""
    tokenizer = tokenizer_of(65)
    save_model(tmp_path / "model", random_model(KINDS[kind]), tokenizer)
    folder = export_model(tmp_path / "model", "huggingface", tmp_path / "hf", console=QUIET).path
    config = json.loads((folder / "config.json").read_text())
    gpt = {"n_layer", "n_ctx", "n_embd", "n_head", "layer_norm_epsilon"}
    qwen = {"num_hidden_layers", "max_position_embeddings", "hidden_size", "intermediate_size", "rope_theta"}
    qwen |= {"num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps"}
    assert {"architectures", "vocab_size", "dtype", *(qwen if kind == "modern" else gpt)} <= config.keys()
    if kind != "modern":
        assert config["n_ctx"] == config["n_positions"] == KINDS[kind].context_length


def test_text_of_the_parity_report_is_sensitive_to_tokenizer_parts() -> None:
    """Each normalizer and each word split changes its token ids."""
    for one in (
        normalizers.Lowercase(),
        normalizers.NFC(),
        normalizers.NFD(),
        normalizers.NFKC(),
        normalizers.NFKD(),
    ):
        assert one.normalize_str(TEXT) != TEXT, one
    for one in (
        normalizers.StripAccents(),
        normalizers.Replace("  ", " "),
        normalizers.Replace("\r\n", "\n"),
    ):
        assert one.normalize_str(TEXT) != TEXT, one
    assert any(len(character.encode()) == 4 for character in TEXT) and "\t" in TEXT and "\n\n\n" in TEXT
    assert any(sum(map(str.isdigit, word)) > 4 for word in TEXT.split())


@pytest.mark.parametrize("lost", ["lower case", "composition", "special", "added"])
def test_parity_report_compares_token_ids(lost: str) -> None:
    tokenizer = changed(BASE, tokens=["<think>"])
    model = random_model(replace(KINDS["gpt2"], vocab_size=tokenizer.vocab_size))
    other = {
        "lower case": changed(tokenizer, normalizer=normalizers.Lowercase()).encode,
        "composition": changed(tokenizer, normalizer=normalizers.NFC()).encode,
        "special": tokenizer.encode,
        "added": BASE.encode,
    }[lost]

    def encode(text: str) -> list[int]:
        return other(text, allow_special=lost != "special")

    def logits(token_ids: list[int]) -> Any:
        import torch

        with torch.inference_mode():
            return model(torch.tensor([token_ids]))[0]

    good = ForeignModel("a copy", logits, parity_report.encoder(tokenizer))
    assert compare(logits, good, tokenizer, 64, 1e-6, QUIET).equal_token_ids
    with pytest.raises(CheckpointError, match="token ids differ"):
        compare(logits, ForeignModel("a copy", logits, encode), tokenizer, 64, 1e-6, QUIET)


def test_export_warns_that_control_codes_are_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(
        tmp_path / "model", model_for(BASE), BASE, ModelMetadata(control={"genre": {"prose": 1, "verse": 2}})
    )
    assert main(["export", str(tmp_path / "model"), "--to", "huggingface"]) == 0
    assert "do not support the model's control codes (genre)" in capsys.readouterr().err
