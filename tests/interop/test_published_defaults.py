"""Fields missing from ``config.json`` have the defaults of transformers' config classes, with equal logits."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests.helpers import Fails
from tests.interop.models import tokenizer_of
from wholegpt.checkpoint import load_model
from wholegpt.console import Console
from wholegpt.interop.architectures import ARCHITECTURES, Architecture
from wholegpt.interop.conversion import import_model

transformers = pytest.importorskip("transformers", reason="transformers is a test-only dependency")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
QUIET = Console(quiet=True)
GPT: dict[str, Any] = {"vocab_size": 65, "n_positions": 32, "n_embd": 24, "n_layer": 2, "n_head": 3}
LLAMA: dict[str, Any] = {
    "vocab_size": 65,
    "max_position_embeddings": 32,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 0.1,
    "rope_theta": 50.0,
    "tie_word_embeddings": True,
}
# Values of no published model, so that a default used instead is noticed.
SMALL: dict[str, dict[str, Any]] = {
    "gpt2": {**GPT, "n_inner": 40, "activation_function": "gelu", "layer_norm_epsilon": 0.1},
    "openai-gpt": {**GPT, "layer_norm_epsilon": 0.1},
    "llama": {**LLAMA, "head_dim": 16},
    "mistral": {**LLAMA, "head_dim": 16, "sliding_window": None},
    "qwen2": LLAMA,
    "qwen3": {**LLAMA, "head_dim": 16},
}
CONFIGS = {
    "gpt2": transformers.GPT2Config,
    "openai-gpt": transformers.OpenAIGPTConfig,
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
}


def saved(config: Any, folder: Path) -> Any:
    """Save a random transformers model in ``folder`` with a tokenizer, and return it."""
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer_of(config.vocab_size).save(folder / "tokenizer.json")
    return model


def edit(folder: Path, **changes: Any) -> None:
    """Change fields of a folder's config.json; the value ``...`` removes a field."""
    path = folder / "config.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))


def logits_of(folder: Path) -> tuple[Tensor, Tensor]:
    """Return our logits and those of transformers for one folder."""
    ours = load_model(import_model(folder, folder / "ours", console=QUIET, overwrite=True)).model.eval()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).float().eval()
    token_ids = torch.arange(32)[None] * 7 % ours.vocab_size
    with torch.inference_mode():
        return ours(token_ids), theirs(token_ids).logits


def assert_equal_logits(folder: Path) -> None:
    ours, theirs = logits_of(folder)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda one: one.model_type)
def test_defaults_are_those_of_the_config_class(architecture: Architecture) -> None:
    published = CONFIGS[architecture.model_type]()
    for name, value in architecture.defaults.items():
        if name == "rope_theta":
            assert published.rope_parameters["rope_theta"] == value
        elif name == "sliding_window" and published.sliding_window is None:  # if use_sliding_window is false
            assert CONFIGS[architecture.model_type](use_sliding_window=True).sliding_window == value
        elif value is None:  # replaced by the class, or not a field of the class
            assert architecture.nullable[name] in ("", "num_attention_heads")
        else:
            assert getattr(published, name) == value, name
    for name, value in architecture.fixed.items():
        assert getattr(published, name) == value, name
    assert dict(architecture.aliases) == (published.attribute_map if architecture.aliases else {})
    read = {
        *architecture.sizes.values(),
        architecture.activation,
        architecture.dropouts[0],
        "tie_word_embeddings",
    }
    assert read <= architecture.defaults.keys()


# Models with published sizes would be large, so only the other fields are compared by their logits.
LEFT_OUT = [
    *(
        ("gpt2", name)
        for name in ("activation_function", "layer_norm_epsilon", "n_inner", "tie_word_embeddings")
    ),
    *(
        ("gpt2", name)
        for name in ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "add_cross_attention")
    ),
    *(
        ("gpt2", name)
        for name in ("resid_pdrop", "reorder_and_upcast_attn", "dtype", "architectures", "n_positions")
    ),
    *(("openai-gpt", name) for name in ("afn", "layer_norm_epsilon", "tie_word_embeddings", "attn_pdrop")),
    *(
        ("qwen3", name)
        for name in ("hidden_act", "rms_norm_eps", "rope_parameters", "attention_bias", "layer_types")
    ),
    *(("qwen3", name) for name in ("use_sliding_window", "attention_dropout", "max_position_embeddings")),
    *(("qwen2", name) for name in ("hidden_act", "rms_norm_eps", "rope_parameters", "layer_types")),
    *(
        ("llama", name)
        for name in ("hidden_act", "rms_norm_eps", "rope_parameters", "mlp_bias", "attention_bias")
    ),
    *(("llama", name) for name in ("tie_word_embeddings", "max_position_embeddings", "pretraining_tp")),
    *(("mistral", name) for name in ("hidden_act", "rms_norm_eps", "rope_parameters", "attention_dropout")),
]


@pytest.mark.parametrize(("kind", "field"), LEFT_OUT)
def test_missing_field_has_the_default_of_transformers(kind: str, field: str, tmp_path: Path) -> None:
    small = {name: value for name, value in SMALL[kind].items() if name != field}
    if field == "rope_parameters":
        del small["rope_theta"]
    saved(CONFIGS[kind](**small), tmp_path)
    edit(tmp_path, **{field: ...})
    assert field not in json.loads((tmp_path / "config.json").read_text())
    assert_equal_logits(tmp_path)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gpt2", {"n_inner": None}),
        ("gpt2", {"n_embd": ..., "hidden_size": 24}),
        ("gpt2", {"n_layer": ..., "num_hidden_layers": 2, "n_head": 1, "num_attention_heads": 3}),
        ("gpt2", {"activation_function": "gelu_fast"}),
        ("gpt2", {"activation_function": "gelu_python"}),
        ("gpt2", {"reorder_and_upcast_attn": True}),
        ("gpt2", {"dtype": ..., "torch_dtype": "float32"}),
        ("gpt2", {"quantization_config": None, "n_ctx": 7}),
        ("openai-gpt", {"n_positions": ..., "max_position_embeddings": 32}),
        ("qwen3", {"hidden_act": "swish"}),
        ("qwen3", {"rope_parameters": None}),
        ("qwen3", {"rope_parameters": ..., "rope_theta": 77.0}),
        ("qwen3", {"rope_parameters": {"rope_type": "default"}, "rope_theta": 77.0}),
        ("qwen3", {"rope_parameters": {"rope_theta": 88.0}, "rope_theta": 77.0}),
        ("qwen3", {"rope_parameters": {"rope_theta": 88.0}, "rope_scaling": {"rope_type": "default"}}),
        ("qwen3", {"rope_parameters": ..., "rope_scaling": {"type": "default", "rope_theta": 99.0}}),
        ("qwen3", {"rope_scaling": None}),
        ("qwen3", {"use_sliding_window": True}),
        (
            "qwen3",
            {"use_sliding_window": True, "layer_types": None, "max_window_layers": 2, "sliding_window": 4},
        ),
        (
            "qwen3",
            {"use_sliding_window": True, "layer_types": None, "max_window_layers": 0, "sliding_window": None},
        ),
        (
            "qwen3",
            {"use_sliding_window": True, "layer_types": None, "max_window_layers": 0, "sliding_window": 32},
        ),
    ],
)
def test_other_spellings_of_a_field(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    small = {
        name: value for name, value in SMALL[kind].items() if name not in ("n_inner", "activation_function")
    }
    saved(CONFIGS[kind](**small), tmp_path)
    edit(tmp_path, **changes)
    assert_equal_logits(tmp_path)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("null", [None, ...])
def test_null_key_value_heads(kind: str, null: Any, tmp_path: Path) -> None:
    heads = 4 if null is None or kind == "llama" else 32
    sizes = {"num_key_value_heads": heads, "num_attention_heads": heads, "hidden_size": 128}
    saved(CONFIGS[kind](**{**SMALL[kind], **sizes}), tmp_path)
    edit(tmp_path, num_key_value_heads=null)
    assert_equal_logits(tmp_path)


@pytest.mark.parametrize(
    ("kind", "null"), [("llama", None), ("llama", ...), ("mistral", None), ("mistral", ...), ("qwen2", ...)]
)
def test_null_head_width(kind: str, null: Any, tmp_path: Path) -> None:
    small = {name: value for name, value in SMALL[kind].items() if name != "head_dim"}
    saved(CONFIGS[kind](**small), tmp_path)
    edit(tmp_path, head_dim=null)
    assert_equal_logits(tmp_path)


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        ("gpt2", {"activation_function": None}, "activation_function is None"),
        ("gpt2", {"n_embd": None}, "n_embd is None"),
        ("gpt2", {"layer_norm_epsilon": None}, "layer_norm_epsilon is None"),
        ("gpt2", {"tie_word_embeddings": None}, "tie_word_embeddings is None"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention is True"),
        ("gpt2", {"quantization_config": {"quant_method": "x"}}, "quantization_config is"),
        ("gpt2", {"per_layer_config": {"0": {"n_head": 1}}}, "per_layer_config is"),
        ("openai-gpt", {"afn": "relu"}, "afn is 'relu'"),
        ("qwen3", {"head_dim": None}, "head_dim is None"),
        ("qwen3", {"rope_theta": None, "rope_parameters": ...}, "rope_theta is None"),
        (
            "qwen3",
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
            "rope_parameters is of the kind 'yarn'",
        ),
        (
            "qwen3",
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope_scaling is of the kind 'dynamic'",
        ),
        (
            "qwen3",
            {"rope_parameters": {"full_attention": {"rope_theta": 5.0}}},
            "are given for full_attention separately",
        ),
        ("qwen3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is"),
        ("qwen3", {"layer_types": ["full_attention"]}, "layer_types is"),
        (
            "qwen3",
            {"use_sliding_window": True, "layer_types": None, "max_window_layers": 1, "sliding_window": 4},
            "sliding_window is 4, less than max_position_embeddings, 32",
        ),
        ("qwen3", {"attention_bias": True}, "attention_bias is True"),
        ("llama", {"attention_bias": True}, "attention_bias is True"),
        ("llama", {"mlp_bias": True}, "mlp_bias is True"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 50.0, "factor": 8.0}},
            "low_freq_factor is None",
        ),
        ("mistral", {"sliding_window": 8}, "sliding_window is 8, less than max_position_embeddings, 32"),
        (
            "mistral",
            {"sliding_window": ..., "max_position_embeddings": ...},
            "sliding_window is 4096, less than max_position_embeddings, 131072",
        ),
    ],
)
def test_unsupported_fields_are_rejected_by_name(
    kind: str, changes: dict[str, Any], named: str, tmp_path: Path, fails: Fails
) -> None:
    saved(CONFIGS[kind](**SMALL[kind]), tmp_path)
    edit(tmp_path, **changes)
    assert named in fails("import", tmp_path, "--out", tmp_path / "ours")


@pytest.mark.parametrize("kind", SMALL)
def test_tied_weights_under_either_name(kind: str, tmp_path: Path) -> None:
    saved(CONFIGS[kind](**SMALL[kind]), tmp_path / "embedding")
    weights = safetensors.torch.load_file(tmp_path / "embedding" / "model.safetensors")
    (name,) = [name for name, tensor in weights.items() if tensor.shape == (65, 24)]
    shutil.copytree(tmp_path / "embedding", tmp_path / "head")
    shutil.copytree(tmp_path / "embedding", tmp_path / "both")
    both = {**weights, "lm_head.weight": weights[name].clone()}
    safetensors.torch.save_file(both, tmp_path / "both" / "model.safetensors", {"format": "pt"})
    del both[name]
    safetensors.torch.save_file(both, tmp_path / "head" / "model.safetensors", {"format": "pt"})
    for stored in ("embedding", "head", "both"):
        assert_equal_logits(tmp_path / stored)


@pytest.mark.parametrize("kind", SMALL)
def test_pickle_of_tensors_is_read_by_the_safe_loader(kind: str, tmp_path: Path) -> None:
    saved(CONFIGS[kind](**SMALL[kind]), tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save({name: tensor.half() for name, tensor in weights.items()}, tmp_path / "pytorch_model.bin")
    assert_equal_logits(tmp_path)
    names = sorted(weights)
    (tmp_path / "pytorch_model.bin").unlink()
    files = {f"pytorch_model-{i}-of-2.bin": names[i - 1 :: 2] for i in (1, 2)}
    for file, held in files.items():
        torch.save({name: weights[name] for name in held}, tmp_path / file)
    weight_map = {name: file for file, held in files.items() for name in held}
    (tmp_path / "pytorch_model.bin.index.json").write_text(
        json.dumps({"weight_map": weight_map, "metadata": {}})
    )
    assert_equal_logits(tmp_path)


def test_pickle_with_other_objects_is_rejected(tmp_path: Path, fails: Fails) -> None:
    saved(CONFIGS["gpt2"](**SMALL["gpt2"]), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"a": Path("x")}, tmp_path / "pytorch_model.bin")
    assert "such files are pickles" in fails("import", tmp_path, "--out", tmp_path / "ours")
    torch.save({"a": [1]}, tmp_path / "pytorch_model.bin")
    assert "expected tensors by their names" in fails("import", tmp_path, "--out", tmp_path / "ours")
