"""Text from a model: functions over any causal language model, none of its methods."""

from wholegpt.generation.decoding import Completion, generate, generate_ids

__all__ = ["Completion", "generate", "generate_ids"]
