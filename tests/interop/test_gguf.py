"""Models as GGUF files: their tensors, metadata and tokenizer, and models that llama.cpp does not support."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import Fails, shrink
from tests.interop.models import KINDS, random_model, tokenizer_of
from wholegpt.checkpoint import save_model
from wholegpt.console import Console
from wholegpt.interop import gguf as ours
from wholegpt.interop.conversion import export_model
from wholegpt.interop.gguf import TensorType
from wholegpt.interop.gguf_file import GgufFile
from wholegpt.settings.choices import FeedForward
from wholegpt.settings.presets import gpt1, gpt2
from wholegpt.tokenizers import byte_tokenizer, train_character

gguf = pytest.importorskip("gguf")
QUIET = Console(quiet=True)
LLAMA = {kind: config for kind, config in KINDS.items() if kind not in ("gpt1", "gpt2-exact")}


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


@pytest.mark.parametrize("kind", LLAMA)
def test_tensors_round_trip(kind: str, tmp_path: Path) -> None:
    model = random_model(LLAMA[kind])
    errors: dict[TensorType, float] = {}
    for tensor_type in TensorType:
        path = tmp_path / f"{tensor_type}.gguf"
        ours.write(path, model, tokenizer_of(model.vocab_size), tensor_type)
        config, back = GgufFile(path).read()
        assert config == model.config
        originals = model.own_tensors()
        assert back.keys() == originals.keys()
        for name, tensor in originals.items():
            if tensor.ndim == 1 or "position" in name or tensor_type is TensorType.f32:
                assert torch.equal(back[name], tensor), name
        errors[tensor_type] = max(float((back[name] - originals[name]).abs().max()) for name in originals)
    # Half of the last of 11 bits, and half of 1/127 of a block's maximum, for values below 1.2.
    assert 0 == errors[TensorType.f32] < errors[TensorType.f16] <= 1.2 * 2**-11
    assert errors[TensorType.f16] < errors[TensorType.q8_0] <= 1.2 / 127


def test_settings_and_tokenizer_are_written(tmp_path: Path) -> None:
    config, tokenizer = LLAMA["modern-untied"], tokenizer_of(65)
    ours.write(tmp_path / "model.gguf", random_model(config), tokenizer, TensorType.f32)
    written = fields(tmp_path / "model.gguf")
    assert written["general.architecture"] == "qwen3"
    assert written["qwen3.context_length"] == config.context_length
    assert written["qwen3.attention.head_count_kv"] == config.n_kv_heads
    assert written["qwen3.attention.key_length"] == 12
    assert written["qwen3.rope.freq_base"] == 1e6
    assert written["tokenizer.ggml.eos_token_id"] == tokenizer.end_of_text_id
    tokens = written["tokenizer.ggml.tokens"]
    assert len(tokens) == 65
    assert tokens[tokenizer.encode(" ")[0]] == "Ġ"
    assert tokens[tokenizer.end_of_text_id] == "<|endoftext|>"


def test_bpe_merges_are_written(tmp_path: Path) -> None:
    config = {**vars(LLAMA["modern"]), "vocab_size": 300}
    tokenizer = tokenizer_of(300)
    ours.write(
        tmp_path / "model.gguf", random_model(type(LLAMA["modern"])(**config)), tokenizer, TensorType.q8_0
    )
    written = fields(tmp_path / "model.gguf")
    assert written["tokenizer.ggml.pre"] == "gpt-2"
    assert len(written["tokenizer.ggml.merges"]) == 300 - 257


def test_byte_tokenizer_can_be_exported(tmp_path: Path) -> None:
    config = {**vars(LLAMA["gpt2"]), "vocab_size": 257}
    model = random_model(type(LLAMA["gpt2"])(**config))
    ours.write(tmp_path / "model.gguf", model, byte_tokenizer(), TensorType.f16)
    assert len(fields(tmp_path / "model.gguf")["tokenizer.ggml.tokens"]) == 257


def test_export_reports_the_error_of_each_tensor_type(tmp_path: Path) -> None:
    save_model(tmp_path / "model", random_model(LLAMA["modern"]), tokenizer_of(65))
    differences = []
    for tensor_type in TensorType:
        made = export_model(
            tmp_path / "model", "gguf", tmp_path / tensor_type, tensor_type=tensor_type, console=QUIET
        )
        assert [file.name for file in made.files] == [f"model-{tensor_type}.gguf"]
        differences.append(made.parity_reports[0].largest_logit_difference)
    assert differences[0] == 0 < differences[1] < differences[2]


def test_models_that_llama_cpp_does_not_support_are_rejected(tmp_path: Path, fails: Fails) -> None:
    def refused(config: Any, tokenizer: Any) -> str:
        save_model(tmp_path / "model", random_model(config), tokenizer)
        message = fails("export", tmp_path / "model", "--to", "gguf", "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return message

    characters = tokenizer_of(65)
    sizes = {"vocab_size": 65, "context_length": 64}
    assert "no GPT-1 architecture" in refused(shrink(gpt1(), **sizes), characters)
    exact = shrink(gpt2(), **sizes, feed_forward=FeedForward.gelu)
    assert "model.feed_forward is gelu" in refused(exact, characters)
    accents = train_character(["é" + "".join(chr(33 + i) for i in range(63))])
    assert "'é'" in refused(LLAMA["modern"], accents)
