"""First-stage retrieval and the sampling of negatives."""

from inranker.retrieve.bm25 import BM25
from inranker.retrieve.negatives import sample_candidates
from inranker.retrieve.trec import cut, read_qrels, read_run, sort_documents, write_qrels, write_run

__all__ = ["BM25", "cut", "read_qrels", "read_run", "sample_candidates", "sort_documents", "write_qrels", "write_run"]
