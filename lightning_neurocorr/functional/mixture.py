"""Parts of the data in which one of the two is better, found without words for them.

Activations of all layers are projected on the few directions that go with winning and losing inside
the class (partial least squares: Wold 1975); a mixture that also explains the outcomes splits that
space (as in Domino: Eyuboglu et al. 2022). Found on the first half of the samples, tested on the
second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_neurocorr.functional.scikit import scikit
from lightning_neurocorr.functional.slices import (
    MIN_SAMPLES,
    Side,
    Slice,
    advantage_of,
    judge,
    less_class,
    too_few,
)

PARTS, COMPONENTS, ROUNDS = 25, 8, 40
OUTCOME_WEIGHT = 10.0
_TRIED = 5
_ALPHA = 0.025  # per direction


def find_parts(
    activations: np.ndarray,
    outcome: np.ndarray,
    classes: np.ndarray,
    second_half: np.ndarray,
    *,
    seed: int = 0,
) -> list[Slice]:
    """Parts of the activations' space in which model or baseline is better than elsewhere.

    Args:
        activations: Of all layers, ``(N, D)``.
        outcome: Outcome groups ``(N,)``.
        classes: Class ids ``(N,)``.
        second_half: ``(N,)`` bool.
        seed: Of the mixture's start.

    Returns:
        Those that hold, strongest first, without words. p counts the parts that were tried.

    Raises:
        ModuleNotFoundError: If scikit-learn is not installed.
    """
    advantage = advantage_of(outcome)
    if too_few(advantage, second_half):
        return []
    first = ~second_half
    space = _space(activations, advantage, classes, first)
    if not space.shape[1]:  # neurons that say the same of every sample make no parts
        return []
    members = _mixture(space, outcome, classes, first, seed)
    found = []
    for direction in (1, -1):
        side = Side.of(outcome, classes, first, direction)
        strength = {
            k: _strength(members == k, first, side.excess) for k in np.unique(members).tolist()
        }
        order = sorted(strength, key=lambda k: -strength[k])[:_TRIED]
        for k in (k for k in order if strength[k] > 0):
            part = judge(members == k, second_half, side)
            if part is not None and part.p * _TRIED <= _ALPHA:
                found.append(part)
    return sorted(found, key=lambda part: -abs(part.advantage))


def _strength(inside: np.ndarray, rows: np.ndarray, excess: np.ndarray) -> float:
    """Z of the mean excess inside, 0 where there are too few samples."""
    part = excess[inside & rows]
    if len(part) < MIN_SAMPLES:
        return 0.0
    rest = excess[~inside & rows]
    return float((part.mean() - rest.mean()) / (excess[rows].std() / np.sqrt(len(part)) + 1e-12))


def _space(
    activations: np.ndarray, advantage: np.ndarray, classes: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """The activations less class means, on directions that go with winning and losing."""
    pls = scikit("cross_decomposition").PLSRegression
    x = less_class(activations, classes, rows)
    scale = x[rows].std(0)
    live = scale > 1e-7 * np.abs(activations).max(0).clip(1e-30)
    x = x[:, live] / scale[live]
    sides = np.stack([(advantage > 0).astype(float), (advantage < 0).astype(float)], 1)
    y = less_class(sides, classes, rows)
    components = min(COMPONENTS, x.shape[1], int(rows.sum()) - 1)
    if not components:
        return x[:, :0]
    return pls(components, scale=False).fit(x[rows], y[rows]).transform(x)


def _mixture(
    space: np.ndarray, outcome: np.ndarray, classes: np.ndarray, rows: np.ndarray, seed: int
) -> np.ndarray:
    """The part that each sample is in, told without its outcome, ``(N,)``."""
    x = space / space[rows].std(0).clip(1e-12)
    _, y = np.unique(classes, return_inverse=True)
    k = min(PARTS, max(2, int(rows.sum()) // (2 * MIN_SAMPLES)))
    start = scikit("cluster").KMeans(k, n_init=1, random_state=seed).fit_predict(x[rows])
    soft = np.eye(k)[start]
    own, told, won = x[rows], y[rows], outcome[rows]
    for _ in range(ROUNDS):
        parts = _Parts.of(soft, own, told, int(y.max()) + 1)
        log_outcome = np.log(_shares(soft, won, 4))[:, won].T
        joint = parts.log(own, told) + OUTCOME_WEIGHT * log_outcome
        soft = np.exp(joint - joint.max(1, keepdims=True))
        soft /= soft.sum(1, keepdims=True)
    return parts.log(x, y).argmax(1)


@dataclass(frozen=True)
class _Parts:
    """What the parts of a mixture expect, ``(parts, ...)``: normal, and a share of each class."""

    mean: np.ndarray
    variance: np.ndarray
    prior: np.ndarray
    classes: np.ndarray

    @classmethod
    def of(cls, soft: np.ndarray, x: np.ndarray, y: np.ndarray, classes: int) -> _Parts:
        """From how much each sample is of each part, ``(n, parts)``."""
        weight = soft.sum(0) + 1e-9
        mean = soft.T @ x / weight[:, None]
        variance = soft.T @ x**2 / weight[:, None] - mean**2 + 1e-3
        return cls(mean, variance, weight / weight.sum(), _shares(soft, y, classes))

    def log(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Log of prior times likelihood of samples in each part, ``(n, parts)``."""
        # The square of a difference, multiplied out: two products of matrices.
        by = 1 / self.variance
        square = x**2 @ by.T - 2 * x @ (self.mean * by).T + (self.mean**2 * by).sum(1)
        log_x = -0.5 * (square + np.log(self.variance).sum(1))
        return np.log(self.prior) + log_x + np.log(self.classes)[:, y].T


def _shares(soft: np.ndarray, label: np.ndarray, values: int) -> np.ndarray:
    """The share of each label in each part, ``(parts, values)``, never 0."""
    counts = soft.T @ np.eye(values)[label] + 0.1
    return counts / counts.sum(1, keepdims=True)
