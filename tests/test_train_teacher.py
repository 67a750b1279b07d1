"""Fine-tuning of a causal teacher on tiny models, and scoring with what came out."""

import numpy as np
import pytest

from inranker.label import load_teacher
from inranker.recipe import TeacherSettings, TrainTeacherSettings
from inranker.train.teacher import train_teacher
from inranker.types import Pair
from test_train_student import made_queries


def settings(model, **changes) -> TrainTeacherSettings:
    values = {
        "model": str(model),
        "learning_rate": 5e-3,
        "epochs": 6,
        "queries_per_batch": 8,
        "max_length": 160,
        "batch_tokens": 4096,
    }
    return TrainTeacherSettings(**{**values, **changes})


@pytest.mark.parametrize(("method", "loss"), [("lora", "listwise"), ("full", "pointwise")])
def test_a_fine_tuned_teacher_separates_relevant_from_not(tiny_causal, tmp_path, method, loss):
    data = made_queries(60, 3, candidates=4)
    folder, history = train_teacher(settings(tiny_causal, method=method, loss=loss), data, tmp_path / "teacher", seed=1)
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    adapter = {"adapter": str(folder), "model": str(tiny_causal)} if method == "lora" else {"model": str(folder)}
    teacher = load_teacher(TeacherSettings(kind="causal", max_length=160, **adapter))
    untrained = load_teacher(TeacherSettings(kind="causal", max_length=160, model=str(tiny_causal)))
    pairs = [Pair(q.text, d) for q in data for d in q.documents]
    grades = np.concatenate([q.grades for q in data])

    def separation(who):
        logits = who.logits(pairs)
        margins = logits[:, 1] - logits[:, 0]
        return (margins[grades == 1].mean() - margins[grades == 0].mean()) / margins.std()

    assert separation(teacher) > separation(untrained) + 0.3
    assert teacher.fingerprint != untrained.fingerprint
