"""Text from a model: functions over any causal language model, none of its methods."""

from wholegpt.generation.decoding import Completion, generate, generate_ids
from wholegpt.generation.sampling import Sampler

__all__ = ["Completion", "Sampler", "generate", "generate_ids"]
