"""Runs, from settings to a report: their folder, their creation, their training, and what is opened of them."""
