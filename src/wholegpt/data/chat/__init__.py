"""Conversations: messages, chat templates, and packing into rows of tokens."""
