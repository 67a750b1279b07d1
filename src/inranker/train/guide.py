"""Following the start from layer to layer: what a student that was cut out of it needs to find its way again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from inranker.train.students import OneLogit, Student


class Guide:
    """The start before it was cut: shows a student the states that its kept layers are used to.

    A margin is one number a pair, the states of all tokens are thousands; and what a cut ranker has lost is the way
    between its layers, not its last layer's judgement. So after each kept layer the student is to stand where the next
    kept layer used to begin, and after its last where the start ends (hidden-state distillation, as TinyBERT's, Jiao et
    al. 2020, arXiv 1909.10351, with the layer map that the cut itself gives).
    """

    def __init__(self, start: Student, layers: Sequence[int]) -> None:
        self._module: OneLogit = start.module.eval().requires_grad_(False)  # type: ignore[assignment]
        kept = sorted(layers)
        self._places = [*kept[1:], start.model.config.num_hidden_layers]

    def to(self, device: torch.device) -> Guide:
        """Move its weights; returns itself."""
        self._module.to(device)
        return self

    def follow(self, student: OneLogit, chunk: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """A chunk's margins [n] by the student, and its distance from the guide: a number, 0 where it stands right.

        The distance is the squared difference of normalised states, mean over tokens and layers; strangers are at 2.
        """
        with torch.no_grad():
            _, theirs = self._module.states(**chunk)
        margins, mine = student.states(**chunk)
        real = chunk["attention_mask"].bool()
        errors = [_distance(mine[i + 1], theirs[place], real) for i, place in enumerate(self._places)]
        return margins, torch.stack(errors).mean()


def _distance(mine: Tensor, theirs: Tensor, real: Tensor) -> Tensor:
    if mine.shape[1] == real.shape[1]:  # A last layer that computes only the first token has nothing else to compare.
        mine, theirs = mine[real], theirs[real]
    size = mine.shape[-1:]
    return (functional.layer_norm(mine, size) - functional.layer_norm(theirs, size)).square().mean()
