"""Conversations: messages, templates, and rows of tokens."""
