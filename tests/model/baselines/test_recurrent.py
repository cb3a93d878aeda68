"""Recurrent networks against PyTorch's layers and against their equations."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.helpers import tiny_config, tiny_model
from wholegpt.console import Console
from wholegpt.errors import ConfigError
from wholegpt.model import flops_per_token, parameter_count
from wholegpt.model.baselines import RecurrentNetwork
from wholegpt.model.baselines.recurrent import STEPS, run_steps
from wholegpt.runs import api
from wholegpt.settings.choices import Architecture
from wholegpt.settings.schema import ModelConfig

KINDS = [Architecture.elman, Architecture.gru, Architecture.lstm]
CONFIG = ModelConfig(vocab_size=37, context_length=12, n_layers=2, d_model=16)


def network(kind: Architecture) -> RecurrentNetwork:
    torch.manual_seed(0)
    model = RecurrentNetwork(replace(CONFIG, architecture=kind)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_the_equations_are_what_pytorch_computes(kind: Architecture) -> None:
    model = network(kind)
    ids = torch.randint(37, (3, 12))
    stream = model.token_embedding(ids)
    for layer in model.layers:
        assert isinstance(layer, nn.RNNBase)
        state = torch.zeros(3, model.states * 16, dtype=torch.float64)
        expected, last = run_steps(layer, STEPS[kind], stream, state)
        stream, after = layer(stream)
        torch.testing.assert_close(stream, expected, rtol=0, atol=1e-12)
        after = torch.cat(after, dim=-1)[0] if kind is Architecture.lstm else after[0]
        torch.testing.assert_close(after, last, rtol=0, atol=1e-12)
    torch.testing.assert_close(model(ids), stream @ model.token_embedding.weight.t(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_chunked_prefill_equals_one_forward_pass(kind: Architecture) -> None:
    model = network(kind)
    ids = torch.randint(37, (3, 40))
    cache = model.new_cache(3)
    pieces = [model(piece, cache) for piece in ids.split([1, 7, 2, 30], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_predicted_sizes(kind: Architecture) -> None:
    model = network(kind)
    count = parameter_count(model.config)
    assert count.total == model.parameter_count
    assert count.embeddings == model.token_embedding.weight.numel()
    gates = {"elman": 1, "gru": 3, "lstm": 4}[kind]
    assert flops_per_token(model.config) == 2 * (2 * 2 * gates * 16 * 16 + 37 * 16)
    assert [rows for _, rows in model.block_matrices()] == [[16] * gates] * 4


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("kind", KINDS)
def test_recurrent_run(kind: Architecture, optimizer: str, text_file: Path, tmp_path: Path) -> None:
    """Training, checkpoints, evaluation and generation work as for a transformer."""
    model = {"architecture": kind.value, "n_heads": ModelConfig().n_heads}
    config = tiny_config(text_file, model=model, optimizer={"kind": optimizer})
    run = api.train(config=config, out=tmp_path / "run", console=Console(quiet=True))
    lm = run.load()
    assert run.validation.nats_per_token < math.log(lm.tokenizer.vocab_size)
    completion = lm.generate("the", max_tokens=20, console=Console(quiet=True))
    assert len(completion.token_ids) == 20


def test_unsupported_settings_are_rejected() -> None:
    with pytest.raises(ConfigError, match=r"model.n_experts does not apply to gru"):
        parameter_count(tiny_model(architecture=Architecture.gru, n_heads=4, n_kv_heads=0, n_experts=3))
    documents = torch.tensor([[0, 0, 1]])
    with pytest.raises(ConfigError, match="which gru cannot do: its state sums all previous tokens"):
        network(Architecture.gru).hidden_states(documents, documents=documents)
