"""Soft labels: teachers and the store that keeps what they said."""

from inranker.label.stage import label_candidates, read_labels
from inranker.label.store import LabelStore
from inranker.label.teachers import load_teacher

__all__ = ["LabelStore", "label_candidates", "load_teacher", "read_labels"]
