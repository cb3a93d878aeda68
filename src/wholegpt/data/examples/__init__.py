"""Labeled examples: tables to token sequences, and sequences to batches."""
