"""Adapting a model: each way is a batch format and a loss over the one training loop."""
