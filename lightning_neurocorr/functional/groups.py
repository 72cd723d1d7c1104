"""Groups of neurons that say the same inside a class.

Neurons that share a source go up and down together among samples of one class; those of two sources
do not. So the groups are clusters of the correlation of activations within class, over the samples
that only the model gets right. How many there are is what holds on the other half of the samples:
their modularity there (Newman 2006).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_neurocorr.functional.scikit import scikit
from lightning_neurocorr.functional.words import correlations

MOST_GROUPS = 8
MIN_MODULARITY, MIN_STABILITY, MOST_LEAKAGE = 0.25, 0.8, 0.2
MIN_SAMPLES = 50


@dataclass(frozen=True)
class Grouping:
    """The groups of the neurons of a layer.

    Attributes:
        label: The group of each neuron ``(D,)``, the largest first; -1 where it is in none.
        modularity: Of these groups, on the half of the samples that they were not made from.
        stability: How well the groups of the two halves agree: the adjusted Rand index.
        leakage: What neurons of different groups share, as a part of what those of one group do.
        why: Why there are none; empty where there are.
    """

    label: np.ndarray
    modularity: float
    stability: float
    leakage: float = float("nan")
    why: str = ""


def find_groups(
    activations: np.ndarray, classes: np.ndarray, second_half: np.ndarray, *, seed: int = 0
) -> Grouping:
    """Groups of the neurons of one layer, or why there are none.

    Args:
        activations: Over the samples that only the model gets right, ``(N, D)``.
        classes: Class ids ``(N,)``.
        second_half: ``(N,)`` bool.
        seed: Of the clustering's start.

    Raises:
        ModuleNotFoundError: If scikit-learn is not installed.
    """
    none = np.full(activations.shape[1], -1)
    if min(int(second_half.sum()), int((~second_half).sum())) < MIN_SAMPLES:
        why = f"each half needs {MIN_SAMPLES} samples that only the model gets right"
        return Grouping(none, float("nan"), float("nan"), why=why)
    alike = [_alike(activations[half], classes[half]) for half in (~second_half, second_half)]
    live = np.flatnonzero((alike[0].sum(0) > 0) & (alike[1].sum(0) > 0))
    if len(live) < 4:
        return Grouping(none, float("nan"), float("nan"), why="fewer than four neurons vary")
    first, second = (s[np.ix_(live, live)] for s in alike)
    tried = []
    for k in range(2, min(MOST_GROUPS, len(live) // 2) + 1):
        labels = [_clusters(s, k, seed) for s in (first, second)]
        held = (modularity(second, labels[0]) + modularity(first, labels[1])) / 2
        stability = float(scikit("metrics").adjusted_rand_score(*labels))
        leak = (leakage(second, labels[0]) + leakage(first, labels[1])) / 2
        holds = stability >= MIN_STABILITY and leak <= MOST_LEAKAGE and held >= MIN_MODULARITY
        tried.append((holds, held, stability, leak, k))
    holds, held, stability, leak, k = max(tried)
    if not holds:
        why = "no split into groups holds on the other half of the samples"
        return Grouping(none, held, stability, leak, why)
    label = none.copy()
    both = _alike(activations, classes)[np.ix_(live, live)]
    found = _clusters(both, k, seed)
    order = np.argsort(-np.bincount(found), kind="stable")
    label[live] = np.argsort(order)[found]
    return Grouping(label, held, stability, leak)


def modularity(alike: np.ndarray, label: np.ndarray) -> float:
    """How much more alike neurons of a group are than their strengths make expected.

    Args:
        alike: ``(D, D)``, symmetric, 0 or more, with an empty diagonal.
        label: ``(D,)``.
    """
    strength, total = alike.sum(0), alike.sum()
    same = label[:, None] == label
    return float(((alike - np.outer(strength, strength) / total) * same).sum() / total)


def leakage(alike: np.ndarray, label: np.ndarray) -> float:
    """Mean of what two neurons of different groups share, over that of two of the same group."""
    same = label[:, None] == label
    other = ~same
    np.fill_diagonal(same, False)
    if not same.any() or not other.any() or not alike[same].any():
        return float("nan")
    return float(alike[other].mean() / alike[same].mean())


def _alike(activations: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """What every two neurons share within class, ``(D, D)`` with an empty diagonal.

    r^2, less what two unrelated neurons would have. Its sign does not count: of neurons that read
    one source some go up where others go down.
    """
    r = np.nan_to_num(correlations(activations, activations, classes))
    dof = max(len(activations) - len(np.unique(classes)), 1)
    shared = np.clip((r * r.T) - 1 / dof, 0, None)
    np.fill_diagonal(shared, 0.0)
    return shared


def _clusters(alike: np.ndarray, k: int, seed: int) -> np.ndarray:
    clustering = scikit("cluster").SpectralClustering(
        k, affinity="precomputed", assign_labels="cluster_qr", random_state=seed
    )
    # A little of everything: a graph in pieces has no order of its eigenvectors.
    return clustering.fit_predict(alike + 1e-6)
