"""Evaluate a model on a text or a file of examples, and compare two models."""

from wholegpt.evaluation.comparison import Difference, compare_tasks, compare_texts
from wholegpt.evaluation.detokenization import Published, plain_text
from wholegpt.evaluation.likelihood import Likelihood, Request, score_continuations
from wholegpt.evaluation.perplexity import TextScore, evaluate_tokens, score_tokens
from wholegpt.evaluation.pseudo_perplexity import PseudoPerplexity, pseudo_perplexity
from wholegpt.evaluation.task import (
    GREEDY_LINE,
    Examples,
    TaskScore,
    evaluate_task,
    is_task_file,
    read_examples,
)
from wholegpt.evaluation.text import TextEvaluation, evaluate_text

__all__ = [
    "GREEDY_LINE",
    "Difference",
    "Examples",
    "Likelihood",
    "PseudoPerplexity",
    "Published",
    "Request",
    "TaskScore",
    "TextEvaluation",
    "TextScore",
    "compare_tasks",
    "compare_texts",
    "evaluate_task",
    "evaluate_text",
    "evaluate_tokens",
    "is_task_file",
    "plain_text",
    "pseudo_perplexity",
    "read_examples",
    "score_continuations",
    "score_tokens",
]
