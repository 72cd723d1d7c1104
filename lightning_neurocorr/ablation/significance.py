"""Whether what a silenced neuron costs is more than an accident of the samples it was measured on.

The share of random neurons that cost as much cannot be smaller than 1 / 21 with twenty of them, so
nothing would survive a correction for all neurons that were silenced. Samples are many: shuffling
which of them are advantage samples gives finer p values. Silencing costs samples very unequally
(skewed, and more where margins are wide), so the statistic is studentised: a plain difference would
be too optimistic where groups differ in spread, a t table where losses are skewed.
"""

from __future__ import annotations

import numpy as np

MIN_ROUNDS = 9_999
_AT_ONCE = 512
_ENOUGH = 50  # divisions that come as far as the true one: p is large and known well


def excess_p_values(
    lost: np.ndarray,
    advantage: np.ndarray,
    stratum: np.ndarray,
    rounds: int = MIN_ROUNDS,
    seed: int = 0,
) -> np.ndarray:
    """One-sided p of each neuron costing advantage samples more than shared ones of their classes.

    A permutation test within strata of a studentised difference of means, which also holds where
    the groups differ in spread (Janssen 1997; Chung and Romano 2013). A neuron leaves the test
    once its p is known to be large (Besag and Clifford 1991).

    Args:
        lost: Margin that each sample loses beyond what it loses to random neurons, ``(N, D)``.
        advantage: Whether it is an advantage sample, ``(N,)`` bool.
        stratum: What advantage and shared samples are matched by, ``(N,)`` integers.
        rounds: Permutations at most; no p is below 1 / (rounds + 1).
        seed: Of the permutations.

    Returns:
        ``(D,)``; NaN where a group has fewer than two samples.
    """
    _, stratum = np.unique(stratum, return_inverse=True)
    size = stratum.max(initial=0) + 1
    wins, shared = (np.bincount(stratum[of], minlength=size) for of in (advantage, ~advantage))
    weight = np.where(shared > 0, wins / np.maximum(shared, 1), 0.0)[stratum]
    if advantage.sum() < 2 or np.count_nonzero(weight[~advantage]) < 2:
        return np.full(lost.shape[1], np.nan)
    spread = lost.std(0)
    scaled = (lost - lost.mean(0)) / np.where(spread > 0, spread, 1.0)
    random = np.random.default_rng(seed)
    done, as_far = np.zeros(lost.shape[1]), np.zeros(lost.shape[1])
    for start in range(0, rounds, _AT_ONCE):
        open_ = np.flatnonzero(as_far < _ENOUGH)
        if not len(open_):
            break
        t = _Studentised(scaled[:, open_], advantage, weight)
        found = t(advantage[None])[0]
        drawn = _shuffled(advantage, stratum, min(_AT_ONCE, rounds - start), random)
        done[open_] += len(drawn)
        as_far[open_] += (t(drawn) >= found - 1e-9 * np.abs(found)).sum(0)
    return (1 + as_far) / (1 + done)


class _Studentised:
    """The difference of two means over its standard error, for many divisions of the samples.

    Args:
        values: ``(N, D)``.
        advantage: One division, ``(N,)``; others have as many advantage samples in each stratum.
        weight: Of each sample if it is a shared one, ``(N,)``.
    """

    def __init__(self, values: np.ndarray, advantage: np.ndarray, weight: np.ndarray) -> None:
        w = weight[:, None]
        parts = [values, values**2, w * values, w**2 * values, (w * values) ** 2]
        self._stack = np.concatenate(parts, 1)
        self._totals = np.split(self._stack.sum(0), len(parts))
        self._wins = int(advantage.sum())
        self._weight = weight[~advantage].sum()
        self._squared = (weight[~advantage] ** 2).sum()

    def __call__(self, advantage: np.ndarray) -> np.ndarray:
        """From divisions ``(B, N)`` bool to t ``(B, D)``."""
        sums = np.split(advantage.astype(np.float64) @ self._stack, len(self._totals), axis=1)
        first = sums[0] / self._wins
        first_error = (sums[1] / self._wins - first**2) / (self._wins - 1)
        rest = [total - part for total, part in zip(self._totals, sums, strict=True)]
        second = rest[2] / self._weight
        second_error = rest[4] - 2 * second * rest[3] + second**2 * self._squared
        error = first_error + second_error / self._weight**2
        return (first - second) / np.sqrt(np.maximum(error, 1e-30))


def _shuffled(
    advantage: np.ndarray, stratum: np.ndarray, rounds: int, random: np.random.Generator
) -> np.ndarray:
    """Other divisions with as many advantage samples in each stratum, ``(rounds, N)`` bool."""
    drawn = np.zeros((rounds, len(advantage)), dtype=bool)
    for one in np.unique(stratum):
        members = np.flatnonzero(stratum == one)
        drawn[:, members] = random.permuted(np.tile(advantage[members], (rounds, 1)), axis=1)
    return drawn
