"""What came before GPT, behind the same protocol: uniform, n-grams, recurrent networks."""

from wholegpt.baselines.ngram import NGram
from wholegpt.baselines.recurrent import RecurrentNetwork

__all__ = ["NGram", "RecurrentNetwork"]
