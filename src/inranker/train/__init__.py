"""Students, losses, and the two phases of the distillation."""

from inranker.train.data import TrainingQuery, join_labels
from inranker.train.stage import PhaseResult, TrainResult, train_student

__all__ = ["PhaseResult", "TrainResult", "TrainingQuery", "join_labels", "train_student"]
