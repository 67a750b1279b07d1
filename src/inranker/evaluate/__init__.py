"""Measuring rankings: effectiveness, significance, fusion."""

from inranker.evaluate.fusion import choose_weight, fuse
from inranker.evaluate.measures import evaluate_run, means
from inranker.evaluate.rerank import rerank_run
from inranker.evaluate.significance import bootstrap_interval, holm, paired_randomisation_test

__all__ = [
    "bootstrap_interval",
    "choose_weight",
    "evaluate_run",
    "fuse",
    "holm",
    "means",
    "paired_randomisation_test",
    "rerank_run",
]
