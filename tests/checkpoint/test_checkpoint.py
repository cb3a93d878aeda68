"""Saving and loading models: complete round trips, and errors for files that contradict their config."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.helpers import NEEDS_BFLOAT16, shrink, tiny_model
from wholegpt import load
from wholegpt.checkpoint import (
    WEIGHTS,
    ModelMetadata,
    TrainingFiles,
    load_model,
    make_model,
    save_checkpoint,
    save_model,
)
from wholegpt.console import Console
from wholegpt.errors import CheckpointError, ConfigError
from wholegpt.interop import huggingface
from wholegpt.model import CompiledTransformer, Transformer, quantize_weights
from wholegpt.model.lora import add_lora, merge, remove_lora, unmerge
from wholegpt.settings.choices import Architecture, Positions, WeightFormat
from wholegpt.settings.presets import gpt2
from wholegpt.settings.schema import LoraConfig, ModelConfig
from wholegpt.tokenizers import byte_tokenizer
from wholegpt.training.optimizers import load_optimizer_tensors, optimizer_tensors
from wholegpt.training.state import TrainingState

TOKENIZER = byte_tokenizer()
SIZES: dict[str, Any] = {"vocab_size": TOKENIZER.vocab_size, "d_model": 32, "n_heads": 4}


def made(**changes: Any) -> Transformer:
    torch.manual_seed(0)
    return Transformer(tiny_model(**SIZES, **changes)).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder."""
    save_model(tmp_path / "model", made(), TOKENIZER)
    return tmp_path / "model"


def rewrite(folder: Path, **changes: Any) -> None:
    """Change fields of the model's config."""
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content["model"] |= changes
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("weights", ["int8", "int4", pytest.param("bfloat16", marks=NEEDS_BFLOAT16)])
def test_packed_weights_cannot_be_saved(folder: Path, tmp_path: Path, weights: str) -> None:
    """No way of saving may silently omit the linear layers."""
    model = quantize_weights(load_model(folder).model, WeightFormat(weights))
    refused = pytest.raises(ConfigError, match=f"packed as {weights} and cannot be saved or loaded")
    with refused:
        save_model(tmp_path / "a", model, TOKENIZER)
    with refused:
        save_checkpoint(tmp_path / "b", model, TOKENIZER, TrainingFiles({}, {}))
    with refused:
        model.state_dict()
    with refused:
        huggingface.write(tmp_path, model, TOKENIZER)
    with refused:
        model.load_state_dict({}, strict=False)
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_model_loaded_as_int8_cannot_be_saved(folder: Path, tmp_path: Path) -> None:
    lm = load(folder, weights="int8", console=Console(quiet=True))
    with pytest.raises(ConfigError, match="load the model with weights=float32"):
        save_model(tmp_path / "again", lm.model, lm.tokenizer)


def test_compiled_model_cannot_be_saved(tmp_path: Path) -> None:
    compiled = CompiledTransformer(made(), Console(quiet=True), compiler=lambda one, **_: one)
    with pytest.raises(CheckpointError, match="not saved: these tensors of the model are not those of its"):
        save_model(tmp_path / "model", compiled, TOKENIZER)


def test_lora_is_saved_unmerged_with_its_settings(tmp_path: Path) -> None:
    """Merged, its update would be saved twice; without its settings, it could not be loaded."""
    model, config = made(), LoraConfig(rank=2)
    add_lora(model, config)
    with pytest.raises(CheckpointError, match=r"not those of its config: blocks\.0"):
        save_model(tmp_path / "model", model, TOKENIZER)
    merge(model)
    with pytest.raises(ConfigError, match="LoRA is merged"):
        save_model(tmp_path / "model", model, TOKENIZER, ModelMetadata(lora=config))
    unmerge(model)
    save_model(tmp_path / "model", model, TOKENIZER, ModelMetadata(lora=config))
    loaded = load_model(tmp_path / "model").model
    assert loaded.own_tensors().keys() == model.own_tensors().keys()
    merge(model)
    remove_lora(model)
    save_model(tmp_path / "merged", model, TOKENIZER)


def test_non_finite_weights_are_neither_saved_nor_loaded(folder: Path, tmp_path: Path) -> None:
    model = made()
    for value in (float("nan"), float("inf")):
        with torch.no_grad():
            model.final_norm.get_parameter("weight")[3] = value
        with pytest.raises(CheckpointError, match=r"not saved: final_norm\.weight holds values that are not"):
            save_model(tmp_path / "broken", model, TOKENIZER)
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    for value, dtype in ((float("nan"), torch.float32), (1e300, torch.float64)):
        tensors["final_norm.weight"] = torch.full((32,), value, dtype=dtype)
        safetensors.torch.save_file(tensors, folder / WEIGHTS)
        with pytest.raises(
            CheckpointError, match=r"final_norm\.weight holds values that are not finite in float32"
        ):
            load_model(folder)


CONFIGS = {
    "modern": tiny_model(**SIZES),
    "tied, learned": shrink(gpt2(), **SIZES),
    "shared": tiny_model(**SIZES, n_layers=4, distinct_layers=2),
    "experts": tiny_model(**SIZES, n_experts=2),
    "encoder": tiny_model(**SIZES, architecture=Architecture.encoder),
    "lstm": ModelConfig(Architecture.lstm, TOKENIZER.vocab_size, 12, 2, 32),
    "ngram": ModelConfig(Architecture.ngram, TOKENIZER.vocab_size, 12, ngram_order=3),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_round_trip_is_exact(tmp_path: Path, kind: str) -> None:
    model = make_model(CONFIGS[kind])
    save_model(tmp_path / "model", model, TOKENIZER)
    loaded = load_model(tmp_path / "model").model
    expected, found = model.own_tensors(), loaded.own_tensors()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("claim", "problem"),
    [
        ({"n_layers": 9_999}, "does not fit config.json: holds [0-9]+ tensors, too few for 9,999 layers"),
        ({"n_layers": 10**6}, "model.n_layers is 1000000; expected a value of at most 10,000"),
        ({"n_layers": 10**9, "distinct_layers": 1}, "model.n_layers is 1000000000"),
        ({"d_model": 2**24}, "does not fit config.json: blocks"),
        ({"d_model": 10**12}, "model.d_model is 1000000000000; expected a value of at most 16,777,216"),
        ({"d_ff": 2**24}, "does not fit config.json: blocks"),
        ({"n_experts": 2**24, "d_ff": 2**24, "d_model": 2**24}, "does not fit config.json"),
        ({"context_length": 10**15}, "model.context_length is"),
        ({"n_heads": 2**23, "d_head": 2**23}, "does not fit config.json"),
        ({"n_layers": -3}, "model.n_layers is -3; expected a value of at least 1"),
        ({"n_heads": 0}, "model.n_heads is 0"),
        ({"n_kv_heads": 3}, "expected a divisor of"),
        ({"attention_window": 10**9}, "model.attention_window"),
    ],
)
def test_config_that_contradicts_the_weights_is_rejected(
    folder: Path, claim: dict[str, Any], problem: str
) -> None:
    """The error comes at once, before anything of the claimed size is allocated."""
    rewrite(folder, **claim)
    started = time.perf_counter()
    with pytest.raises(CheckpointError, match=problem):
        load_model(folder)
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_dtypes_are_loaded(folder: Path, dtype: torch.dtype) -> None:
    tensors = {name: one.to(dtype) for name, one in safetensors.torch.load_file(folder / WEIGHTS).items()}
    safetensors.torch.save_file(tensors, folder / WEIGHTS)
    loaded = load_model(folder).model.own_tensors()
    assert all(torch.equal(loaded[name], one.float()) for name, one in tensors.items())


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.int8, "I8"), (torch.int64, "I64"), (torch.bool, "BOOL"), (torch.float8_e4m3fn, "F8_E4M3")],
)
def test_other_dtypes_are_rejected_by_name(folder: Path, dtype: torch.dtype, name: str) -> None:
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    tensors["final_norm.weight"] = tensors["final_norm.weight"].to(dtype)
    safetensors.torch.save_file(tensors, folder / WEIGHTS)
    with pytest.raises(
        CheckpointError, match=rf"final_norm\.weight holds {name}; expected F64, F32, F16, BF16"
    ):
        load_model(folder)


def test_damaged_metadata_is_rejected(folder: Path) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "new_tokens": 10**9}))
    with pytest.raises(CheckpointError, match="new_tokens is 1000000000"):
        load_model(folder)
    path.write_text(json.dumps({"format_version": 1}))
    with pytest.raises(CheckpointError, match="lacks 'model'"):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("99999.exp_avg", torch.zeros(3)),
        ("x.exp_avg", torch.zeros(3)),
        ("0.exp_avg", torch.zeros(3)),
        ("0.exp_avg", torch.zeros(TOKENIZER.vocab_size, 32, dtype=torch.int64)),
    ],
)
def test_optimizer_state_of_another_model_is_rejected(name: str, tensor: torch.Tensor) -> None:
    model = made()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(CheckpointError, match="the optimizer's state does not fit the model"):
        load_optimizer_tensors(optimizer, model, {name: tensor})


def test_optimizer_state_round_trips() -> None:
    model = made()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    optimizer.step()
    kept = optimizer_tensors(optimizer, model)
    again = made()
    # Parameters in another order are matched by name.
    fresh = torch.optim.AdamW(reversed([*again.parameters()]))
    load_optimizer_tensors(fresh, again, kept)
    found = optimizer_tensors(fresh, again)
    assert found.keys() == kept.keys() and all(torch.equal(one, kept[name]) for name, one in found.items())
    for name in ("blocks.0.attention.output.weight", "final_norm.weight"):
        lacking = {key: one for key, one in kept.items() if not key.startswith(f"{name}.")}
        with pytest.raises(CheckpointError, match=f"does not fit the model: {name} is in one of them only"):
            load_optimizer_tensors(torch.optim.AdamW(again.parameters()), again, lacking)


def test_optimizer_state_with_indices_instead_of_names_is_loaded() -> None:
    model = made()
    optimizer = torch.optim.AdamW(model.parameters())
    tensors = {f"{i}.exp_avg": torch.full_like(one, i) for i, one in enumerate(model.parameters()) if i != 1}
    load_optimizer_tensors(optimizer, model, tensors)
    for i, one in enumerate(model.parameters()):
        assert (optimizer.state[one]["exp_avg"] == i).all() if i != 1 else not optimizer.state[one]


def test_untrained_parameters_have_no_optimizer_state() -> None:
    model = made()
    optimizer = torch.optim.AdamW(model.parameters())
    trained = model.get_parameter("final_norm.weight")
    trained.sum().backward()
    optimizer.step()
    kept = optimizer_tensors(optimizer, model)
    assert "final_norm.weight.exp_avg" in kept and kept["token_embedding.weight.untrained"].numel() == 0
    fresh = torch.optim.AdamW(model.parameters())
    load_optimizer_tensors(fresh, model, kept)
    assert [one for one in model.parameters() if fresh.state[one]] == [trained]


def test_damaged_training_state_is_rejected() -> None:
    with pytest.raises(CheckpointError, match="the state of the training is damaged"):
        TrainingState.from_json({"step": "seven"})


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    """Every tensor comes from the file."""
    model = made(positions=Positions.sinusoidal)
    save_model(tmp_path / "model", model, TOKENIZER)
    state = torch.get_rng_state()
    loaded = load_model(tmp_path / "model").model.eval()
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, buffer in model.named_buffers():
        assert torch.equal(dict(loaded.named_buffers())[name], buffer)
    token_ids = torch.arange(8)[None]
    assert torch.equal(loaded(token_ids), model(token_ids))
