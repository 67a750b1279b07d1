"""Measuring rankings: effectiveness, significance, fusion."""

from inranker.evaluate.fusion import choose_weight, fuse
from inranker.evaluate.measures import DEFAULT_METRICS, check_measures, evaluate_run, means
from inranker.evaluate.rerank import rerank_run
from inranker.evaluate.significance import bootstrap_interval, holm, paired_randomisation_test

__all__ = [
    "DEFAULT_METRICS",
    "bootstrap_interval",
    "check_measures",
    "choose_weight",
    "evaluate_run",
    "fuse",
    "holm",
    "means",
    "paired_randomisation_test",
    "rerank_run",
]
