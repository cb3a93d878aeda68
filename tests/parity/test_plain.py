"""Logits against the independent implementation in float64."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.helpers import tiny_models, tiny_variants
from tests.parity import plain
from wholegpt.errors import ConfigError
from wholegpt.model import Transformer
from wholegpt.model import plain as one_page
from wholegpt.settings.choices import AttentionKernel, Embeddings

MODELS = tiny_models() | tiny_variants()
KERNELS = [kernel for kernel in AttentionKernel if kernel is not AttentionKernel.automatic]


def randomized(name: str, kernel: AttentionKernel = AttentionKernel.plain) -> Transformer:
    """Return a tiny float64 model with all parameters random, including gains and biases."""
    generator = torch.Generator().manual_seed(1)
    model = Transformer(MODELS[name], kernel).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator).mul_(0.5)
    return model


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_the_plain_implementation(name: str, kernel: AttentionKernel) -> None:
    model = randomized(name, kernel)
    token_ids = torch.randint(37, (3, 12), generator=torch.Generator().manual_seed(2))
    weights = {key: value.numpy() for key, value in model.state_dict().items()}
    with torch.no_grad():
        ours = model(token_ids).numpy()
    for row in range(3):
        theirs = plain.logits(token_ids[row].tolist(), weights, model.config)
        np.testing.assert_allclose(ours[row], theirs, rtol=0, atol=1e-10)
        assert np.abs(theirs).max() > 0.1


ON_ONE_PAGE = ["gpt2", "modern", "scaled, linear", "scaled, llama3"]


@pytest.mark.parametrize("name", ON_ONE_PAGE)
def test_logits_and_gradients_equal_the_one_page_model(name: str) -> None:
    model = randomized(name)
    token_ids = torch.randint(37, (3, 12), generator=torch.Generator().manual_seed(2))
    weights = dict(model.named_parameters(remove_duplicate=False))
    upstream = torch.randn(3, 12, 37, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def with_gradients(logits: Tensor) -> tuple[Tensor, ...]:
        return logits, *torch.autograd.grad((logits * upstream).sum(), list(model.parameters()))

    found = with_gradients(one_page.logits(token_ids, weights, model.config))
    for ours, theirs in zip(with_gradients(model(token_ids)), found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {*ON_ONE_PAGE}))
def test_one_page_model_rejects_other_variants(name: str) -> None:
    model = randomized(name)
    with pytest.raises(ConfigError, match="GPT-2 or modern"):
        one_page.logits(torch.zeros(1, 2, dtype=torch.long), model.state_dict(), model.config)


def test_comparison_detects_a_small_difference() -> None:
    model = randomized("gpt2")
    weights = {key: value.numpy().copy() for key, value in model.state_dict().items()}
    weights["blocks.1.attention_norm.bias"] += 1e-6
    theirs = plain.logits([1, 2, 3], weights, model.config)
    with torch.no_grad():
        ours = model(torch.tensor([[1, 2, 3]]))[0].numpy()
    assert np.abs(ours - theirs).max() > 1e-10


@pytest.mark.parametrize("embeddings", Embeddings)
def test_it_takes_the_weights_of_a_saved_model(embeddings: Embeddings, tmp_path: Path) -> None:
    """A file has no output projection that is tied to the embedding."""
    torch.manual_seed(0)
    model = Transformer(replace(MODELS["gpt2"], embeddings=embeddings)).double().eval()
    save_file(model.own_tensors(), tmp_path / "model.safetensors")
    weights = load_file(tmp_path / "model.safetensors")
    assert ("unembedding.weight" in weights) is (embeddings is Embeddings.untied)
    token_ids = torch.tensor([[1, 2, 3]])
    found = one_page.logits(token_ids, weights, model.config)
    torch.testing.assert_close(found, model(token_ids), rtol=1e-12, atol=1e-12)
