"""Losses: what a student's scores are pulled towards.

Each is a function of `Scores` and gives one number, the mean over the batch's queries (or pairs, where it says so).
`y` is the student's margin, `t` the teacher's; both are true - false logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from inranker.registry import Registry


class Scores(NamedTuple):
    """A batch of pairs. `y`, `t`, `grades`: [n]; `group`: [n], each pair's query, from 0, ascending."""

    y: Tensor
    t: Tensor
    grades: Tensor
    group: Tensor
    temperature: float = 1.0

    @property
    def queries(self) -> int:
        """Number of queries in the batch."""
        return int(self.group[-1]) + 1

    def sum_by_query(self, values: Tensor) -> Tensor:
        """Sums of `values` [n] over each query, [queries]."""
        return values.new_zeros(self.queries).index_add_(0, self.group, values)

    def mean_by_query(self, values: Tensor) -> Tensor:
        """Means of `values` [n] over each query, [queries]."""
        return self.sum_by_query(values) / self.sum_by_query(torch.ones_like(values))

    def padded(self, values: Tensor, fill: float) -> Tensor:
        """`values` [n] as [queries, most candidates], the rest filled."""
        counts = torch.bincount(self.group, minlength=self.queries)
        starts = counts.cumsum(0) - counts
        column = torch.arange(len(values), device=values.device) - starts[self.group]
        out = values.new_full((self.queries, int(counts.max())), fill)
        return out.index_put((self.group, column), values)


Loss = Callable[[Scores], Tensor]
LOSSES: Registry[Loss] = Registry("loss")


@LOSSES.register("mse")
def mse(scores: Scores) -> Tensor:
    """InRanker's: mean squared error over two zero-centred logits, mean over pairs.

    With one margin the centred logits are (-y / 2, +y / 2), so the mean over both is (y - t)^2 / 4
    (Laitz et al. 2024, arXiv 2401.06910; `trainer.py` of the published package).
    """
    return (scores.y - scores.t).square().mean() / 4


@LOSSES.register("margin_mse")
def margin_mse(scores: Scores) -> Tensor:
    """MarginMSE (Hofstätter et al. 2020, arXiv 2010.02666) over all pairs of a query's candidates.

    The mean of ((y_i - y_j) - (t_i - t_j))^2 over all ordered pairs, i = j included, is twice the variance of y - t:
    O(n).
    """
    error = scores.y - scores.t
    centred = error - scores.mean_by_query(error)[scores.group]
    return 2 * scores.mean_by_query(centred.square()).mean()


@LOSSES.register("kl")
def kl(scores: Scores) -> Tensor:
    """Listwise: KL(teacher || student) of the softmax over a query's candidates, at the temperature."""
    y = functional.log_softmax(scores.padded(scores.y / scores.temperature, float("-inf")), dim=1)
    t = functional.log_softmax(scores.padded(scores.t / scores.temperature, float("-inf")), dim=1)
    real = t.isfinite()
    terms = torch.where(real, t.exp() * (t.masked_fill(~real, 0) - y.masked_fill(~real, 0)), 0)
    return terms.sum(1).mean()


@LOSSES.register("ranknet")
def ranknet(scores: Scores) -> Tensor:
    """RankNet (Burges et al. 2005) on the teacher's order: mean of log(1 + exp(y_j - y_i)) where t_i > t_j."""
    y, t = scores.padded(scores.y, 0.0), scores.padded(scores.t, float("nan"))
    ordered = (t[:, :, None] > t[:, None, :]).to(y.dtype)  # NaN, the filling, is in no order.
    terms = functional.softplus(y[:, None, :] - y[:, :, None]) * ordered
    return (terms.sum((1, 2)) / ordered.sum((1, 2)).clamp(min=1)).mean()


@LOSSES.register("bce")
def bce(scores: Scores) -> Tensor:
    """Hard labels, pointwise: binary cross-entropy on the grades; the baseline (monoT5's loss). Mean over pairs.

    Positives weigh as much as all negatives of their query together, else one in ten would be told to stay low.
    """
    positive = (scores.grades > 0).to(scores.y.dtype)
    share = scores.mean_by_query(positive)[scores.group].clamp(min=1e-6, max=1 - 1e-6)
    weight = torch.where(positive > 0, 0.5 / share, 0.5 / (1 - share))
    return functional.binary_cross_entropy_with_logits(scores.y, positive, weight=weight)


@LOSSES.register("infonce")
def infonce(scores: Scores) -> Tensor:
    """Hard labels, listwise: cross-entropy of the softmax over a query's candidates against its positives."""
    y = functional.log_softmax(scores.padded(scores.y / scores.temperature, float("-inf")), dim=1)
    target = scores.padded((scores.grades > 0).to(y.dtype), 0.0)
    target = target / target.sum(1, keepdim=True).clamp(min=1)
    return -(target * y.masked_fill(target == 0, 0)).sum(1).mean()


# Losses that need the teacher's margins; the others take hard labels.
SOFT = frozenset({"mse", "margin_mse", "kl", "ranknet"})


def mix(weights: Mapping[str, float]) -> Loss:
    """The weighted sum of named losses.

    Raises:
        InputError: an unknown name.
    """
    parts = [(LOSSES[name], weight) for name, weight in weights.items()]

    def total(scores: Scores) -> Tensor:
        return torch.stack([weight * loss(scores) for loss, weight in parts]).sum()

    return total
