"""Weights in 16, 8 and 4 bits: the arithmetic by hand, the kernels against it, and error bounds of whole models."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers import NEEDS_BFLOAT16, generate_one, shrink, tiny_model, tiny_models
from wholegpt.errors import ConfigError
from wholegpt.model import Transformer, quantize_weights
from wholegpt.model.layers.linear import Linear
from wholegpt.model.quantized import GROUP, INT8_ROWS, PACKED_LAYERS, quantize_int4, quantize_int8
from wholegpt.settings import presets
from wholegpt.settings.choices import WeightFormat
from wholegpt.settings.schema import GenerationConfig, ModelConfig
from wholegpt.tokenizers import byte_tokenizer

LAID_OUT = [pytest.param(WeightFormat.bfloat16, marks=NEEDS_BFLOAT16), WeightFormat.int8, WeightFormat.int4]
BFLOAT16_STEP = 2**-8


def models() -> dict[str, ModelConfig]:
    """Return one model of each kind, wide enough for groups of 4-bit weights."""
    return {
        name: shrink(config, vocab_size=257, context_length=64, d_model=64, n_heads=4, d_ff=0)
        for name, config in tiny_models().items()
    }


def dequantized(linear: Linear, weights: WeightFormat) -> Tensor:
    """Return the weights that the format represents."""
    weight = linear.weight.detach().float()
    if weights is WeightFormat.int8:
        levels, scale = quantize_int8(weight)
        return levels * scale.float()[:, None]
    if weights is WeightFormat.int4:
        levels, scale, middle = quantize_int4(weight.view(len(weight), -1, GROUP))
        values = (levels - 8) * scale.float()[..., None] + middle.float()[..., None]
        return values.view_as(weight)
    return weight.to(torch.bfloat16).float()


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**31), st.floats(1e-6, 1e4))
def test_quantisation_is_off_by_half_a_step_at_most(
    outputs: int, groups: int, seed: int, size: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    linear = Linear(groups * GROUP, outputs, bias=False)
    linear.weight.data = torch.randn(outputs, groups * GROUP, generator=generator) * size
    weight = linear.weight.detach()
    step8 = weight.abs().amax(dim=1, keepdim=True) / 127
    # A scale with 8 bits of precision may be too small by 1/256 of the range at both ends.
    bound = step8 / 2 + weight.abs() * BFLOAT16_STEP
    assert ((dequantized(linear, WeightFormat.int8) - weight).abs() <= bound * 1.01).all()
    grouped = weight.view(outputs, groups, GROUP)
    extent = grouped.amax(-1, keepdim=True) - grouped.amin(-1, keepdim=True)
    most = grouped.abs().amax(-1, keepdim=True)
    difference = (dequantized(linear, WeightFormat.int4).view_as(grouped) - grouped).abs()
    assert (difference <= (extent / 30 + (extent + most) * BFLOAT16_STEP) * 1.01).all()


@pytest.mark.parametrize("weights", LAID_OUT)
@pytest.mark.parametrize("rows", [1, 3, INT8_ROWS - 1, INT8_ROWS, 100])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 96), (32, 257), (256, 64)])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_layers_compute_with_the_dequantized_weights(
    weights: WeightFormat, rows: int, inputs: int, outputs: int, bias: bool
) -> None:
    """Against the sum in float64; the kernels round the accumulated float32 sums and the result to bfloat16."""
    torch.manual_seed(rows)
    linear = Linear(inputs, outputs, bias=bias)
    x = torch.randn(2, rows, inputs).to(torch.bfloat16)
    with torch.inference_mode():
        given = PACKED_LAYERS[weights](linear)(x)
    expected = x.double() @ dequantized(linear, weights).double().t()
    if linear.bias is not None:
        expected += linear.bias.detach().to(torch.bfloat16)
    assert given.shape == (2, rows, outputs) and given.dtype is torch.bfloat16
    scale = expected.abs().max()
    assert (given.double() - expected).abs().max() <= 2 * BFLOAT16_STEP * scale


@pytest.mark.parametrize("kind", models())
@pytest.mark.parametrize(
    ("weights", "dtype", "bound"),
    [
        pytest.param("bfloat16", torch.bfloat16, 0.1, marks=NEEDS_BFLOAT16),
        ("int8", torch.bfloat16, 0.2),
        ("int8", torch.float32, 0.2),
        ("int4", torch.bfloat16, 1.5),
        ("int4", torch.float32, 1.5),
    ],
)
def test_quantization_error_of_the_logits_is_bounded(
    kind: str, weights: str, dtype: torch.dtype, bound: float
) -> None:
    """In units of the logits' standard deviation; also through the cache, in chunks and token by token."""
    torch.manual_seed(0)
    model = Transformer(models()[kind]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    token_ids = torch.randint(257, (2, 40))
    with torch.inference_mode():
        exact = model(token_ids)
        quantized = quantize_weights(copy.deepcopy(model), WeightFormat(weights), dtype)
        cache = quantized.new_cache(2)
        pieces = [quantized(piece, cache) for piece in token_ids.split([17, 1, 1, 21], dim=1)]
    for logits in (quantized(token_ids), torch.cat(pieces, dim=1)):
        difference = (logits.float() - exact).abs().max() / exact.std()
        print(f"{kind}, {weights} and {dtype}: largest logit difference {difference:.3f} standard deviations")
        assert 0 < difference <= bound


@pytest.mark.parametrize("weights", [WeightFormat.int8, WeightFormat.int4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rows_do_not_depend_on_the_number_of_rows(weights: WeightFormat, dtype: torch.dtype) -> None:
    """Kernels for few and many rows agree to the last bit, or two bits if rounded before scaling."""
    torch.manual_seed(0)
    layer = PACKED_LAYERS[weights](Linear(256, 96, bias=False))
    rows = torch.randn(100, 256).to(dtype)
    with torch.inference_mode():
        whole, pieces = layer(rows), torch.cat([layer(piece) for piece in rows.split(40)])
    last_bit = 2 * BFLOAT16_STEP * whole.abs()
    assert ((whole - pieces).abs() <= (1 if dtype is torch.float32 else 2) * last_bit).all()


@pytest.mark.parametrize("kind", models())
@pytest.mark.parametrize("weights", LAID_OUT)
def test_quantized_models_generate(kind: str, weights: WeightFormat) -> None:
    """Also beyond the context length."""
    torch.manual_seed(0)
    model = quantize_weights(Transformer(models()[kind]), weights)
    completion = generate_one(model, byte_tokenizer(), "abc", GenerationConfig(max_tokens=80, min_tokens=80))
    assert len(completion.token_ids) == 80


def test_int4_needs_inputs_divisible_by_the_group_size() -> None:
    with pytest.raises(ConfigError, match="groups of 32 do not divide the 16 inputs of a layer"):
        quantize_weights(Transformer(tiny_models()["modern"]), WeightFormat.int4)


def test_experts_cannot_be_quantized() -> None:
    """Below 16 bits only the router would be packed, and it would choose other experts."""
    mixture = tiny_model(d_model=64, d_ff=64, n_experts=4)
    for weights in (WeightFormat.int8, WeightFormat.int4):
        with pytest.raises(
            ConfigError, match=f"weights are {weights}, which has no kernel for a mixture of experts"
        ):
            quantize_weights(Transformer(mixture), weights)


@NEEDS_BFLOAT16
def test_experts_in_bfloat16() -> None:
    quantize_weights(Transformer(tiny_model(d_model=64, d_ff=64, n_experts=4)), WeightFormat.bfloat16)


def test_processor_without_a_bfloat16_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wholegpt.model.quantized.has_bfloat16_kernel", lambda: False)
    model = Transformer(models()["modern"])
    with pytest.raises(ConfigError, match="weights are bfloat16, for which this processor has no kernel"):
        quantize_weights(model, WeightFormat.bfloat16)
    quantize_weights(model, WeightFormat.int8)


@pytest.mark.parametrize(("weights", "expected"), [("int8", 1), ("int4", 0.5 + 4 / GROUP)])
def test_memory_is_that_of_the_format(weights: str, expected: float) -> None:
    """Bytes per weight, including scales; oneDNN does not report the size of packed bfloat16."""
    config = presets.preset("gpt2-small")
    config = shrink(config, vocab_size=64, d_model=128, n_heads=4, d_ff=512)
    model = quantize_weights(Transformer(config), WeightFormat(weights))
    layer = model.blocks[0].feed_forward.expand
    quantized = [
        tensor for name, tensor in vars(layer).items() if isinstance(tensor, Tensor) and name != "bias"
    ]
    total = sum(tensor.numel() * tensor.element_size() for tensor in quantized)
    assert total == pytest.approx(expected * 128 * 512, rel=0.02)
