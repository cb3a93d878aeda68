"""Models that map token ids to logits, and the parts they are built from."""

from wholegpt.model.accounting import (
    flops_per_token,
    parameter_count,
    saved_activations,
    training_memory_bytes,
)
from wholegpt.model.base import NeuralModel, TokenModel
from wholegpt.model.compiled import CompiledTransformer
from wholegpt.model.encoder import Encoder
from wholegpt.model.encoder_decoder import EncoderDecoder
from wholegpt.model.heads import TaskModel
from wholegpt.model.layers.cache import KeyValueCache
from wholegpt.model.layers.mixture_of_experts import expert_load, router_losses
from wholegpt.model.quantized import quantize_weights, supports_packing
from wholegpt.model.transformer import Transformer

__all__ = [
    "CompiledTransformer",
    "Encoder",
    "EncoderDecoder",
    "KeyValueCache",
    "NeuralModel",
    "TaskModel",
    "TokenModel",
    "Transformer",
    "expert_load",
    "flops_per_token",
    "parameter_count",
    "quantize_weights",
    "router_losses",
    "saved_activations",
    "supports_packing",
    "training_memory_bytes",
]
