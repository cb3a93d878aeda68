"""Rewards of completions: rules, classifiers, reward models and functions of the user, and their weighted sum."""
