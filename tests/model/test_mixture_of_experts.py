"""The mixture of experts against a loop over tokens, its losses by hand, and its logged metrics."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import tiny_config, tiny_model
from wholegpt.data import Batch
from wholegpt.model import Transformer, expert_load, router_losses
from wholegpt.model.layers.mixture_of_experts import (
    MixtureOfExperts,
    balance_loss,
    queue_positions,
    router_z_loss,
)
from wholegpt.settings.choices import Bias, FeedForward
from wholegpt.settings.validation import complete_model
from wholegpt.training.loop import accumulate_gradients
from wholegpt.training.objectives import LanguageModeling, with_router_losses


def mixture(**changes: Any) -> MixtureOfExperts:
    """Return a random mixture of experts in float64."""
    torch.manual_seed(0)
    layer = MixtureOfExperts(complete_model(tiny_model(**{"n_experts": 4, **changes}))).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def naive(layer: MixtureOfExperts, tokens: Tensor, capacity: float) -> tuple[Tensor, int]:
    """Route token by token: first choices in order, then second choices, within each expert's capacity.

    Return the output and the number of dropped choices.
    """
    taken, dropped, out = [0] * layer.experts, 0, torch.zeros_like(tokens)
    probabilities = torch.softmax(tokens @ layer.router.weight.t(), dim=-1)
    ranked = probabilities.argsort(dim=-1, descending=True)
    for rank in range(layer.chosen):
        for i, token in enumerate(tokens):
            e = int(ranked[i, rank])
            if taken[e] >= capacity:
                dropped += 1
                continue
            taken[e] += 1
            weights = probabilities[i, ranked[i, : layer.chosen]]
            gate = weights[rank] / (weights.sum() if layer.chosen > 1 else 1)
            own: dict[str, Tensor] = {}
            for name in ("gate", "expand", "output"):
                part = getattr(layer, name)
                if part is not None:
                    own[name] = part.weight.chunk(layer.experts)[e]
            bias = {
                name: getattr(layer, name).bias[e] if layer.expand.bias is not None else 0 for name in own
            }
            inner = own["expand"] @ token + bias["expand"]
            if "gate" in own:
                inner = torch.nn.functional.silu(own["gate"] @ token + bias["gate"]) * inner
            else:
                inner = torch.relu(inner) ** 2
            out[i] += gate * (own["output"] @ inner + bias["output"])
    return out, dropped


@pytest.mark.parametrize("bias", list(Bias))
@pytest.mark.parametrize("kind", [FeedForward.swiglu, FeedForward.relu_squared])
@pytest.mark.parametrize(("chosen", "factor"), [(1, 1.0), (1, 0.4), (2, 1.25), (2, 0.5), (4, 9.0)])
def test_batched_experts_equal_a_loop_over_tokens(
    chosen: int, factor: float, kind: FeedForward, bias: Bias
) -> None:
    layer = mixture(experts_per_token=chosen, capacity_factor=factor, feed_forward=kind, bias=bias).train()
    stream = torch.randn(3, 7, 16, dtype=torch.float64, requires_grad=True)
    capacity = math.ceil(factor * chosen * 21 / 4)
    expected, dropped = naive(layer, stream.flatten(0, 1), capacity)
    mixed = layer(stream)
    torch.testing.assert_close(mixed.flatten(0, 1), expected, rtol=0, atol=1e-10)
    gradients = [
        torch.autograd.grad(out.square().sum(), [stream, *layer.parameters()]) for out in (mixed, expected)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert layer.dropped == dropped
    assert dropped > 0 if factor < 1 else dropped < 10
    unlimited, none = naive(layer, stream.flatten(0, 1), math.inf)
    torch.testing.assert_close(layer.eval()(stream).flatten(0, 1), unlimited, rtol=0, atol=1e-10)
    assert none == 0


def test_first_choices_are_routed_before_second_choices() -> None:
    experts = torch.tensor([[0, 1], [0, 1], [1, 0]])
    load = torch.bincount(experts.flatten(), minlength=2)
    assert queue_positions(experts, load).tolist() == [[0, 1], [1, 2], [0, 2]]


def test_losses_by_hand() -> None:
    """Two experts, four tokens."""
    logits = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [3.0, 1.0]])
    p = torch.softmax(logits, dim=-1)
    mean = (p[0, 0] + p[1, 0] + p[2, 0] + p[3, 0]) / 4
    expected = 2 * (0.75 * mean + 0.25 * (1 - mean))
    assert balance_loss(p, torch.tensor([0, 0, 1, 0])).item() == pytest.approx(expected.item(), rel=1e-6)
    even = torch.full((4, 2), 0.5)
    assert balance_loss(even, torch.tensor([0, 1, 0, 1])).item() == 1
    sums = [math.log(math.exp(a) + math.exp(b)) for a, b in logits.tolist()]
    assert router_z_loss(logits).item() == pytest.approx(sum(s * s for s in sums) / 4, rel=1e-6)


def test_auxiliary_losses_are_minimized_and_logged() -> None:
    """The gradient is that of the total loss; the logged loss is the language-modeling loss alone."""
    torch.manual_seed(0)
    model = Transformer(tiny_model(n_experts=4, capacity_factor=0.5)).train()
    ids = torch.randint(37, (6, 13))
    batch = Batch(ids[:, :-1], ids[:, 1:].clone())
    settings = tiny_config(
        "unused",
        model={"n_experts": 4},
        training={"balance_loss": 0.3, "router_z_loss": 0.2},
        precision={"dtype": "float32"},
    )
    objective = with_router_losses(LanguageModeling(), settings)
    logged = accumulate_gradients(model, objective, batch, settings, step=0)
    assert 0 < logged["dropped_share"] < 1 and 0 < logged["load_entropy"] <= 1
    assert expert_load(model)["dropped_share"] == (0, 0), "it was taken"
    ours = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    alone = LanguageModeling()(model, batch).total / ids[:, 1:].numel()
    (alone + router_losses(model, 0.3, 0.2)).backward()
    assert logged["nats_per_token"] == pytest.approx(alone.item(), rel=1e-6)
    for gradient, parameter in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)
    assert any(name.endswith("router.weight") for name, p in model.named_parameters() if p.grad is not None)
