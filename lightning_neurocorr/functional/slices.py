"""Where one of the two is better: parts of the data found on one half and tested on the other.

Shapes: ``N`` samples, ``V`` words. The advantage is taken less the mean of the true class, so that
words which only stand for classes explain nothing. Where the model is good or weak whoever it is
compared with, one of the two is better too: a test of its own says whether a slice is also one of
this baseline.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lightning_neurocorr.functional.advantage import BOTH, NEITHER, ONLY_BASELINE, ONLY_MODEL
from lightning_neurocorr.functional.inference import mcnemar_p

# Fewer samples make no slice; a smaller advantage is not worth a name.
MIN_SAMPLES, MIN_ADVANTAGE = 30, 0.1

# Either half needs as many samples with an advantage, or there is nothing to find.
MIN_ADVANTAGE_SAMPLES = 25

_BEAM, _DEPTH, _MOST = 20, 3, 8

# Of slices that are nearly as good, the one with the fewest words.
_NEARLY = 0.9

_ALPHA = 0.025  # per direction


@dataclass(frozen=True)
class Slice:
    """A part of the data in which one of the two is better, measured on the second half.

    Attributes:
        words: Indices of the words that all of its samples have.
        direction: 1 where the model is better than elsewhere, -1 where the baseline is.
        members: Which of all samples are in it, ``(N,)`` bool.
        n: Samples of the second half in it.
        advantage: Their mean advantage.
        low: Lower end of its 95 % interval.
        high: Upper end.
        wins: Of them, those that only the model gets right.
        losses: Of them, those that only the baseline gets right.
        p: The larger of two: a one-sided test against other samples of the same classes, and
            McNemar's test inside.
        p_specific: One-sided, whether among samples that the model gets right (for -1: wrong) the
            baseline is wrong (for -1: right) more often inside than elsewhere. Answers of a
            baseline that are shuffled within the class fail it.
    """

    words: tuple[int, ...]
    direction: int
    members: np.ndarray
    n: int
    advantage: float
    low: float
    high: float
    wins: int
    losses: int
    p: float
    p_specific: float


@dataclass(frozen=True)
class Side:
    """By how much one of the two is better at each sample than its class lets expect.

    Attributes:
        direction: 1 for the model, -1 for the baseline.
        advantage: 1, 0 or -1, ``(N,)``.
        excess: The advantage less that of the class, times the direction, ``(N,)``.
        among: Samples that the model gets right (for -1: wrong), ``(N,)`` bool.
        won: Of them, those that the baseline gets wrong (for -1: right), ``(N,)`` bool.
        classes: Class ids, ``(N,)``.
    """

    direction: int
    advantage: np.ndarray
    excess: np.ndarray
    among: np.ndarray
    won: np.ndarray
    classes: np.ndarray

    @classmethod
    def of(cls, outcome: np.ndarray, classes: np.ndarray, rows: np.ndarray, direction: int) -> Side:
        """From outcome groups ``(N,)``; means of a class are those among ``rows``."""
        advantage = advantage_of(outcome)
        won = outcome == (ONLY_MODEL if direction > 0 else ONLY_BASELINE)
        among = won | (outcome == (BOTH if direction > 0 else NEITHER))
        excess = direction * less_class(advantage, classes, rows)
        return cls(direction, advantage, excess, among, won, classes)


def advantage_of(outcome: np.ndarray) -> np.ndarray:
    """1 where only the model is right, -1 where only the baseline is, ``(N,)``."""
    return (outcome == ONLY_MODEL).astype(int) - (outcome == ONLY_BASELINE).astype(int)


def too_few(advantage: np.ndarray, second_half: np.ndarray) -> bool:
    """Whether a half has too few samples with an advantage to find or test a slice."""
    counts = [int((advantage[half] != 0).sum()) for half in (~second_half, second_half)]
    return min(counts) < MIN_ADVANTAGE_SAMPLES


def find_slices(
    words: np.ndarray,
    outcome: np.ndarray,
    classes: np.ndarray,
    second_half: np.ndarray,
    direction: int,
) -> list[Slice]:
    """Conjunctions of up to three words in which the advantage is larger than elsewhere.

    Found by a beam search on the first half and tested on the second, one after the other, each
    without the samples of those before; the first that fails is the last that is tried, so that no
    correction is needed.

    Args:
        words: ``(N, V)``: 1, 0, or NaN where unknown.
        outcome: Outcome groups ``(N,)``.
        classes: Class ids ``(N,)``.
        second_half: ``(N,)`` bool.
        direction: 1 to find where the model is better, -1 for the baseline.

    Returns:
        Those that hold, in the order found.
    """
    found: list[Slice] = []
    side = Side.of(outcome, classes, ~second_half, direction)
    if not words.shape[1] or too_few(side.advantage, second_half):
        return found
    left = np.ones(len(outcome), dtype=bool)
    while len(found) < _MOST:
        rows = left & ~second_half
        chosen = _search(words[rows], side.excess[rows])
        if chosen is None:
            break
        members = left & (words[:, chosen] == 1).all(1)
        known = left & np.isfinite(words[:, chosen]).all(1)
        tested = judge(members, known & second_half, side, tuple(chosen))
        if tested is None or tested.p > _ALPHA:
            break
        found.append(tested)
        left &= ~members
    return [part for part in found if abs(part.advantage) >= MIN_ADVANTAGE]


def judge(
    members: np.ndarray, rows: np.ndarray, side: Side, words: Sequence[int] = ()
) -> Slice | None:
    """A slice with what is measured on some samples; None where it has too few there.

    Args:
        members: Samples of the slice, ``(N,)`` bool.
        rows: Samples to measure it on, ``(N,)`` bool.
        side: Who is to be better.
        words: Its words.
    """
    inside, outside = members & rows, ~members & rows
    n = int(inside.sum())
    if n < MIN_SAMPLES // 2 or outside.sum() < 2:
        return None
    d, direction = side.advantage[inside].astype(float), side.direction
    among = rows & side.among
    better = higher(direction * side.advantage[rows], members[rows], side.classes[rows])
    wins, losses = int((d > 0).sum()), int((d < 0).sum())
    sided = mcnemar_p(wins, losses) if direction * (wins - losses) > 0 else 1.0
    half = 1.96 * d.std(ddof=1) / np.sqrt(n)
    return Slice(
        tuple(int(w) for w in words),
        direction,
        members,
        n,
        float(d.mean()),
        max(-1.0, float(d.mean() - half)),
        min(1.0, float(d.mean() + half)),
        wins,
        losses,
        p=max(better, sided),
        p_specific=higher(side.won[among], members[among], side.classes[among]),
    )


def higher(values: np.ndarray, inside: np.ndarray, classes: np.ndarray) -> float:
    """One-sided p of whether values are higher inside than among others of their class.

    The stratified permutation test: if samples inside are drawn at random from each class, the sum
    over classes of (sum of values inside - k mean_c) has mean 0 and variance k (n - k) / (n (n -
    1)) SS_c, n and k samples of the class and inside. Of 0 and 1 that is the test of Mantel &
    Haenszel, "Statistical aspects of the analysis of data from retrospective studies of disease",
    1959, without their correction for continuity.

    Args:
        values: ``(n,)``.
        inside: ``(n,)`` bool.
        classes: ``(n,)``.

    Returns:
        p; 1 where no class tells.
    """
    _, group = np.unique(classes, return_inverse=True)
    n, k = np.bincount(group), np.bincount(group, inside)
    y = values - (np.bincount(group, values) / n)[group]
    squares = np.bincount(group, y**2)
    variance = (k * (n - k) / np.maximum(n * (n - 1), 1) * squares).sum()
    return float(stats.norm.sf(y[inside].sum() / np.sqrt(variance))) if variance else 1.0


def less_class(advantage: np.ndarray, classes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Columns less their mean in the class among ``rows``; that of all for a class without.

    Args:
        advantage: ``(N,)``, or several columns ``(N, k)``.
        classes: Class ids ``(N,)``.
        rows: ``(N,)`` bool.
    """
    values, group = np.unique(classes, return_inverse=True)
    columns = advantage.reshape(len(advantage), -1).T
    counts = np.bincount(group[rows], minlength=len(values))
    means = np.empty((len(values), len(columns)))
    for k, column in enumerate(columns):
        sums = np.bincount(group[rows], column[rows], minlength=len(values))
        overall = column[rows].mean() if rows.any() else 0.0
        means[:, k] = np.where(counts > 0, sums / np.maximum(counts, 1), overall)
    return advantage - means[group].reshape(advantage.shape)


def _search(words: np.ndarray, excess: np.ndarray) -> list[int] | None:
    """The words of the best conjunction, or None where none is large enough."""
    has, known = words == 1, np.isfinite(words)
    beam: list[tuple[float, tuple[int, ...]]] = []
    every: list[tuple[float, tuple[int, ...]]] = []
    level: list[tuple[int, ...]] = [()]
    for _ in range(_DEPTH):
        beam = list(_extended(level, has, known, excess))
        beam.sort(key=lambda found: (-found[0], found[1]))
        beam = beam[:_BEAM]
        every += beam
        level = [chosen for _, chosen in beam]
    if not every:
        return None
    best = max(z for z, _ in every)
    if not best > 0:
        return None
    near = [(len(chosen), -z, chosen) for z, chosen in every if z >= _NEARLY * best]
    return list(min(near)[2])


def _extended(
    level: Sequence[tuple[int, ...]], has: np.ndarray, known: np.ndarray, excess: np.ndarray
) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Each conjunction with one word more that it does not have, and its z."""
    seen = set()
    for chosen in level:
        base = has[:, chosen].all(1)
        sure = known[:, chosen].all(1)
        inside = has[base].astype(float)
        n = inside.sum(0)
        part = inside.T @ excess[base]
        told = known[sure].astype(float)
        total, squares = told.T @ excess[sure], told.T @ excess[sure] ** 2
        z = _z(part, n, total, squares, told.sum(0))
        for v in np.flatnonzero((n >= MIN_SAMPLES) & np.isfinite(z)):
            longer = tuple(sorted((*chosen, int(v))))
            if v not in chosen and longer not in seen and (not chosen or n[v] < base.sum()):
                seen.add(longer)
                yield float(z[v]), longer


def _z(part, n, total, squares, samples):
    """Z of the mean of ``n`` samples against the others, with the variance pooled."""
    rest = samples - n
    with np.errstate(invalid="ignore", divide="ignore"):
        one, other = part / n, (total - part) / rest
        spread = (squares - n * one**2 - rest * other**2) / (samples - 2)
        return (one - other) / np.sqrt(spread * (1 / n + 1 / rest))
