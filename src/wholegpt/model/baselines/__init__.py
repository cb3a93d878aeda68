"""What came before GPT, behind the same protocol: uniform, n-grams, recurrent networks."""

from wholegpt.model.baselines.ngram import NGram
from wholegpt.model.baselines.recurrent import RecurrentNetwork

__all__ = ["NGram", "RecurrentNetwork"]
