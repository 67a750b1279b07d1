"""InRanker 2: turn a large neural ranker into a small one that is good on your own documents, and run it anywhere."""

__version__ = "2.0.0.dev0"
