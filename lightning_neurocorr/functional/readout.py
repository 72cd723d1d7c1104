"""How well a linear read-out tells the label from a layer (Alain and Bengio 2016)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy import linalg, optimize

MOST_FEATURES = 512
_LOSSES = 0.1  # weight of all losses beside half the squared weights; C of scikit-learn
_ROUNDS = 30  # more change no answer
_SMALL = 1e-3  # a gradient that changes none either

Predict = Callable[[np.ndarray], np.ndarray]


def read_out(
    activations: np.ndarray, target: np.ndarray, second_half: np.ndarray, *, seed: int = 0
) -> np.ndarray:
    """The label of each sample as read by a model that was fitted on the other half.

    Logistic regression on standardised activations, C = 0.1. More than 512 neurons are projected on
    so many random directions. Neurons with values that are not finite are left out.

    Args:
        activations: ``(N, D)``.
        target: Class ids ``(N,)``, or several labellings ``(T, N)``, which cost less together.
        second_half: ``(N,)`` bool.
        seed: Of the random directions.

    Returns:
        Class ids of the shape of ``target``; -1 where the other half holds fewer than two classes.
    """
    x = activations.astype(np.float32)
    x = x[:, np.isfinite(x).all(0)]
    if x.shape[1] > MOST_FEATURES:
        draw = np.random.default_rng(seed)
        directions = draw.standard_normal((x.shape[1], MOST_FEATURES), dtype=np.float32)
        x = x @ directions / np.float32(np.sqrt(MOST_FEATURES))
    read = np.full(target.shape, -1)
    for half in (second_half, ~second_half):
        if half.all() or not half.any():
            continue
        fit = _Fit.to(x[~half])
        asked = fit.standardised(x[half])
        for found, labels in zip(np.atleast_2d(read), np.atleast_2d(target), strict=True):
            classes, label = np.unique(labels[~half], return_inverse=True)
            if len(classes) > 1:
                found[half] = classes[fit(label, len(classes))(asked)]
    return read


@dataclass(frozen=True)
class _Fit:
    """Samples to fit read-outs on, and what is the same for all labels.

    Attributes:
        x: Standardised activations ``(n, D)``.
        mean: ``(D,)``.
        scale: ``(D,)``; infinite for constants, which say nothing.
    """

    x: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    _rounds: dict[int, np.ndarray] = field(default_factory=dict)

    @classmethod
    def to(cls, x: np.ndarray) -> _Fit:
        mean, scale = x.mean(0), x.std(0)
        scale = np.where(scale > 1e-7 * np.abs(x).max(0), scale, np.inf)
        return cls((x - mean) / scale, mean, scale)

    def standardised(self, x: np.ndarray) -> np.ndarray:
        return (x - self.mean) / self.scale

    @cached_property
    def _gram(self) -> np.ndarray:
        return self.x.T @ self.x / len(self.x)

    def round(self, classes: int, penalty: np.float32) -> np.ndarray:
        """Coordinates ``(D, D)`` in which the loss is near a ball: few rounds are enough.

        The curvature where nothing is known yet (as in the bound of Böhning 1992).
        """
        if classes not in self._rounds:
            curved = self._gram.astype(np.float64) * (1 - 1 / classes) / classes
            curved[np.diag_indices(len(curved))] += penalty
            root = linalg.cholesky(curved, lower=True)
            ball = linalg.solve_triangular(root, np.eye(len(root)), lower=True).T
            self._rounds[classes] = ball.astype(np.float32)
        return self._rounds[classes]

    def __call__(self, label: np.ndarray, classes: int) -> Predict:
        """A function from standardised activations to one of ``classes`` labels."""
        n, d = self.x.shape
        # Two classes have one vector of weights in scikit-learn: half of it is in each of ours.
        penalty = np.float32((2 if classes == 2 else 1) / (_LOSSES * n))
        ball, rows = self.round(classes, penalty), np.arange(n)
        offset = np.log(np.bincount(label, minlength=classes) / n).astype(np.float32)

        def weights(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            v = flat.astype(np.float32).reshape(classes, d + 1)
            return v[:, :d] @ ball.T, (v[:, d] + offset)[:, None]

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            w, b = weights(flat)
            p = _softmax(w @ self.x.T + b)
            lost = penalty / 2 * (w * w).sum() - np.log(np.maximum(p[label, rows], 1e-30)).mean()
            p[label, rows] -= 1
            p /= n
            slope = (p @ self.x + penalty * w) @ ball
            return float(lost), np.c_[slope, p.sum(1)].ravel().astype(np.float64)

        options = {"maxiter": _ROUNDS, "gtol": _SMALL}
        flat = np.zeros(classes * (d + 1))
        found = optimize.minimize(loss, flat, jac=True, method="L-BFGS-B", options=options)
        w, b = weights(found.x)
        return lambda x: (w @ x.T + b).argmax(0)


def _softmax(scores: np.ndarray) -> np.ndarray:
    """Of scores ``(C, n)``."""
    p = np.exp(scores - scores.max(0))
    return p / p.sum(0)
