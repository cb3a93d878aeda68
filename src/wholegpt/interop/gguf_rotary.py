"""Scaled rotary positions in GGUF, as llama.cpp computes them.

The frequency of pair i is θ_i / (s·f_i). The metadata holds s, the factor of linear scaling. The tensor
``rope_freqs.weight`` holds f_i: llama.cpp's converter computes it from the settings of ``llama3`` scaling, and does not
store these.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wholegpt.errors import CheckpointError, ConfigError
from wholegpt.interop.foreign import completed, number_in, shortest, whole_number_in
from wholegpt.model.layers.positions import rotary_frequencies
from wholegpt.settings.choices import RotaryScaling
from wholegpt.settings.schema import ModelConfig

FREQUENCY_FACTORS = "rope_freqs.weight"
ORIGINAL_LENGTH = "rope.scaling.original_context_length"
TOLERANCE = 1e-4
"""Largest relative difference of two computations of a factor, in float32."""


def frequency_factors(config: ModelConfig) -> Tensor:
    """Return f_i, by which ``llama3`` scaling divides the frequency of each of the K/2 pairs, in float32."""
    unscaled = rotary_frequencies(replace(config, rotary_scaling=RotaryScaling.none), torch.float64)
    return (unscaled / rotary_frequencies(config, torch.float64)).float()


def check_recoverable(config: ModelConfig) -> None:
    """Raise ``ConfigError`` if the settings of ``llama3`` scaling do not follow from what GGUF stores."""
    if _with_factors(config, frequency_factors(config), config.rotary_original_context) is None:
        raise ConfigError(
            "model.rotary_scaling is llama3, of which GGUF stores the factor of each frequency, not the settings: only "
            "models with model.rotary_low_freq_factor 1, model.rotary_high_freq_factor 4 and a frequency with less "
            "than one period in the original context can be exported"
        )


def linear_scaling(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the settings of linear scaling in the metadata of a model; empty if it is not scaled.

    As in llama.cpp, a missing type means linear, and a missing factor, or 0, means 1.
    """
    field = "rope.scaling.factor" if "rope.scaling.factor" in content else "rope.scale_linear"
    factor = shortest(number_in(content, field, path, 1.0))
    if content.get("rope.scaling.type", "linear") == "none" or factor in (0, 1):
        return {}
    return {"rotary_scaling": RotaryScaling.linear, "rotary_factor": factor}


def with_llama3_scaling(
    config: ModelConfig, factors: Tensor, content: Mapping[str, Any], path: Path
) -> ModelConfig:
    """Return ``config`` with the ``llama3`` scaling that has these ``factors``.

    The metadata may give the length of the original context; otherwise it is that of all published models, 8,192
    tokens. Raises ``CheckpointError`` for factors of any other scaling.
    """
    default = ModelConfig().rotary_original_context
    length = whole_number_in({ORIGINAL_LENGTH: default, **content}, ORIGINAL_LENGTH, path)
    scaled = None
    if config.rotary_scaling is RotaryScaling.none and factors.shape == (config.d_head // 2,):
        scaled = _with_factors(config, factors, length)
    if scaled is None:
        raise CheckpointError(
            f"{path}: {FREQUENCY_FACTORS} scales the rotary frequencies differently from Llama 3.1, 3.2 and 3.3, "
            "which is not supported"
        )
    return completed(scaled, {}, path)


def _with_factors(config: ModelConfig, factors: Tensor, original_context_length: int) -> ModelConfig | None:
    """Return ``config`` with the ``llama3`` scaling that has these ``factors``, or ``None``.

    The scaling factor is the largest of them. The limits are those of all published models, 1 and 4 periods.
    """
    default = ModelConfig()
    scaled = replace(
        config,
        rotary_scaling=RotaryScaling.llama3,
        rotary_factor=shortest(float(factors.max())),
        rotary_low_freq_factor=default.rotary_low_freq_factor,
        rotary_high_freq_factor=default.rotary_high_freq_factor,
        rotary_original_context=original_context_length,
    )
    same = torch.allclose(factors, frequency_factors(scaled), rtol=TOLERANCE, atol=0)
    return scaled if same else None
