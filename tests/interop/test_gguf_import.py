"""Import of GGUF files: our exports, every supported tensor type, and unsupported or damaged files."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers import Fails
from tests.interop.models import KINDS, random_model, tokenizer_of
from wholegpt.checkpoint import load_model, save_model
from wholegpt.checkpoint.folder import ModelMetadata
from wholegpt.console import Console
from wholegpt.data.chat.template import ChatTemplate
from wholegpt.errors import TokenizerError
from wholegpt.interop.conversion import export_model, import_model
from wholegpt.interop.gguf import TensorType, write
from wholegpt.interop.gguf_file import GgufFile
from wholegpt.interop.gguf_tokenizer import SPLITS, read_tokenizer
from wholegpt.model import Transformer
from wholegpt.settings.choices import Embeddings
from wholegpt.tokenizers import Tokenizer

gguf = pytest.importorskip("gguf")
QUIET = Console(quiet=True)
WRITABLE = [kind for kind in KINDS if kind not in ("gpt1", "gpt2-exact")]
TEXT = "Hello, don't 12345 'S  the\n\n  bad fig 3½ naïve 東京"


def wide(kind: str, **changes: Any) -> Transformer:
    """Return a model with rows of 256, as K-quants need them."""
    sizes = {"d_model": 256, "d_ff": 256, "d_head": 64, "n_heads": 4, "n_layers": 1, "vocab_size": 300}
    return random_model(replace(KINDS[kind], **{**sizes, **changes}))


def copied(
    path: Path,
    to: Path,
    change: Callable[[dict[str, Any]], None],
    kept: int | None = None,
    added: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> None:
    """Copy a GGUF file with changed metadata, only the first ``kept`` tensors, and the ``added`` ones."""
    file = GgufFile(path)
    metadata = dict(file.metadata)
    change(metadata)
    writer = gguf.GGUFWriter(to, metadata.pop("general.architecture"))
    reader = gguf.GGUFReader(path)
    for name, value in metadata.items():
        field = reader.fields.get(name)
        kind = field.types[0] if field else None
        if kind is None:
            kind = gguf.GGUFValueType.get_type(value)
        sub_type = field.types[-1] if field and kind is gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, value, kind, sub_type)
    for name, values in added.items():
        writer.add_tensor(name, values)
    for tensor in list(file.stored.values())[:kept]:
        if tensor.name in added:
            continue
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kind", WRITABLE)
def test_export_round_trips(kind: str, tmp_path: Path) -> None:
    config = KINDS[kind]
    template = ChatTemplate()
    tokenizer = tokenizer_of(300)
    new = [name for name in template.special_tokens if tokenizer.id_of(name) is None]
    tokenizer = tokenizer.with_special_tokens(new)
    model = random_model(replace(config, vocab_size=tokenizer.vocab_size))
    save_model(tmp_path / "model", model, tokenizer, ModelMetadata(chat_template=template.source))
    made = export_model(tmp_path / "model", "gguf", tmp_path / "export", console=QUIET)
    back = load_model(import_model(made.files[0], tmp_path / "back", console=QUIET))
    assert back.model.config == model.config
    assert all(
        torch.equal(tensor, back.model.own_tensors()[name]) for name, tensor in model.own_tensors().items()
    )
    assert back.tokenizer.encode(TEXT) == tokenizer.encode(TEXT)
    assert back.tokenizer.special_ids == tokenizer.special_ids
    messages = ChatTemplate(back.metadata.chat_template)
    assert messages.end_of_turn == template.end_of_turn
    end = tokenizer.id_of(template.end_of_turn)
    assert end in back.tokenizer.end_ids or end in back.metadata.end_token_ids


def test_folder_with_one_file_and_default_output_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Fails
) -> None:
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "tiny.gguf", random_model(KINDS["llama"]), tokenizer_of(65), TensorType.f32)
    monkeypatch.chdir(tmp_path)
    assert import_model("folder", console=QUIET) == Path("models/tiny")
    (tmp_path / "folder" / "other.gguf").write_bytes((tmp_path / "folder" / "tiny.gguf").read_bytes())
    assert "several GGUF files (other.gguf, tiny.gguf); name one" in fails("import", "folder")


@pytest.mark.parametrize("kind", WRITABLE)
def test_transformers_reads_the_same_model_from_the_gguf_file(kind: str, tmp_path: Path) -> None:
    """An independent reader of the format; sizes that it does not read have its default values."""
    transformers = pytest.importorskip("transformers")
    sizes = {"context_length": 1024} if kind == "gpt2" else {"d_head": 128} if "modern" in kind else {}
    model = random_model(replace(KINDS[kind], vocab_size=300, **sizes))
    write(tmp_path / "model.gguf", model, tokenizer_of(300), TensorType.f32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32
    ).eval()
    token_ids = torch.randint(300, (2, 64), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(theirs(token_ids).logits, model(token_ids), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("stored", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_tensor_types_that_the_gguf_library_writes(stored: str, tmp_path: Path) -> None:
    model, kind = wide("llama"), gguf.GGMLQuantizationType[stored]
    write(tmp_path / "exact.gguf", model, tokenizer_of(300), TensorType.f32)
    requantized(
        tmp_path / "exact.gguf",
        tmp_path / "small.gguf",
        lambda values: gguf.quants.quantize(values, kind),
        kind,
    )
    _, tensors = GgufFile(tmp_path / "small.gguf").read()
    bits = {"F16": 11, "BF16": 8, "Q8_0": 7.5, "Q5_0": 4, "Q5_1": 4, "Q4_0": 3, "Q4_1": 3}[stored]
    for name, tensor in model.own_tensors().items():
        if tensor.ndim == 1:
            assert torch.equal(tensors[name], tensor)
        else:
            assert 0 < (tensors[name] - tensor).abs().max() <= 1.4 * tensor.abs().max() * 2**-bits, name


def requantized(path: Path, to: Path, quantize: Callable[[np.ndarray], np.ndarray], kind: Any) -> None:
    """Copy a file with its matrices stored as ``kind``."""
    file = GgufFile(path)
    writer = gguf.GGUFWriter(to, file.metadata["general.architecture"])
    reader = gguf.GGUFReader(path)
    for name, value in file.metadata.items():
        field = reader.fields[name]
        sub_type = field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
        if name != "general.architecture":
            writer.add_key_value(name, value, field.types[0], sub_type)
    for tensor in file.stored.values():
        values = np.array(tensor.data)
        if values.ndim == 1:
            writer.add_tensor(tensor.name, values)
        else:
            writer.add_tensor(tensor.name, quantize(values), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def q6_k(block: bytes) -> np.ndarray:
    """Decode 256 weights, d · scale · (q − 32), from the format's layout: 4 low bits, 2 high bits, scales, d."""
    low, high = np.frombuffer(block, np.uint8, 128), np.frombuffer(block, np.uint8, 64, 128)
    scales, d = np.frombuffer(block, np.int8, 16, 192), np.frombuffer(block, np.float16, 1, 208)[0]
    found = np.empty(256, np.float32)
    for i in range(256):
        half, position = divmod(i, 128)
        quarter, column = divmod(position, 32)
        nibble = low[64 * half + 32 * (quarter % 2) + column] >> 4 * (quarter // 2) & 15
        bits = high[32 * half + column] >> 2 * quarter & 3
        found[i] = np.float32(d) * scales[i // 16] * (int(nibble | bits << 4) - 32)
    return found


def q4_k(block: bytes) -> np.ndarray:
    """Decode 256 weights, each d · scale · q − least · offset, with 6-bit scales and offsets per 32 weights."""
    d, least = np.frombuffer(block, np.float16, 2).astype(np.float32)
    packed, low = np.frombuffer(block, np.uint8, 12, 4), np.frombuffer(block, np.uint8, 128, 16)
    found = np.empty(256, np.float32)
    for i in range(256):
        group = i // 32
        if group < 4:
            scale, offset = packed[group] & 63, packed[group + 4] & 63
        else:
            scale = packed[group + 4] & 15 | packed[group - 4] >> 6 << 4
            offset = packed[group + 4] >> 4 | packed[group] >> 6 << 4
        nibble = low[32 * (group // 2) + i % 32] >> 4 * (group % 2) & 15
        found[i] = d * scale * nibble - least * offset
    return found


@pytest.mark.parametrize(("stored", "decode", "size"), [("Q6_K", q6_k, 210), ("Q4_K", q4_k, 144)])
def test_k_quants(stored: str, decode: Callable[[bytes], np.ndarray], size: int, tmp_path: Path) -> None:
    """Random bytes with finite scales, against a decoder written from the format's definition."""
    model, kind = wide("llama", embeddings=Embeddings.untied), gguf.GGMLQuantizationType[stored]
    random = np.random.default_rng(1)

    def blocks(values: np.ndarray) -> np.ndarray:
        drawn = random.integers(0, 256, (*values.shape[:-1], values.shape[-1] // 256, size), dtype=np.uint8)
        scale = np.float16(0.01).view(np.uint16).tobytes()
        drawn[..., -2:] = np.frombuffer(scale, np.uint8)
        drawn[..., :4] = np.frombuffer(scale + scale, np.uint8)
        return drawn.reshape(*values.shape[:-1], -1)

    write(tmp_path / "exact.gguf", model, tokenizer_of(300), TensorType.f32)
    requantized(tmp_path / "exact.gguf", tmp_path / "small.gguf", blocks, kind)
    file = GgufFile(tmp_path / "small.gguf")
    _, tensors = file.read()
    for ours, theirs in (("token_embedding", "token_embd"), ("unembedding", "output")):
        rows = np.array(file.stored[f"{theirs}.weight"].data)[:5]
        expected = np.stack([decode(row.tobytes()) for row in rows])
        np.testing.assert_allclose(tensors[f"{ours}.weight"][:5].numpy(), expected, rtol=1e-5, atol=1e-6)


CHANGED: dict[str, tuple[dict[str, Any], str]] = {
    "another architecture": ({"general.architecture": "falcon"}, "general.architecture is 'falcon'"),
    "a part": ({"split.count": 2}, "is one of 2 parts"),
    "scaled positions": ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type is 'yarn'"),
    "experts": ({"llama.expert_count": 8}, "llama.expert_count is 8"),
    "values of another width": ({"llama.attention.value_length": 4}, "llama.attention.value_length is 4"),
    "half rotated": ({"llama.rope.dimension_count": 4}, "llama.rope.dimension_count is 4"),
    "a window": ({"llama.attention.sliding_window": 16}, "llama.attention.sliding_window is 16"),
    "no layers": ({"llama.block_count": None}, "block_count is None"),
    "no heads": ({"llama.attention.head_count": 0}, "n_heads"),
    "more layers": ({"llama.block_count": 40_000}, "at most"),
    "one layer more": ({"llama.block_count": 3}, "blk.2."),
    "no norm": ({"llama.attention.layer_norm_rms_epsilon": None}, "attention.layer_norm_rms_epsilon is None"),
    "no tokenizer": ({"tokenizer.ggml.model": None}, "has no tokenizer; name one with --tokenizer"),
    "WordPiece": ({"tokenizer.ggml.model": "bert"}, "of the kind 'bert'"),
    "SentencePiece without scores": ({"tokenizer.ggml.model": "llama"}, "its tokenizer cannot be read"),
    "another split": ({"tokenizer.ggml.pre": "tekken"}, "the word split 'tekken'"),
    "no merges": ({"tokenizer.ggml.merges": None}, "its tokenizer cannot be read"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_unsupported_metadata_is_rejected_by_name(name: str, tmp_path: Path, fails: Fails) -> None:
    changes, message = CHANGED[name]

    def change(metadata: dict[str, Any]) -> None:
        for field, value in changes.items():
            if value is None:
                del metadata[field]
            else:
                metadata[field] = value

    write(tmp_path / "model.gguf", random_model(KINDS["llama"]), tokenizer_of(65), TensorType.f32)
    copied(tmp_path / "model.gguf", tmp_path / "changed.gguf", change)
    assert message in fails("import", tmp_path / "changed.gguf", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_files(tmp_path: Path, fails: Fails) -> None:
    write(tmp_path / "model.gguf", random_model(KINDS["llama"]), tokenizer_of(65), TensorType.f32)
    whole = (tmp_path / "model.gguf").read_bytes()
    for name, content in {
        "empty": b"",
        "text": b"not a model\n" * 20,
        "header": whole[:24],
        "half": whole[: len(whole) // 2],
        "counts": whole[:8] + b"\xff" * 16 + whole[24:],
    }.items():
        (tmp_path / f"{name}.gguf").write_bytes(content)
        message = fails("import", tmp_path / f"{name}.gguf", "--out", tmp_path / "out")
        assert f"{name}.gguf: cannot be read as GGUF" in message
    copied(tmp_path / "model.gguf", tmp_path / "few.gguf", lambda metadata: None, kept=4)
    assert "is missing" in fails("import", tmp_path / "few.gguf", "--out", tmp_path / "out")


@pytest.mark.parametrize("pre", SPLITS)
def test_each_word_split_round_trips(pre: str, tmp_path: Path) -> None:
    """Through the metadata and back, for text with digits, contractions and white space."""
    content = json.loads(tokenizer_of(400).to_json())
    steps = SPLITS[pre]
    content["pre_tokenizer"] = steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}
    content["model"]["ignore_merges"] = pre == "llama-bpe"
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
    write(
        tmp_path / "model.gguf",
        random_model(replace(KINDS["llama"], vocab_size=400)),
        tokenizer,
        TensorType.f16,
    )
    metadata = GgufFile(tmp_path / "model.gguf").metadata
    assert metadata["tokenizer.ggml.pre"] == pre
    assert read_tokenizer(metadata, tmp_path).encode(TEXT) == tokenizer.encode(TEXT)


def test_vocabulary_with_missing_bytes_reports_them(tmp_path: Path) -> None:
    """Published vocabularies lack bytes that never occurred in their text; the library drops such characters."""
    content = json.loads(tokenizer_of(300).to_json())
    for character in ("Ą", "Ą", "ñ"):  # the bytes 0x04 and 0xF1
        content["model"]["vocab"].pop(character, None)
    entries = sorted(content["model"]["vocab"], key=content["model"]["vocab"].__getitem__)
    content["model"]["vocab"] = {entry: i for i, entry in enumerate(entries)}
    for token in content["added_tokens"]:
        token["id"] = len(entries)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    for encode in (tokenizer.encode, lambda text: list(tokenizer.encode_all([text]))):
        with pytest.raises(TokenizerError, match=r"'\\x04' \(U\+0004\) at position 2 has no token"):
            encode("ab\x04c")
    assert tokenizer.known_part("a\x04b\U000f0000") == "ab\U000f0000"
