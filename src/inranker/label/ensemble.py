"""Several teachers as one. Each member's labels are stored as its own and combined when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from inranker.errors import InputError
from inranker.label.teachers import TEACHERS, halves, load_teacher
from inranker.recipe import TeacherSettings
from inranker.store import fingerprint
from inranker.types import Logits, Pair, Teacher


class EnsembleTeacher:
    """Mean of the members' margins after each was brought to one scale.

    A member's margin m becomes (m - mean) / deviation with its mean and standard deviation over a fixed sample of
    pairs; the result is rescaled to the first member's constants, so that it is a logit again. The constants belong to
    the fingerprint. `fit` must run once before `combine`.
    """

    def __init__(self, members: Sequence[Teacher], constants: Sequence[tuple[float, float]] | None = None) -> None:
        if len(members) < 2:
            raise InputError("an ensemble needs two members or more: [[teacher.members]]")
        self.members = list(members)
        self.name = "ensemble(" + ", ".join(m.name for m in members) + ")"
        self.constants = list(constants) if constants else None

    def fit(self, logits: Sequence[Logits]) -> None:
        """Take each member's affine constants from its logits [n, 2] over the same sample of pairs."""
        margins = [(member[:, 1] - member[:, 0]).astype(np.float64) for member in logits]
        self.constants = [(float(m.mean()), max(float(m.std()), 1e-6)) for m in margins]
        self.__dict__.pop("fingerprint", None)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the members' fingerprints and constants."""
        return fingerprint("ensemble", [m.fingerprint for m in self.members], self._constants)

    @property
    def _constants(self) -> list[tuple[float, float]]:
        if self.constants is None:
            raise InputError("this ensemble has no constants yet: fit it on a sample of pairs first")
        return self.constants

    def combine(self, logits: Sequence[Logits]) -> Logits:
        """One [n, 2] from the members', in their order."""
        scaled = [
            ((member[:, 1] - member[:, 0]) - mean) / deviation
            for member, (mean, deviation) in zip(logits, self._constants, strict=True)
        ]
        mean, deviation = self._constants[0]
        return halves(np.mean(scaled, axis=0) * deviation + mean)

    def logits(self, pairs: Sequence[Pair]) -> Logits:
        """Combined logits, float32 [n, 2]."""
        return self.combine([member.logits(pairs) for member in self.members])


@TEACHERS.register("ensemble")
def _load(settings: TeacherSettings) -> Teacher:
    return EnsembleTeacher([load_teacher(member) for member in settings.members])
