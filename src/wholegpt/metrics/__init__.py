"""Metrics: pure functions of predictions."""

from wholegpt.metrics.information import bits_per_unit, nats_to_bits, perplexity, uniform_nats

__all__ = ["bits_per_unit", "nats_to_bits", "perplexity", "uniform_nats"]
