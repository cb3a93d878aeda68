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
from wholegpt.metrics.proportions import clustered_proportion, mcnemar_p_value, paired_difference, proportion

__all__ = [
    "ROUGE",
    "Estimate",
    "bits_per_unit",
    "bleu",
    "bleu_counts",
    "bootstrap",
    "bootstrap_counts",
    "bootstrap_ratio",
    "clustered_proportion",
    "confusion_matrix",
    "f1",
    "f1_macro",
    "matthews_correlation",
    "mcnemar_p_value",
    "nats_to_bits",
    "paired_difference",
    "paired_p_value",
    "pearson_correlation",
    "perplexity",
    "proportion",
    "rouge",
    "spearman_correlation",
    "uniform_nats",
]
