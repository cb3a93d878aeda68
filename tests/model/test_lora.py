"""LoRA: its equation, merging and unmerging, frozen weights, and invalid settings."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from tests.helpers import tiny_models
from wholegpt.errors import ConfigError
from wholegpt.model import Transformer
from wholegpt.model.layers.linear import Linear
from wholegpt.model.lora import (
    LoraLinear,
    add_lora,
    base_tensors,
    lora_layers,
    merge,
    remove_lora,
    unmerge,
)
from wholegpt.settings.schema import LoraConfig

LORA = LoraConfig(rank=8)
TOKENS = torch.arange(24).view(2, 12)


def fresh(kind: str, **changes: Any) -> Transformer:
    torch.manual_seed(0)
    config = dataclasses.replace(tiny_models()[kind], **changes)
    return Transformer(config).double().eval()


def changed(model: Transformer, config: LoraConfig = LORA) -> Transformer:
    """Return ``model`` with LoRA layers that have an effect."""
    add_lora(model, config)
    with torch.no_grad():
        for _, layer in lora_layers(model):
            layer.up.normal_()
    return model


@pytest.mark.parametrize("kind", tiny_models())
def test_initial_lora_does_not_change_the_model(kind: str) -> None:
    model = fresh(kind)
    with torch.inference_mode():
        before = model(TOKENS)
        add_lora(model, LORA)
        assert torch.equal(model(TOKENS), before)


def test_the_equation() -> None:
    torch.manual_seed(0)
    base = Linear(7, 5)
    layer = LoraLinear(base, LoraConfig(rank=3, alpha=6.0))
    with torch.no_grad():
        layer.up.normal_()
    x = torch.randn(2, 4, 7)
    expected = x @ (base.weight + 6 / 3 * layer.up @ layer.down).t() + base.bias
    torch.testing.assert_close(layer(x), expected)
    bound = math.sqrt(1 / 7)
    assert float(layer.down.detach().abs().max()) <= bound and float(
        layer.down.detach().std()
    ) == pytest.approx(bound / math.sqrt(3), rel=0.4)


@pytest.mark.parametrize("kind", tiny_models())
def test_merged_model_equals_the_unmerged_one(kind: str) -> None:
    model = changed(fresh(kind))
    with torch.inference_mode():
        unmerged = model(TOKENS)
        before = {name: tensor.clone() for name, tensor in base_tensors(model).items()}
    merge(model)
    with torch.inference_mode():
        torch.testing.assert_close(model(TOKENS), unmerged, rtol=0, atol=1e-6)
    with pytest.raises(ConfigError, match="already merged"):
        merge(model)
    with pytest.raises(ConfigError, match="unmerge it first"):
        base_tensors(model)
    unmerge(model)
    with pytest.raises(ConfigError, match="not merged"):
        unmerge(model)
    for name, tensor in base_tensors(model).items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-12)
    merge(model)
    remove_lora(model)
    with torch.inference_mode():
        torch.testing.assert_close(model(TOKENS), unmerged, rtol=0, atol=1e-6)
    assert model.own_tensors().keys() == fresh(kind).own_tensors().keys()
    with pytest.raises(ConfigError, match="has no LoRA"):
        merge(model)


def test_only_lora_weights_are_trained() -> None:
    model = changed(fresh("modern"), LoraConfig(rank=2, dropout=0.3))
    before = {name: tensor.clone() for name, tensor in base_tensors(model).items()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(trained) == 2 * len(list(lora_layers(model)))
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    model.train()
    first = model(TOKENS)
    assert not torch.equal(first, model(TOKENS))  # dropout
    first.square().mean().backward()
    assert all(parameter.grad is not None for parameter in trained)
    optimizer.step()
    for name, tensor in base_tensors(model).items():
        assert torch.equal(tensor, before[name])
    remove_lora(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_target_patterns_select_layers() -> None:
    model = fresh("gpt2")
    targets = ("blocks.0.*", "blocks.*.attention.output")
    names = add_lora(model, LoraConfig(rank=8, targets=targets))
    others = [f"blocks.{layer}.attention.output" for layer in range(1, model.config.n_layers)]
    of_first = ("attention.query_key_value", "attention.output", "feed_forward.expand", "feed_forward.output")
    assert sorted(names) == sorted([*(f"blocks.0.{name}" for name in of_first), *others])
    assert [name for name, _ in lora_layers(model)] == names


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "lora.rank is 0"),
        ({"alpha": 0.0}, "lora.alpha is 0"),
        ({"alpha": math.inf}, "lora.alpha is inf"),
        ({"dropout": 1.0}, "lora.dropout is 1"),
        (
            {"targets": ("blocks.7.*",)},
            r"'blocks.7.\*' matches no linear layer; there are blocks.0 to blocks.1, each",
        ),
        ({"targets": ("unembedding",)}, "attention.output, attention.query_key_value"),
    ],
)
def test_invalid_settings_are_rejected(changes: dict[str, Any], message: str) -> None:
    model = fresh("modern")
    with pytest.raises(ConfigError, match=message):
        add_lora(model, LoraConfig(**{"rank": 8, **changes}))
    assert not list(lora_layers(model)) and all(one.requires_grad for one in model.parameters())


def test_adding_lora_twice_is_rejected() -> None:
    model = changed(fresh("modern"))
    with pytest.raises(ConfigError, match="already has LoRA"):
        add_lora(model, LORA)
