"""Token ids in, logits out: one transformer, put together from parts."""

from wholegpt.model.accounting import (
    flops_per_token,
    parameter_count,
    saved_activations,
    training_memory_bytes,
)
from wholegpt.model.cache import KeyValueCache
from wholegpt.model.layout import lay_out
from wholegpt.model.transformer import Transformer

__all__ = [
    "KeyValueCache",
    "Transformer",
    "flops_per_token",
    "lay_out",
    "parameter_count",
    "saved_activations",
    "training_memory_bytes",
]
