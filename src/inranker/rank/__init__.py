"""The engine: a ranker and a list of documents in, an order out."""
