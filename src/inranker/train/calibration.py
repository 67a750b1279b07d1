"""An affine map from logits to log-odds, fitted after training: relative losses leave the logit's offset free."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def fit_affine(
    logits: NDArray[np.floating], targets: NDArray[np.floating], iterations: int = 50
) -> tuple[float, float]:
    """(a, b), a > 0, that minimise the cross-entropy of sigmoid(a * logit + b) against `targets` [n] in [0, 1].

    Platt scaling (1999) with soft targets, by Newton's method; a small ridge keeps it finite where the targets
    separate. Falls back to (1, b) where the logits tell nothing, so that calibration never turns a ranking around.
    """
    x = np.asarray(logits, dtype=np.float64)
    y = np.asarray(targets, dtype=np.float64)
    centre, scale = (float(x.mean()), float(x.std()) or 1.0) if len(x) else (0.0, 1.0)
    design = np.stack([(x - centre) / scale, np.ones_like(x)], axis=1)
    weights = np.zeros(2)
    for _ in range(iterations):
        p = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        gradient = design.T @ (p - y) + 1e-3 * weights
        hessian = (design * (p * (1 - p))[:, None]).T @ design + 1e-3 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        weights -= step
        if np.abs(step).max() < 1e-8:
            break
    slope = float(weights[0]) / scale
    if slope <= 0:
        slope = 1.0
        return slope, -centre
    return slope, float(weights[1]) - slope * centre
