"""T5 students: what the trainer needs to know of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from inranker.sequence import ModelSettings
from inranker.sequence_t5 import t5_sequences
from inranker.t5.model import load_t5
from inranker.train.students import Student


def load_t5_student(folder: Path, settings: ModelSettings) -> Student:
    """A T5 to be trained, in fp32.

    Training is always `strict`, released weights included: a sequence without its closing words teaches nothing about
    them, and the student's folder says what it was trained on.

    Raises:
        ModelError: no T5 ranker there.
    """
    module, tokenizer, settings = load_t5(folder, replace(settings, mode="strict"))
    model = module.model
    return Student(module, model, t5_sequences(tokenizer, settings, model.config.model_type), settings, folder)
