"""Baselines with the interface of a GPT: uniform, n-gram and recurrent models."""

from wholegpt.model.baselines.ngram import NGram
from wholegpt.model.baselines.recurrent import RecurrentNetwork

__all__ = ["NGram", "RecurrentNetwork"]
