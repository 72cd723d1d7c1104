"""How well a linear read-out tells the label from a layer (Alain and Bengio 2016)."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from lightning_neurocorr.functional.scikit import scikit

MOST_FEATURES = 512


def read_out(
    activations: np.ndarray, target: np.ndarray, second_half: np.ndarray, *, seed: int = 0
) -> np.ndarray:
    """Whether each sample's label is read right by a model fitted on the other half.

    Logistic regression on standardised activations, C = 0.1. More than 512 neurons are projected on
    so many random directions.

    Args:
        activations: ``(N, D)``.
        target: Class ids ``(N,)``.
        second_half: ``(N,)`` bool.
        seed: Of the random directions.

    Returns:
        ``(N,)`` bool; all False where a half holds fewer than two classes.

    Raises:
        ModuleNotFoundError: If scikit-learn is not installed.
    """
    x = activations.astype(np.float32)
    if x.shape[1] > MOST_FEATURES:
        draw = np.random.default_rng(seed)
        directions = draw.standard_normal((x.shape[1], MOST_FEATURES), dtype=np.float32)
        x = x @ directions / np.float32(np.sqrt(MOST_FEATURES))
    right = np.zeros(len(x), dtype=bool)
    for half in (second_half, ~second_half):
        fitted = _fitted(x[~half], target[~half])
        if fitted is not None and half.any():
            mean, scale, model = fitted
            right[half] = model.predict((x[half] - mean) / scale) == target[half]
    return right


def _fitted(x: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray, Any] | None:
    if len(np.unique(target)) < 2:
        return None
    mean, scale = x.mean(0), x.std(0)
    scale = np.where(scale > 1e-7 * np.abs(x).max(0), scale, np.inf)  # a constant says nothing
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", scikit("exceptions").ConvergenceWarning
        )  # a few rounds less change no answer
        regression = scikit("linear_model").LogisticRegression
        model = regression(C=0.1, max_iter=200).fit((x - mean) / scale, target)
    return mean, scale, model
