"""Models with scaled rotary positions, such as Llama 3.1, to transformers and GGUF and back, with equal logits."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers import Fails, tiny_model
from tests.interop.models import random_model, tokenizer_of
from tests.interop.test_gguf_import import copied
from wholegpt.checkpoint import load_model, save_model
from wholegpt.console import Console
from wholegpt.errors import CheckpointError, ConfigError
from wholegpt.generation import Sampler, generate_ids
from wholegpt.interop.conversion import export_model, import_model
from wholegpt.interop.gguf import TensorType, write
from wholegpt.interop.gguf_file import GgufFile
from wholegpt.settings.choices import QueryKeyNorm, RotaryScaling
from wholegpt.settings.schema import GenerationConfig, ModelConfig
from wholegpt.settings.validation import complete_model

transformers = pytest.importorskip("transformers", reason="transformers is a test-only dependency")
gguf = pytest.importorskip("gguf")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
QUIET = Console(quiet=True)
CPU = torch.device("cpu")

SIZES: dict[str, Any] = {"vocab_size": 65, "context_length": 128, "d_model": 32, "d_head": 8}
LINEAR = tiny_model(
    **SIZES, query_key_norm=QueryKeyNorm.none, rotary_scaling=RotaryScaling.linear, rotary_factor=4.0
)
# Of the four wavelengths 6, 17, 44 and 118, the first is unchanged; the second is between the limits 8 and 32.
LLAMA3 = tiny_model(
    **SIZES,
    query_key_norm=QueryKeyNorm.none,
    rotary_base=50.0,
    rotary_scaling=RotaryScaling.llama3,
    rotary_factor=8.0,
    rotary_original_context=32,
)
QWEN3 = replace(LLAMA3, query_key_norm=QueryKeyNorm.rms_norm, rotary_low_freq_factor=0.5)
# The settings of Llama 3.2; the wavelengths are 6, 167, 4443 and 118,000.
PUBLISHED = replace(LLAMA3, rotary_base=500_000.0, rotary_factor=32.0, rotary_original_context=8192)
SCALED = {"linear": LINEAR, "llama3": LLAMA3, "qwen3": QWEN3, "published": PUBLISHED}
THEIRS: dict[str, Any] = {
    "vocab_size": 65,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
ROPE: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}


def their_model(folder: Path, **rope: Any) -> Any:
    """Save a random Llama of transformers with a tokenizer; ``rope`` replaces ``rope_parameters``."""
    torch.manual_seed(3)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**THEIRS))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer_of(65).save(folder / "tokenizer.json")
    content = json.loads((folder / "config.json").read_text())
    del content["rope_parameters"]
    (folder / "config.json").write_text(json.dumps({**content, **rope}))
    return opened_in_transformers(folder)


def opened_in_transformers(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def difference(ours: Any, theirs: Any) -> float:
    """Return the largest logit difference over the whole context, far beyond the original one, in 64 bits.

    transformers computes norms and angles in float32 even then.
    """
    token_ids = torch.randint(65, (2, 128), generator=torch.Generator().manual_seed(5))
    return float((ours.double()(token_ids) - theirs.double()(token_ids).logits).abs().max())


def greedy(model: Any, tokens: int = 60) -> list[int]:
    return list(generate_ids(model, [1, 2, 3], Sampler(GenerationConfig(tokens, temperature=0)), CPU))


def greedy_in_transformers(model: Any, tokens: int = 60) -> list[int]:
    generated = model.generate(
        torch.tensor([[1, 2, 3]]), do_sample=False, max_new_tokens=tokens, eos_token_id=None, use_cache=True
    )
    return generated[0, 3:].tolist()


@pytest.mark.parametrize("name", SCALED)
def test_exports_open_in_transformers(name: str, tmp_path: Path) -> None:
    save_model(tmp_path / "model", random_model(SCALED[name]), tokenizer_of(65))
    export = export_model(tmp_path / "model", "huggingface", tmp_path / "export", console=QUIET)
    assert [one.opened_by.split()[0] for one in export.parity_reports] == ["wholegpt", "transformers"]
    ours, theirs = load_model(tmp_path / "model").model.eval(), opened_in_transformers(export.path)
    assert greedy(ours) == greedy_in_transformers(theirs)
    assert difference(ours, theirs) <= 2e-5
    back = load_model(import_model(export.path, tmp_path / "back", console=QUIET)).model
    assert back.config == ours.config
    unscaled = random_model(
        replace(ModelConfig(), **{k: v for k, v in vars(SCALED[name]).items() if not k.startswith("rotary_")})
    )
    assert difference(unscaled, theirs) > 1e-2


@pytest.mark.parametrize("part", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("kind", ROPE)
def test_models_of_transformers_can_be_imported(kind: str, part: str, tmp_path: Path) -> None:
    theirs = their_model(tmp_path, rope_theta=50.0, **{part: ROPE[kind]})
    ours = load_model(import_model(tmp_path, tmp_path / "ours", console=QUIET)).model.eval()
    assert ours.config.rotary_scaling == kind and ours.config.rotary_base == 50.0
    assert greedy(ours) == greedy_in_transformers(theirs)
    assert difference(ours, theirs) <= 2e-5
    theirs.model.rotary_emb.inv_freq = theirs.model.rotary_emb.inv_freq * 0.9
    assert difference(ours, theirs) > 1e-2


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": {"type": "linear", "factor": 2}},
        {"rope_parameters": {**ROPE["linear"], "rope_theta": 30.0}, "rope_theta": 50.0},
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}, "rope_scaling": ROPE["linear"]},
        {"rope_scaling": {**ROPE["llama3"], "original_max_position_embeddings": 64}, "rope_theta": 50.0},
        {
            "rope_parameters": {**ROPE["llama3"], "rope_theta": 50.0},
            "original_max_position_embeddings": 48,
        },
        {
            "rope_parameters": {n: v for n, v in ROPE["llama3"].items() if not n.startswith("original")},
            "rope_theta": 50.0,
        },
    ],
)
def test_spellings_of_rope_settings(rope: dict[str, Any], tmp_path: Path) -> None:
    theirs = their_model(tmp_path, **rope)
    ours = load_model(import_model(tmp_path, tmp_path / "ours", console=QUIET)).model.eval()
    assert difference(ours, theirs) <= 2e-5


@pytest.mark.parametrize("kind", ["yarn", "longrope", "dynamic", "proportional"])
@pytest.mark.parametrize("part", ["rope_parameters", "rope_scaling"])
def test_other_kinds_of_scaling_are_rejected_by_name(
    kind: str, part: str, tmp_path: Path, fails: Fails
) -> None:
    their_model(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content[part] = {"rope_type": kind, "factor": 2.0}
    (tmp_path / "config.json").write_text(json.dumps(content))
    message = fails("import", tmp_path, "--out", tmp_path / "ours")
    assert f"{part} is of the kind '{kind}'; only default, linear, llama3 rotary positions" in message


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"factor": None}, "factor is None; expected a number"),
        ({"factor": 0.5}, "model.rotary_factor is 0.5; expected a value of at least 1"),
        ({"low_freq_factor": "low"}, "low_freq_factor is 'low'; expected a number"),
        ({"low_freq_factor": 4.0}, "model.rotary_high_freq_factor is 4.0; expected a value above"),
        ({"original_max_position_embeddings": 0.5}, "rotary_original_context"),
    ],
)
def test_invalid_settings_are_rejected(
    changes: dict[str, Any], named: str, tmp_path: Path, fails: Fails
) -> None:
    their_model(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["rope_scaling"] = {**ROPE["llama3"], **changes}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert named in fails("import", tmp_path, "--out", tmp_path / "ours")


def file_of(config: ModelConfig, folder: Path) -> Path:
    """Write a GGUF file of a random model, without scaling beyond ``config``."""
    write(folder / "model.gguf", random_model(config), tokenizer_of(65), TensorType.f32)
    return folder / "model.gguf"


def changed(path: Path, metadata: dict[str, Any], **tensors: Any) -> Path:
    """Return a copy of the file with changed ``metadata`` and with the given factors as ``rope_freqs``."""
    new = path.with_name("changed.gguf")
    added = {f"{name}.weight": np.array(values, np.float32) for name, values in tensors.items()}
    copied(path, new, lambda fields: fields.update(metadata), added=added)
    return new


def expected_factors(width: int, base: float, rope: dict[str, Any]) -> Tensor:
    """Return the factors of llama.cpp's converter: unscaled frequencies divided by transformers' scaled ones."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(
        head_dim=width, max_position_embeddings=131_072, rope_parameters={**rope, "rope_theta": base}
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, CPU)
    return 1 / (base ** (torch.arange(0, width, 2).float() / width)) / scaled


@pytest.mark.parametrize("tensor_type", TensorType)
@pytest.mark.parametrize("name", ["linear", "llama3", "published"])
def test_gguf_round_trip(name: str, tensor_type: TensorType, tmp_path: Path) -> None:
    save_model(tmp_path / "model", random_model(SCALED[name]), tokenizer_of(65))
    made = export_model(tmp_path / "model", "gguf", tmp_path / "out", tensor_type=tensor_type, console=QUIET)
    file = made.files[0]
    back = load_model(import_model(file, tmp_path / "back", console=QUIET)).model
    original = load_model(tmp_path / "model").model
    assert back.config == original.config
    if tensor_type is TensorType.f32:
        assert greedy(back.double()) == greedy(original.double())


def test_gguf_metadata_of_scaled_models(tmp_path: Path) -> None:
    linear = GgufFile(file_of(LINEAR, tmp_path))
    assert linear.metadata["llama.rope.scaling.type"] == "linear"
    assert linear.metadata["llama.rope.scaling.factor"] == 4.0
    assert "rope_freqs.weight" not in linear.stored
    for config in (LLAMA3, PUBLISHED):
        llama3 = GgufFile(file_of(config, tmp_path))
        assert not any(name.startswith("llama.rope.scaling.factor") for name in llama3.metadata)
        assert "llama.rope.scaling.type" not in llama3.metadata
        length = config.rotary_original_context
        rope = {**ROPE["llama3"], "factor": config.rotary_factor, "original_max_position_embeddings": length}
        stored = llama3.stored["rope_freqs.weight"]
        assert stored.tensor_type is gguf.GGMLQuantizationType.F32
        expected = expected_factors(8, config.rotary_base, rope)
        torch.testing.assert_close(torch.from_numpy(np.array(stored.data)), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("width", "factor"), [(128, 8.0), (64, 32.0), (64, 16.0)])
def test_file_of_the_llama_cpp_converter(width: int, factor: float, tmp_path: Path) -> None:
    """Llama 3.1 and 3.3, Llama 3.2, and another factor, from the tensor alone."""
    sizes = {"d_head": width, "rotary_base": 500_000.0, "query_key_norm": QueryKeyNorm.none}
    unscaled = complete_model(tiny_model(**{**SIZES, **sizes}))
    rope = {**ROPE["llama3"], "factor": factor, "original_max_position_embeddings": 8192}
    factors = expected_factors(width, 500_000.0, rope)
    path = changed(file_of(unscaled, tmp_path), {}, rope_freqs=factors)
    config, _ = GgufFile(path).read()
    assert config == replace(unscaled, rotary_scaling=RotaryScaling.llama3, rotary_factor=factor)


@pytest.mark.parametrize(
    ("metadata", "factor"),
    [
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.5}, 2.5),
        ({"llama.rope.scaling.factor": 2.5}, 2.5),
        ({"llama.rope.scale_linear": 2.5}, 2.5),
        ({"llama.rope.scale_linear": 9.0, "llama.rope.scaling.factor": 2.5}, 2.5),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 2.5}, None),
        ({"llama.rope.scaling.type": "linear"}, None),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 1.0}, None),
        ({"llama.rope.scaling.factor": 0.0}, None),
    ],
)
def test_linear_scaling_in_metadata(metadata: dict[str, Any], factor: float | None, tmp_path: Path) -> None:
    """As llama.cpp reads it: linear unless another type is given, also with the older name of the factor."""
    unscaled = complete_model(replace(LINEAR, rotary_scaling=RotaryScaling.none, rotary_factor=8.0))
    path = changed(file_of(unscaled, tmp_path), metadata)
    expected = {"rotary_scaling": RotaryScaling.linear, "rotary_factor": factor} if factor else {}
    assert GgufFile(path).read()[0] == replace(unscaled, **expected)


@pytest.mark.parametrize(
    ("factors", "metadata"),
    [
        ({"rope_freqs": [1, 1, 2, 8]}, {}),
        ({"rope_freqs": [1, 1, float("nan"), 8]}, {}),
        ({"rope_freqs": [1, 1, 1]}, {}),
        ({"rope_freqs": []}, {}),
        ({}, {"llama.rope.scaling.factor": 2.0}),
        ({}, {"llama.rope.scaling.original_context_length": 4096}),
    ],
)
def test_other_factors_are_rejected_by_name(
    factors: dict[str, list[float]], metadata: dict[str, Any], tmp_path: Path, fails: Fails
) -> None:
    path = changed(file_of(PUBLISHED, tmp_path), metadata, **factors)
    message = fails("import", path, "--out", tmp_path / "out")
    assert "rope_freqs.weight scales the rotary frequencies differently from Llama 3.1" in message


def test_models_that_gguf_cannot_express_are_rejected(tmp_path: Path) -> None:
    for config, message in (
        (replace(LLAMA3, query_key_norm=QueryKeyNorm.rms_norm), "in Llama models only, not in Qwen3 models"),
        (replace(LLAMA3, rotary_low_freq_factor=0.5), "only models with model.rotary_low_freq_factor 1"),
        (
            replace(LLAMA3, rotary_original_context=200),
            "less than one period in the original context",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            file_of(config, tmp_path)


def test_rope_freqs_are_for_llama_models_only(tmp_path: Path) -> None:
    """llama.cpp rejects such a file for another architecture."""
    path = changed(file_of(tiny_model(**SIZES), tmp_path), {}, rope_freqs=[1.0] * 4)
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight is not part of it"):
        GgufFile(path).read()
