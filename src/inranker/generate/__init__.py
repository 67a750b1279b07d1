"""Queries that a language model writes for documents."""

from inranker.generate import openai, transformers, vllm  # noqa: F401  (back-ends register themselves)
from inranker.generate.filters import filter_queries
from inranker.generate.queries import generate_queries, read_synthetic, write_synthetic

__all__ = ["filter_queries", "generate_queries", "read_synthetic", "write_synthetic"]
