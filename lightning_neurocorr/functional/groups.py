"""Groups of neurons that say the same inside a class.

Neurons that share a source go up and down together among samples of one class; those of two sources
do not. So the groups are clusters of the correlation of activations within class, over the samples
that only the model gets right. How many there are is what holds on the other half of the samples:
the split with the largest modularity there (Newman 2006), of those in which no group can be read
from the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import linalg

from lightning_neurocorr.functional.pairwise import correlations, within
from lightning_neurocorr.functional.scikit import scikit

MOST_GROUPS = 8
MIN_STABILITY, MOST_LEAKAGE, MIN_SHARED = 0.8, 0.1, 0.02
MIN_SAMPLES = 50

_NEIGHBOURS = 10
_MOST_SAMPLES = 1000  # of a half, to read neurons from others
_MOST_READ = 256  # of the neurons of a group, evenly spread: what is shared many say


@dataclass(frozen=True)
class Grouping:
    """The groups of the neurons of a layer.

    Attributes:
        label: The group of each neuron ``(D,)``, the largest first; -1 where it is in none.
        modularity: Of these groups, on the half of the samples that they were not made from.
        stability: How well the groups of the two halves agree: the adjusted Rand index.
        leakage: How much of what the neurons of a group share can be read from another group, on
            the half of the samples that the reading does not know: of the worst group. 0 where they
            are of two sources, more where one source was split.
        sign: Which way each neuron goes with its group ``(D,)``: 1 up and -1 down when most of the
            group goes up, by the first principal component of its standardised activations within
            class; 0 where it is in none.
        why: Why there are none; empty where there are.
    """

    label: np.ndarray
    modularity: float
    stability: float
    leakage: float
    sign: np.ndarray
    why: str = ""


def find_groups(activations: np.ndarray, classes: np.ndarray, second_half: np.ndarray) -> Grouping:
    """Groups of the neurons of one layer, or why there are none.

    Args:
        activations: Over the samples that only the model gets right, ``(N, D)``.
        classes: Class ids ``(N,)``.
        second_half: ``(N,)`` bool.

    Raises:
        ModuleNotFoundError: If scikit-learn is not installed.
    """
    halves = [_half(activations[rows], classes[rows]) for rows in (~second_half, second_half)]
    if min(half.free for half in halves) < MIN_SAMPLES:
        return _none(
            activations,
            f"each half needs {MIN_SAMPLES} samples that only the model gets right, beside one for "
            f"each class, but they have {halves[0].free} and {halves[1].free}",
        )
    live = np.flatnonzero(halves[0].related & halves[1].related)
    if len(live) < 4:
        return _none(activations, "fewer than four neurons vary together with others")
    halves = [half.of(live) for half in halves]
    tried = [_try(halves, k) for k in range(2, min(MOST_GROUPS, len(live) // 2) + 1)]
    holds, held, stability, leak, k = max(tried)
    if not holds:
        why = "no split into groups holds on the other half of the samples"
        return _none(activations, why, held, stability, leak)
    whole = _half(activations, classes).of(live)
    found = whole.clusters(k)
    label, order = np.full(activations.shape[1], -1), np.argsort(-np.bincount(found), kind="stable")
    label[live] = np.argsort(order)[found]
    sign = np.zeros(len(label), dtype=int)
    for group in range(k):
        mine = label == group
        sign[mine] = signs(within(activations[:, mine], classes))
    return Grouping(label, held, stability, leak, sign)


def signs(centred: np.ndarray) -> np.ndarray:
    """Which way each of some neurons goes along the first principal component of them all.

    Args:
        centred: Activations ``(N, D)``, each neuron with mean 0 and not constant.

    Returns:
        ``(D,)`` of 1 and -1, most of them 1.
    """
    up = np.linalg.eigh(np.corrcoef(centred.T))[1][:, -1] >= 0
    return np.where(up == (2 * up.sum() >= len(up)), 1, -1)


@dataclass(frozen=True)
class _Half:
    """How neurons go together within class in some samples.

    Attributes:
        alike: What every two share ``(D, D)`` with an empty diagonal: r^2 within class, less what
            two unrelated neurons would have. The sign does not count: of neurons that read one
            source some go up where others go down.
        free: Degrees of freedom: samples, less one for each class.
        activations: Standardised, of some of the samples ``(n, D)``.
        classes: Of these, ``(n,)``.
    """

    alike: np.ndarray
    free: int
    activations: np.ndarray
    classes: np.ndarray

    @property
    def related(self) -> np.ndarray:
        """Neurons ``(D,)`` that share more with some other than the largest of D chances."""
        return self.alike.max(0) * max(self.free, 1) > 2 * math.log(max(len(self.alike), 2))

    def of(self, neurons: np.ndarray) -> _Half:
        """Some neurons of it."""
        alike = self.alike[np.ix_(neurons, neurons)]
        return _Half(alike, self.free, self.activations[:, neurons], self.classes)

    def clusters(self, k: int) -> np.ndarray:
        """The cluster of each neuron ``(D,)`` where there are k (Damle, Minden and Ying 2019)."""
        near = self._embedded[:, :k]
        *_, order = linalg.qr(near.T, mode="economic", pivoting=True)
        corners = np.asarray(order)[:k]
        u, _, v = linalg.svd(near[corners].T)
        return np.abs(near @ u @ v).argmax(1)

    @cached_property
    def _embedded(self) -> np.ndarray:
        """Neurons ``(D, 8)`` where those that share much are close, for any number of clusters.

        The smallest eigenvectors of the normalised graph Laplacian (von Luxburg 2007).
        """
        # A little of everything: a graph in pieces has no order of its eigenvectors.
        alike = self.alike + 1e-6
        np.fill_diagonal(alike, 0.0)
        root = np.sqrt(alike.sum(0))
        most = min(MOST_GROUPS, len(alike))
        largest = [len(alike) - most, len(alike) - 1]
        vectors = linalg.eigh(alike / root / root[:, None], subset_by_index=largest)[1]
        return vectors[:, ::-1] / root[:, None]


def _half(activations: np.ndarray, classes: np.ndarray) -> _Half:
    r = np.nan_to_num(correlations(activations, None, classes))
    free = len(activations) - len(np.unique(classes))
    alike = np.clip(r * r.T - 1 / max(free, 1), 0, None)
    np.fill_diagonal(alike, 0.0)
    every = math.ceil(len(activations) / _MOST_SAMPLES)
    some = activations[::every].astype(np.float64)
    some = (some - some.mean(0)) / np.where(some.std(0) > 0, some.std(0), 1)
    return _Half(alike, free, some, classes[::every])


def _none(
    activations: np.ndarray,
    why: str,
    held: float = math.nan,
    stability: float = math.nan,
    leak: float = math.nan,
) -> Grouping:
    size = activations.shape[1]
    return Grouping(np.full(size, -1), held, stability, leak, np.zeros(size, dtype=int), why)


def _try(halves: list[_Half], k: int) -> tuple[bool, float, float, float, int]:
    """Whether a split into k groups holds, its modularity, stability and leakage, and k."""
    labels = [half.clusters(k) for half in halves]
    held = [modularity(halves[1 - i].alike, labels[i]) for i in (0, 1)]
    stability = float(scikit("metrics").adjusted_rand_score(*labels))
    leak = math.nan
    if stability >= MIN_STABILITY:
        leak = max(leakage(halves[i], halves[1 - i], labels[i]) for i in (0, 1))
    return leak <= MOST_LEAKAGE, (held[0] + held[1]) / 2, stability, leak, k


def modularity(alike: np.ndarray, label: np.ndarray) -> float:
    """How much more alike neurons of a group are than their strengths make expected.

    Args:
        alike: ``(D, D)``, symmetric, 0 or more, with an empty diagonal.
        label: ``(D,)``.
    """
    strength, total = alike.sum(0), alike.sum()
    if not total:
        return math.nan
    same = label[:, None] == label
    return float(((alike - np.outer(strength, strength) / total) * same).sum() / total)


def leakage(first: _Half, second: _Half, label: np.ndarray) -> float:
    """What other groups say of a group, over what its own other neurons say: of the worst group.

    Two parts of a source that was split do not look alike where each neuron has another part of
    it. But what the one says can be read from the other.

    Args:
        first: The samples that are known.
        second: The samples that are read.
        label: The group of each neuron ``(D,)``.

    Returns:
        Infinity where the neurons of a group share nothing.
    """
    groups = [np.flatnonzero(label == group) for group in np.unique(label)]
    worst = 0.0
    for mine in groups:
        if len(mine) < 2:
            return math.inf
        ways = (mine[::2], mine[1::2]), (mine[1::2], mine[::2])
        own = sum(readable(first, second, *way) for way in ways) / 2
        if own < MIN_SHARED:
            return math.inf
        others = [other for other in groups if other is not mine]
        if len(others) > 1:
            others.append(np.concatenate(others))
        for other in others:
            worst = max(worst, readable(first, second, other, mine) / own)
            if worst > MOST_LEAKAGE:
                return worst
    return worst


def readable(first: _Half, second: _Half, source: np.ndarray, target: np.ndarray) -> float:
    """How well some neurons can be read from others: r^2 within class, mean over neurons.

    What a neuron is expected to be is its mean over the nearest samples, in the space of the
    others: any relation counts, also of neurons that are off where others are on. What r^2 is by
    chance is taken off.

    Args:
        first: The samples that are known.
        second: The samples that are read.
        source: Neurons that say it.
        target: Neurons that are read.
    """
    source, target = (part[:: math.ceil(len(part) / _MOST_READ)] for part in (source, target))
    nearest = scikit("neighbors").KNeighborsRegressor(_NEIGHBOURS, algorithm="brute")
    nearest.fit(first.activations[:, source], first.activations[:, target])
    expected = within(nearest.predict(second.activations[:, source]), second.classes)
    known = within(second.activations[:, target], second.classes)
    size = np.sqrt((expected**2).sum(0) * (known**2).sum(0))
    r = (expected * known).sum(0) / np.where(size > 0, size, 1)
    return max(float((np.clip(r, 0, None) ** 2).mean()) - 1 / second.free, 0.0)
