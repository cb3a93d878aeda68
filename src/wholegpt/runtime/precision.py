"""The dtype of the large matrix products, of weights, and of sums."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from wholegpt.errors import NumericsError
from wholegpt.settings.choices import AttentionKernel, Dtype, Execution, WeightFormat
from wholegpt.settings.schema import PrecisionConfig


def decide_precision(precision: PrecisionConfig, device: torch.device) -> PrecisionConfig:
    """Return ``precision`` with automatic values resolved. Raises ``NumericsError`` for unsupported bfloat16."""
    dtype, attention = precision.dtype, precision.attention
    if dtype is Dtype.automatic:
        dtype = Dtype.bfloat16 if has_bfloat16(device) else Dtype.float32
    if dtype is Dtype.bfloat16 and not has_bfloat16(device):
        raise NumericsError(f"precision.dtype is bfloat16, which this machine's {device} lacks; try float32")
    if attention is AttentionKernel.automatic:
        # The compiler makes its own blocks of the plain products.
        on_cpu = AttentionKernel.blocked if precision.execution is Execution.eager else AttentionKernel.plain
        attention = on_cpu if device.type == "cpu" else AttentionKernel.fused
    return dataclasses.replace(precision, dtype=dtype, attention=attention)


def decide_weights(weights: WeightFormat, device: torch.device) -> tuple[WeightFormat, torch.dtype]:
    """Return ``weights`` with automatic resolved, and the dtype of all other tensors: bfloat16 if supported.

    Raises ``NumericsError`` for bfloat16 weights if it does not.
    """
    fast = has_bfloat16(device)
    if weights is WeightFormat.bfloat16 and not fast:
        raise NumericsError(
            f"weights are bfloat16, in which this machine's {device} does not multiply; try int8"
        )
    if weights is WeightFormat.automatic:
        weights = WeightFormat.bfloat16 if fast else WeightFormat.float32
    laid_out = weights is not WeightFormat.float32
    return weights, torch.bfloat16 if fast and laid_out else torch.float32


def has_bfloat16(device: torch.device) -> bool:
    """Return whether ``device`` multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.backends.cpu.get_cpu_capability()
        return capabilities.startswith("AVX512") and _cpu_flag("avx512_bf16", "amx_bf16")
    return False


def _cpu_flag(*names: str) -> bool:
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return False
    flags = next((line for line in information.read_text().splitlines() if line.startswith("flags")), "")
    return any(name in flags.split() for name in names)


@contextlib.contextmanager
def compute_in(dtype: Dtype, device: torch.device) -> Iterator[None]:
    """Run the large products within the block in ``dtype``. Raises ``NumericsError`` for automatic."""
    products = torch_dtype(dtype)
    with torch.autocast(device.type, products, enabled=products is not torch.float32):
        yield


def torch_dtype(dtype: Dtype) -> torch.dtype:
    """Return PyTorch's dtype. Raises ``NumericsError`` for automatic."""
    if dtype is Dtype.automatic:
        raise NumericsError("precision.dtype is automatic; decide it first with runtime.decide")
    return {Dtype.bfloat16: torch.bfloat16, Dtype.float16: torch.float16, Dtype.float32: torch.float32}[dtype]


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` in float32 if its dtype has fewer bits, for sums and comparisons."""
    return x.float() if x.dtype.itemsize < 4 else x


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of the large products on ``x``: that of ``compute_in`` inside its block, else that of ``x``."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
