"""Analysis of runs and models."""
