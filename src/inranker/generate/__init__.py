"""Queries that a language model writes for documents."""
