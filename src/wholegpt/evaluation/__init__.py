"""A model against a text."""

from wholegpt.evaluation.perplexity import TextScore, evaluate_tokens, score_tokens

__all__ = ["TextScore", "evaluate_tokens", "score_tokens"]
