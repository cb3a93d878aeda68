"""The transformer: parameter counts, FLOPs, memory, initialization, attention and gradients."""

import dataclasses
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.helpers import tiny_model, tiny_models, tiny_variants
from wholegpt.errors import ConfigError
from wholegpt.losses import negative_log_likelihood
from wholegpt.metrics import uniform_nats
from wholegpt.model import Transformer, flops_per_token, parameter_count, training_memory_bytes
from wholegpt.model.layers.attention import attention, fused_attention
from wholegpt.model.layers.linear_attention import CHUNK, linear_attention, linear_attention_step
from wholegpt.settings.choices import (
    ActivationCheckpointing,
    Attention,
    AttentionKernel,
    Bias,
    Embeddings,
    FeedForward,
    Norm,
    Positions,
    QueryKeyNorm,
)
from wholegpt.settings.presets import PRESETS, preset
from wholegpt.settings.schema import ModelConfig
from wholegpt.settings.validation import WINDOWED

PUBLISHED = {
    "gpt1": 116_534_784,
    "gpt2-small": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}

SHAPES = [
    *tiny_models().values(),
    *tiny_variants().values(),
    tiny_model(attention=Attention.sliding_window, attention_window=16, context_length=64),
    tiny_model(attention=Attention.linear, positions=Positions.learned, context_length=128, n_kv_heads=1),
    tiny_model(bias=Bias.all, norm=Norm.layer_norm, query_key_norm=QueryKeyNorm.none),
    tiny_model(feed_forward=FeedForward.gelu, embeddings=Embeddings.untied, d_head=6, n_kv_heads=1),
]


def built(config: ModelConfig) -> Transformer:
    with torch.device("meta"):
        return Transformer(config)


@pytest.mark.parametrize("name", PRESETS)
def test_predicted_parameters_equal_the_built_models(name: str) -> None:
    config = dataclasses.replace(preset(name), vocab_size=preset(name).vocab_size or 5000)
    count = parameter_count(config)
    model = built(config)
    assert count.total == sum(p.numel() for p in model.parameters())
    assert count.blocks == sum(p.numel() for n, p in model.named_parameters() if "embedding" not in n)
    if name in PUBLISHED:
        assert count.total == PUBLISHED[name]


@pytest.mark.parametrize("config", SHAPES)
def test_predicted_parameters_of_every_shape(config: ModelConfig) -> None:
    assert parameter_count(config).total == sum(p.numel() for p in built(config).parameters())


WHOLE_BLOCKS = [
    config
    for config in SHAPES
    if config.context_length % (config.attention_window or 1) == 0
    and (config.attention is not Attention.linear or config.context_length % CHUNK == 0)
]
"""Of the others the last block or chunk is filled up."""


@pytest.mark.parametrize("config", WHOLE_BLOCKS)
def test_predicted_flops_equal_the_counted_ones(config: ModelConfig) -> None:
    kernel = AttentionKernel.fused if config.attention in WINDOWED else AttentionKernel.plain
    if config.n_experts:
        config = dataclasses.replace(config, capacity_factor=1.0)  # no expert slot stays empty
    model = Transformer(config, kernel).double().train()  # oneDNN's float32 products are not counted
    token_ids = torch.zeros(3, config.context_length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(token_ids).sum().backward()
    assert counter.get_total_flops() == 3 * flops_per_token(config) * token_ids.numel()


def test_predicted_memory_equals_what_training_holds() -> None:
    model = Transformer(tiny_model())
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 3, dtype=torch.long)).sum().backward()
    optimizer.step()
    held = list(model.parameters()) + [p.grad for p in model.parameters() if p.grad is not None]
    held += [t for state in optimizer.state.values() for name, t in state.items() if name != "step"]
    assert training_memory_bytes(tiny_model()) == sum(t.numel() * t.element_size() for t in held)


def test_initialization() -> None:
    """Standard deviation 0.02, or 0.02/√(2L) for output projections; biases 0, norms the identity."""
    model = Transformer(dataclasses.replace(preset("gpt2-small"), n_layers=3, vocab_size=2000))
    expected_scaled = 0.02 / math.sqrt(6)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            assert (parameter == 1).all()
        elif name.endswith("bias"):
            assert (parameter == 0).all()
        else:
            expected = expected_scaled if ".output." in name else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.02), name
            assert abs(parameter.mean().item()) < 3 * expected / math.sqrt(parameter.numel()), name


@pytest.mark.parametrize("name", ["gpt2", "modern"])
def test_an_untrained_model_knows_nothing(name: str) -> None:
    """Its loss is near ln V, that of a uniform distribution."""
    torch.manual_seed(0)
    config = dataclasses.replace(tiny_models()[name], vocab_size=1000)
    model = Transformer(config).eval()
    ids = torch.randint(1000, (8, 13))
    with torch.no_grad():
        nats = negative_log_likelihood(model(ids[:, :-1]), ids[:, 1:]).mean().item()
    assert nats == pytest.approx(uniform_nats(1000), abs=0.05)


@pytest.mark.parametrize("name", ["gpt1", "gpt2", "modern"])
def test_gradients_against_finite_differences(name: str) -> None:
    config = dataclasses.replace(
        tiny_models()[name], vocab_size=7, d_model=8, d_ff=12, n_heads=2, n_kv_heads=0, n_layers=1
    )
    torch.manual_seed(0)
    model = Transformer(config).double()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.3 * torch.randn_like(parameter))
    ids = torch.randint(7, (2, 5))

    def loss(*values: torch.Tensor) -> torch.Tensor:
        replaced = dict(zip(parameters, values, strict=True))
        logits = torch.func.functional_call(model, replaced, (ids[:, :-1],))
        return negative_log_likelihood(logits, ids[:, 1:]).sum()

    assert torch.autograd.gradcheck(loss, tuple(parameters.values()), eps=1e-6, atol=1e-7, rtol=1e-5)


def test_fused_attention_equals_the_plain_one() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 9, 8, dtype=torch.float64).unbind(0)
    visible = torch.ones(9, 9, dtype=torch.bool).tril()
    for queries, seen in ((q, visible), (q[:, :, 5:], visible[5:]), (q[:, :, 8:], visible[8:]), (q, None)):
        torch.testing.assert_close(
            fused_attention(queries, k, v, seen), attention(queries, k, v, seen), rtol=0, atol=1e-12
        )


def test_scaling_keeps_the_variance_of_the_scores_near_one() -> None:
    """For unit-variance queries and keys of any head width; without scaling, the variance would be the width."""
    torch.manual_seed(0)
    for width in (16, 64, 256):
        q, k = torch.randn(2, 1, 1, width, width, dtype=torch.float64).unbind(0)
        # With the identity as values, the output is the weights, whose logarithms are the scores,
        # each row shifted by a constant.
        scores = attention(q, k, torch.eye(width, dtype=torch.float64)[None, None]).log()
        assert scores.var(dim=-1).mean().item() == pytest.approx(1, rel=0.15)
        assert (q @ k.mT).var(dim=-1).mean().item() == pytest.approx(width, rel=0.15)


def test_attention_dropout_zeroes_and_rescales_weights() -> None:
    torch.manual_seed(0)
    q = torch.zeros(1, 1, 200, 4)
    values = torch.ones(1, 1, 200, 4)
    mixed = attention(q, q, values, None, dropout=0.25)
    assert mixed.mean().item() == pytest.approx(1, abs=0.02)
    assert mixed.std().item() > 0.01


def test_dropout_is_active_only_in_training() -> None:
    model = Transformer(tiny_model(dropout=0.5))
    ids = torch.zeros(1, 5, dtype=torch.long)
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


def test_activation_checkpointing_does_not_change_gradients() -> None:
    gradients: list[list[torch.Tensor]] = []
    for activation_checkpointing in ActivationCheckpointing:
        torch.manual_seed(3)
        model = Transformer(
            tiny_model(dropout=0.2), activation_checkpointing=activation_checkpointing
        ).train()
        torch.manual_seed(4)
        model(torch.ones(2, 6, dtype=torch.long)).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_tokens_beyond_the_context_are_an_error() -> None:
    with pytest.raises(ConfigError, match=r"13 tokens do not fit model\.context_length = 12"):
        Transformer(tiny_models()["gpt2"])(torch.zeros(1, 13, dtype=torch.long))


def test_rotary_positions_continue_beyond_the_context() -> None:
    """Each token sees the τ tokens before it: in one layer, earlier tokens have no effect."""
    model = Transformer(tiny_model(n_layers=1)).double().eval()
    ids = torch.randint(37, (1, 30), generator=torch.Generator().manual_seed(1))
    changed = ids.clone()
    changed[0, 5] = (ids[0, 5] + 1) % 37
    with torch.no_grad():
        difference = (model(ids) - model(changed)).abs().amax(dim=-1)[0]
    assert (difference > 0).nonzero().flatten().tolist() == list(range(5, 17))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_chunked_linear_attention_equals_its_recurrent_form(dtype: torch.dtype, tolerance: float) -> None:
    """Over several chunks, in two pieces, continued from a previous state (Katharopoulos et al.

    2020, section 3.4).
    """
    torch.manual_seed(0)
    queries, keys, values = (torch.randn(2, 3, 3 * CHUNK + 8, 5, dtype=dtype) for _ in range(3))
    state = torch.rand(2, 3, 5, 6, dtype=dtype)
    cut = [CHUNK + 7, queries.shape[2] - CHUNK - 7]
    (q1, q2), (k1, k2), (v1, v2) = (x.split(cut, dim=2) for x in (queries, keys, values))
    first, between = linear_attention(q1, k1, v1, state)
    second, last = linear_attention(q2, k2, v2, between)
    steps: list[torch.Tensor] = []
    for position in range(queries.shape[2]):
        q, k, v = queries[:, :, position], keys[:, :, position], values[:, :, position]
        mixed, state = linear_attention_step(q, k, v, state)
        steps.append(mixed)
    by_chunks, by_steps = torch.cat([first, second], dim=2), torch.stack(steps, dim=2)
    torch.testing.assert_close(by_chunks, by_steps, rtol=0, atol=tolerance)
    torch.testing.assert_close(last, state, rtol=tolerance, atol=10 * tolerance)


def test_prefill_chunk_is_limited_by_the_window() -> None:
    """A cache as long as the window accepts whole prompts until an entry would be overwritten."""
    config = tiny_model(attention=Attention.sliding_window, attention_window=8, context_length=64)
    cache = Transformer(config).new_cache(1, 8)
    assert cache.most_at_once == 8
    cache.advance(5)
    assert cache.most_at_once == 3
    cache.advance(5)
    assert cache.most_at_once == 1
