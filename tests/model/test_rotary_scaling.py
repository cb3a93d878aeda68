"""Rotary scaling for longer contexts: frequencies, settings, and generation with a cache."""

import dataclasses
import json
import math
import string
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import generate_one, tiny_model, tiny_models, tiny_variants
from wholegpt.checkpoint import load_model, save_model
from wholegpt.console import Console
from wholegpt.errors import ConfigError
from wholegpt.generation import Sampler, generate_ids
from wholegpt.model import CompiledTransformer, Transformer
from wholegpt.model.layers.positions import rotary_frequencies
from wholegpt.settings.choices import Positions, RotaryScaling
from wholegpt.settings.presets import configure
from wholegpt.settings.schema import GenerationConfig
from wholegpt.settings.serialization import from_mapping, read_yaml, to_yaml
from wholegpt.settings.validation import complete_model
from wholegpt.tokenizers import character_tokenizer

SCALED = {name: config for name, config in tiny_variants().items() if name.startswith("scaled")}
TOKENIZER = character_tokenizer([string.ascii_lowercase + string.digits + "."])
LLAMA3 = tiny_model(rotary_scaling=RotaryScaling.llama3)


def frequencies(dtype: torch.dtype = torch.float64, **changes: Any) -> torch.Tensor:
    return rotary_frequencies(complete_model(tiny_model(**changes)), dtype)


def test_frequencies_by_hand() -> None:
    """Base 8 and three pairs: wavelengths 2π, 4π and 8π. The limits are 3π and 6π, so the second pair is half-way."""
    sizes = {"d_head": 6, "rotary_base": 8.0, "rotary_factor": 4.0}
    limits = {
        "rotary_original_context": 100,
        "rotary_low_freq_factor": 100 / (6 * math.pi),
        "rotary_high_freq_factor": 100 / (3 * math.pi),
    }
    llama3 = frequencies(**sizes, **limits, rotary_scaling=RotaryScaling.llama3)
    linear = frequencies(**sizes, rotary_scaling=RotaryScaling.linear)
    torch.testing.assert_close(
        llama3.tolist(), [1.0, 1 / 2 * (1 / 2 + 1 / 2 / 4), 1 / 4 / 4], rtol=1e-14, atol=0
    )
    torch.testing.assert_close(linear.tolist(), [1 / 4, 1 / 8, 1 / 16], rtol=1e-14, atol=0)
    assert llama3[0] == 1  # unchanged to the last bit
    unscaled = frequencies(d_head=6, rotary_base=8.0)
    torch.testing.assert_close(unscaled.tolist(), [1.0, 1 / 2, 1 / 4], rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("width", "base", "scaling"),
    [
        (128, 500_000.0, {"rope_type": "llama3", "factor": 8.0}),  # Llama 3.1 and 3.3
        (64, 500_000.0, {"rope_type": "llama3", "factor": 32.0}),  # Llama 3.2
        (128, 10_000.0, {"rope_type": "linear", "factor": 4.0}),
    ],
)
def test_frequencies_equal_those_of_transformers(width: int, base: float, scaling: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    limits = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    kind = scaling["rope_type"]
    parameters = {**scaling, "rope_theta": base, **(limits if kind == "llama3" else {})}
    config = transformers.LlamaConfig(
        hidden_size=4 * width,
        num_attention_heads=4,
        max_position_embeddings=131_072,
        rope_parameters=parameters,
    )
    theirs, _ = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    ours = frequencies(
        torch.float32,
        d_head=width,
        rotary_base=base,
        rotary_scaling=RotaryScaling(kind),
        rotary_factor=scaling["factor"],
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("name", SCALED)
def test_cached_equals_uncached_beyond_the_context(name: str, fixed: bool) -> None:
    """Greedy decoding with a growing cache, or with the fixed shapes used for compilation."""
    torch.manual_seed(1)
    model = Transformer(dataclasses.replace(SCALED[name], context_length=24)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    greedy = GenerationConfig(max_tokens=60, temperature=0)
    generator = (
        CompiledTransformer(model, Console(quiet=True), compiler=lambda one, **_: one) if fixed else model
    )
    cached = generate_one(generator, TOKENIZER, [1, 2, 3], greedy).token_ids
    assert cached == list(generate_ids(model, [1, 2, 3], Sampler(greedy), torch.device("cpu")))
    assert model.rotary
    model.rotary.config = dataclasses.replace(model.rotary.config, rotary_scaling=RotaryScaling.none)
    assert cached != list(generate_ids(model, [1, 2, 3], Sampler(greedy), torch.device("cpu")))


def test_rotary_scaling_settings_in_yaml(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("model: {rotary-scaling: llama3, rotary-factor: 32}\n")
    config = configure(read_yaml(tmp_path / "recipe.yaml"))
    assert (config.model.rotary_scaling, config.model.rotary_factor) == (RotaryScaling.llama3, 32.0)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert configure(read_yaml(tmp_path / "config.yaml")) == config


def test_model_folder_without_rotary_scaling_settings_is_unscaled(tmp_path: Path) -> None:
    """As in folders of earlier versions."""
    model = Transformer(tiny_models()["modern"])
    save_model(tmp_path / "model", model, TOKENIZER)
    path = tmp_path / "model" / "config.json"
    content = json.loads(path.read_text())
    scaling = [name for name in content["model"] if name.startswith("rotary_") and name != "rotary_base"]
    for name in scaling:
        del content["model"][name]
    path.write_text(json.dumps(content))
    assert len(scaling) == 5
    assert load_model(tmp_path / "model").model.config == model.config
    assert model.config.rotary_scaling is RotaryScaling.none


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "learned"}, "rotary_scaling is llama3, but model.positions is learned; leave it none"),
        ({"architecture": "lstm", "n_kv_heads": 0, "n_heads": 4}, "rotary_scaling does not apply to lstm"),
        (
            {"rotary_scaling": "linear", "rotary_low_freq_factor": 2},
            "rotary_low_freq_factor is set, but model",
        ),
        ({"rotary_scaling": "none", "rotary_factor": 2}, "set model.rotary_scaling to linear or llama3"),
        ({"rotary_factor": 0.5}, "rotary_factor is 0.5; expected a value of at least 1"),
        ({"rotary_factor": math.inf}, "rotary_factor is inf; expected"),
        ({"rotary_factor": math.nan}, "rotary_factor is nan; expected"),
        ({"rotary_low_freq_factor": 0}, "rotary_low_freq_factor is 0.0; expected a value above 0"),
        (
            {"rotary_low_freq_factor": 4},
            "high_freq_factor is 4.0; expected a value above model.rotary_low_freq",
        ),
        ({"rotary_high_freq_factor": math.inf}, "rotary_high_freq_factor is inf; expected"),
        (
            {"rotary_original_context": 0},
            "rotary_original_context is 0; expected a value from 1",
        ),
    ],
)
def test_invalid_settings_are_rejected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        complete_model(from_mapping(changes, LLAMA3))
    assert complete_model(LLAMA3).positions is Positions.rotary
