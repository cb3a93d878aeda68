"""Labeled examples: tables to sequences of tokens, and sequences to batches."""
