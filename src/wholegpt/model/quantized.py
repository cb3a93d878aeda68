"""Weights quantized and packed for inference, in 16, 8 or 4 bits.

Shapes: I inputs, O outputs, N rows, C weights that share a scale.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from wholegpt.errors import ConfigError
from wholegpt.model.base import TokenModel
from wholegpt.model.layers.linear import Linear
from wholegpt.model.transformer import Transformer
from wholegpt.settings.choices import WeightFormat

M = TypeVar("M", bound=TokenModel)
GROUP = 32
"""C of the 4-bit format."""
INT4_OUTPUTS = 64
"""PyTorch's kernel requires the number of outputs to be a multiple of this."""
INT8_ROWS = 48
"""From this many rows, a product in bfloat16 is faster than PyTorch's 8-bit kernel, unpacking included."""
SMALLEST_SCALE = 1e-30


def supports_packing(model: TokenModel) -> bool:
    """Return whether the weights of ``model`` can be packed."""
    return isinstance(model, Transformer)


def has_bfloat16_kernel() -> bool:
    """Return whether oneDNN multiplies bfloat16 matrices on this processor: on x86, it needs AVX-512."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def quantize_weights(model: M, weights: WeightFormat, dtype: torch.dtype = torch.bfloat16) -> M:
    """Quantize and pack the linear layers of ``model`` in place, and convert all else to ``dtype``.

    Activations, KV cache and logits then have ``dtype``, and the model cannot be trained. Raises
    ``ConfigError`` if the device, the processor or the layer sizes do not support the format of ``weights``.
    """
    if weights is WeightFormat.float32:
        return model
    if not supports_packing(model):
        raise ConfigError(
            f"weights are {weights}, which transformers support; this is {model.config.architecture}"
        )
    on_cpu = model.device.type == "cpu"
    if not on_cpu and weights is not WeightFormat.bfloat16:
        raise ConfigError(
            f"weights are {weights} on {model.device}; 8 and 4 bits are for the CPU only; try bfloat16"
        )
    if on_cpu and weights is WeightFormat.bfloat16 and not has_bfloat16_kernel():
        raise ConfigError("weights are bfloat16, for which this processor has no kernel; try int8")
    if model.config.n_experts and weights is not WeightFormat.bfloat16:
        raise ConfigError(
            f"weights are {weights}, which has no kernel for a mixture of experts; try bfloat16"
        )
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Linear) and on_cpu:
                setattr(parent, name, PACKED_LAYERS[weights](child))
    for parameter in model.parameters():
        parameter.requires_grad_(False).data = parameter.data.to(dtype)
    return model.eval()


class PackedLayer(nn.Module):
    """A layer whose weight is packed for a kernel; it can be neither saved nor loaded."""

    weights: WeightFormat

    def _refuse(self) -> None:
        raise ConfigError(
            f"the weights are packed as {self.weights} and cannot be saved or loaded; load the model with "
            "weights=float32 to do so"
        )

    def _save_to_state_dict(self, *arguments: Any, **named: Any) -> None:
        """Raise ``ConfigError``: packed weights are no parameters and would silently be left out."""
        self._refuse()

    def _load_from_state_dict(self, *arguments: Any, **named: Any) -> None:
        self._refuse()


class PackedLinear(PackedLayer):
    """x·Wᵀ + b in bfloat16, with the weight in oneDNN's packed format."""

    weights = WeightFormat.bfloat16

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().to(torch.bfloat16).contiguous()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
        self.bias = _bias(linear)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """Return the layer's output for each row."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class Int8Linear(PackedLayer):
    """x·(s ⊙ Q)ᵀ + b with q = round(w/s) in −127…127 and s = max|w|/127 for each output (E13, symmetric)."""

    weights = WeightFormat.int8

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.weight, self.scale = quantize_int8(linear.weight.detach().float())
        self.bias = _bias(linear)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """Return the layer's output for each row."""
        rows = x.reshape(-1, x.shape[-1])
        halved = rows.to(torch.bfloat16)  # PyTorch's kernel is 15 times slower for 32-bit inputs
        if len(rows) < INT8_ROWS:
            product = torch.ops.aten._weight_int8pack_mm(halved, self.weight, self.scale)
        else:  # the same values, so that a text does not depend on the number of rows per call
            product = halved.to(x.dtype) @ self.weight.to(x.dtype).t() * self.scale
        product = product.to(torch.bfloat16).to(x.dtype)
        return _with_bias(product, self.bias).view(*x.shape[:-1], -1)


class Int4Linear(PackedLayer):
    """x·Ŵᵀ + b with ŵ = s·(q − 8) + z, q in 0…15, for each group of C inputs of an output (E13, asymmetric)."""

    weights = WeightFormat.int4

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.outputs, inputs = linear.weight.shape
        if inputs % GROUP:
            raise ConfigError(
                f"weights are int4, whose groups of {GROUP} do not divide the {inputs} inputs of a layer"
            )
        weight = linear.weight.detach().float()
        weight = nn.functional.pad(weight, (0, 0, 0, -self.outputs % INT4_OUTPUTS))
        levels, scale, middle = quantize_int4(weight.view(len(weight), -1, GROUP))
        self.weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels.view_as(weight), 1)
        self.scales = torch.stack([scale, middle], dim=-1).transpose(0, 1).contiguous()
        self.bias = _bias(linear)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """Return the layer's output for each row."""
        rows = x.reshape(-1, x.shape[-1])
        halved = rows.to(torch.bfloat16)
        product = torch.ops.aten._weight_int4pack_mm_for_cpu(halved, self.weight, GROUP, self.scales)
        return _with_bias(product[:, : self.outputs].to(x.dtype), self.bias).reshape(*x.shape[:-1], -1)


def quantize_int8(weight: Float[Tensor, "O I"]) -> tuple[Int[Tensor, "O I"], Float[Tensor, " O"]]:
    """Compute q = round(w/s) and s. s is rounded to bfloat16 first, as the product uses it, so that q
    compensates.
    """
    scale = (weight.abs().amax(dim=1) / 127).clamp_min(SMALLEST_SCALE).to(torch.bfloat16)
    levels = (weight / scale.float()[:, None]).round().clamp(-127, 127)
    return levels.to(torch.int8), scale


def quantize_int4(
    groups: Float[Tensor, "O G C"],
) -> tuple[Int[Tensor, "O G C"], Float[Tensor, "O G"], Float[Tensor, "O G"]]:
    """Compute q = round((w − z)/s) + 8, s = (max − min)/15 and z = min + 8·s; s and z are in bfloat16."""
    least, most = groups.aminmax(dim=-1)
    scale = ((most - least) / 15).clamp_min(SMALLEST_SCALE).to(torch.bfloat16)
    middle = (least + 8 * scale.float()).to(torch.bfloat16)
    levels = ((groups - middle.float()[..., None]) / scale.float()[..., None]).round() + 8
    return levels.clamp(0, 15).to(torch.int32), scale, middle


PACKED_LAYERS: dict[WeightFormat, Callable[[Linear], nn.Module]] = {
    WeightFormat.bfloat16: PackedLinear,
    WeightFormat.int8: Int8Linear,
    WeightFormat.int4: Int4Linear,
}


def _bias(linear: Linear) -> Tensor | None:
    return None if linear.bias is None else linear.bias.detach().to(torch.bfloat16)


def _with_bias(rows: Float[Tensor, "N O"], bias: Tensor | None) -> Float[Tensor, "N O"]:
    return rows if bias is None else rows + bias
