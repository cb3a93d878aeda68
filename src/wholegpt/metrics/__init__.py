"""Metrics: pure functions of predictions."""

from wholegpt.metrics.classification import (
    confusion_matrix,
    f1,
    f1_macro,
    matthews_correlation,
    pearson_correlation,
    spearman_correlation,
)
from wholegpt.metrics.information import bits_per_unit, nats_to_bits, perplexity, uniform_nats
from wholegpt.metrics.intervals import Estimate, bootstrap, bootstrap_counts, bootstrap_ratio, paired_p_value
from wholegpt.metrics.overlap import ROUGE, bleu, bleu_counts, rouge

__all__ = [
    "ROUGE",
    "Estimate",
    "bits_per_unit",
    "bleu",
    "bleu_counts",
    "bootstrap",
    "bootstrap_counts",
    "bootstrap_ratio",
    "confusion_matrix",
    "f1",
    "f1_macro",
    "matthews_correlation",
    "nats_to_bits",
    "paired_p_value",
    "pearson_correlation",
    "perplexity",
    "rouge",
    "spearman_correlation",
    "uniform_nats",
]
