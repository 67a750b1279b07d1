"""Losses against their definitions, written out."""

import numpy as np
import pytest
import torch

from inranker.errors import InputError
from inranker.train.losses import LOSSES, Scores, mix

GROUP = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])


@pytest.fixture
def scores() -> Scores:
    generator = torch.Generator().manual_seed(0)
    y, t = torch.randn(2, len(GROUP), generator=generator, dtype=torch.float64)
    return Scores(y, 3 * t, torch.tensor([1, 0, 0, 1, 0, 1, 0, 0, 0]), GROUP, temperature=2.0)


def by_query(scores: Scores):
    for number in range(scores.queries):
        rows = scores.group == number
        yield scores.y[rows], scores.t[rows], scores.grades[rows]


def test_mse_is_the_mean_over_two_centred_logits(scores):
    student = torch.stack([-scores.y / 2, scores.y / 2], dim=1)
    teacher = torch.stack([-scores.t / 2, scores.t / 2], dim=1)
    assert LOSSES["mse"](scores).item() == pytest.approx(torch.nn.MSELoss()(student, teacher).item())


def test_margin_mse_is_the_mean_over_all_ordered_pairs_of_a_query(scores):
    expected = np.mean([(((y[:, None] - y) - (t[:, None] - t)) ** 2).mean().item() for y, t, _ in by_query(scores)])
    assert LOSSES["margin_mse"](scores).item() == pytest.approx(expected)


def test_kl_is_the_divergence_of_the_teachers_softmax(scores):
    expected = []
    for y, t, _ in by_query(scores):
        p, q = torch.softmax(t / 2, 0), torch.softmax(y / 2, 0)
        expected.append((p * (p / q).log()).sum().item())
    assert LOSSES["kl"](scores).item() == pytest.approx(np.mean(expected))


def test_ranknet_counts_each_ordered_pair_once(scores):
    expected = []
    for y, t, _ in by_query(scores):
        terms = [np.log1p(np.exp((y[j] - y[i]).item())) for i in range(len(y)) for j in range(len(y)) if t[i] > t[j]]
        expected.append(np.mean(terms))
    assert LOSSES["ranknet"](scores).item() == pytest.approx(np.mean(expected))


def test_infonce_is_the_positives_cross_entropy(scores):
    expected = [-torch.log_softmax(y / 2, 0)[g > 0].mean().item() for y, _, g in by_query(scores)]
    assert LOSSES["infonce"](scores).item() == pytest.approx(np.mean(expected))


def test_bce_weighs_positives_like_all_negatives_together(scores):
    even = scores._replace(y=torch.zeros_like(scores.y).requires_grad_())
    LOSSES["bce"](even).backward()
    for number in range(scores.queries):
        assert even.y.grad[scores.group == number].sum().item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ["margin_mse", "kl", "ranknet", "infonce"])
def test_relative_losses_leave_a_querys_offset_free(scores, name):
    offset = torch.tensor([5.0, -3.0, 1.0], dtype=torch.float64)[scores.group]
    moved = scores._replace(y=scores.y + offset)
    assert LOSSES[name](moved).item() == pytest.approx(LOSSES[name](scores).item())


@pytest.mark.parametrize("name", ["mse", "margin_mse", "kl", "ranknet"])
def test_gradients_are_finite_and_point_to_the_teacher(scores, name):
    y = scores.y.clone().requires_grad_()
    before = LOSSES[name](scores._replace(y=y))
    before.backward()
    assert torch.isfinite(y.grad).all()
    after = LOSSES[name](scores._replace(y=(y - 1e-3 * y.grad).detach()))
    assert after < before


def test_a_mix_is_the_weighted_sum(scores):
    expected = 2 * LOSSES["kl"](scores) + 0.5 * LOSSES["mse"](scores)
    assert mix({"kl": 2, "mse": 0.5})(scores).item() == pytest.approx(expected.item())


def test_an_unknown_loss_names_the_nearest():
    with pytest.raises(InputError, match="margin_mse"):
        mix({"marginmse": 1})
