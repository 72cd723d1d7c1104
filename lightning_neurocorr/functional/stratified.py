"""What can be said within classes, from counts, sums and sums of squares per class and outcome.

Shapes: ``D`` neurons, ``C`` classes (or pools of classes), 4 outcome groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

# Squares within classes below this share of all of them are what rounding leaves of equal numbers.
_ROUNDING = 1e-9
_EXPLAINED = 1e-6  # of a neuron's spread, as for every partial correlation


@dataclass(frozen=True)
class CellMoments:
    """Sums of ``y = x - shift`` over the samples of each class and outcome group, float64.

    Attributes:
        counts: Samples, ``(C, 4)``.
        advantage: Sum of their advantage, ``(C, 4)``.
        shift: A provisional mean of each neuron, ``(D,)``.
        sums: Sum of y, ``(C, 4, D)``.
        squares: Sum of y squared, ``(C, 4, D)``.
        by_class: Whether rows are classes or pools of like ones; otherwise all is one row, and
            nothing can be said within classes.
    """

    counts: np.ndarray
    advantage: np.ndarray
    shift: np.ndarray
    sums: np.ndarray
    squares: np.ndarray
    by_class: bool = True

    def __add__(self, other: CellMoments) -> CellMoments:
        """Those of other samples of the same classes, with the same shift, added."""
        names = ("counts", "advantage", "sums", "squares")
        added = {name: getattr(self, name) + getattr(other, name) for name in names}
        return CellMoments(**added, shift=self.shift, by_class=self.by_class)


@dataclass(frozen=True)
class Comparison:
    """Whether a neuron is higher in one outcome group than in another, class by class.

    Attributes:
        r: Partial correlation of activation and group, given the class, ``(D,)``.
        p: One-sided p of being higher, ``(D,)``.
        pairs: See :func:`pairs`.
    """

    r: np.ndarray
    p: np.ndarray
    pairs: float


def group_means(cells: CellMoments) -> tuple[np.ndarray, np.ndarray]:
    """Mean activation per outcome group ``(4, D)``, NaN for an empty one, and counts ``(4,)``."""
    counts = cells.counts.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return cells.shift + cells.sums.sum(0) / counts[:, None], counts


@np.errstate(invalid="ignore", divide="ignore", over="ignore")
def correlation_within(
    cells: CellMoments, comoment: np.ndarray, spread: np.ndarray, advantage_spread: float
) -> tuple[np.ndarray, int]:
    """Pearson's r of neuron and advantage with class means taken out, and the classes seen.

    This is the partial correlation given one-hot classes (Frisch-Waugh-Lovell). NaN where the
    class explains all of either but rounding.

    Args:
        cells: Sums by class.
        comoment: Centred co-moment of neuron and advantage over all samples, ``(D,)``.
        spread: Centred second moment of the neuron over all samples, ``(D,)``.
        advantage_spread: That of the advantage.
    """
    n = cells.counts.sum(1)
    seen = n > 0
    n, a = n[seen], cells.advantage.sum(1)[seen]
    sums, squares = cells.sums.sum(1)[seen], cells.squares.sum((0, 1))
    gap = a / n - a.sum() / n.sum()  # weighted by n they sum to 0, so that no mean of x is needed
    c = comoment - gap @ sums
    xx = squares - (1 / n) @ sums**2
    aa = advantage_spread - float((n * gap**2).sum())
    r = c / (np.sqrt(np.maximum(xx, 0)) * np.sqrt(max(aa, 0.0)))
    explained = ~(xx > _EXPLAINED * spread) | (aa <= _ROUNDING * advantage_spread)
    return np.where(explained | ~np.isfinite(r), np.nan, np.clip(r, -1, 1)), int(seen.sum())


def pairs(cells: CellMoments, one: int, other: int) -> float:
    """How many pairs of samples of a class would tell as much: sum of n1 n0 / (n1 + n0)."""
    n1, n0 = cells.counts[:, one], cells.counts[:, other]
    return float((n1 * n0 / np.maximum(n1 + n0, 1)).sum())


@np.errstate(invalid="ignore", divide="ignore", over="ignore")
def compare(cells: CellMoments, one: int, other: int) -> Comparison:
    """Whether activations are higher in outcome group ``one`` than in ``other``, within classes.

    If the two groups of each class are drawn from it at random, the sum over classes of (sum of x
    in ``one`` - n1 mean_c) has mean 0 and variance n1 n0 / (N (N - 1)) SS_c per class, whatever
    classes look like: the stratified permutation test (Mantel 1963; van Elteren 1960). Where few
    samples are compared with many and activations have a long tail, its normal p is too small on
    the side of the tail; the t with a variance for each group (Welch 1947) is too small on the
    other. The larger p of both counts.
    """
    n1, n0 = cells.counts[:, one], cells.counts[:, other]
    told = (n1 > 0) & (n0 > 0)
    undefined = np.full(len(cells.shift), np.nan)
    if not told.any():
        return Comparison(undefined, undefined, 0.0)
    n1, n0 = n1[told], n0[told]
    n, each = n1 + n0, n1 * n0 / (n1 + n0)
    s1, s0 = cells.sums[told, one], cells.sums[told, other]
    q1, q0 = cells.squares[told, one], cells.squares[told, other]
    total = (s1 + s0) ** 2
    t = (n0 / n) @ s1 - (n1 / n) @ s0
    within = (q1 + q0).sum(0) - (1 / n) @ total
    within = np.where(within > _ROUNDING * (q1 + q0).sum(0), within, np.nan)
    r = np.clip(t / (np.sqrt(within) * np.sqrt(each.sum())), -1, 1)
    weight = each / (n - 1)  # n is 2 at least
    z = t / np.sqrt(np.maximum(weight @ (q1 + q0) - (weight / n) @ total, 0))
    p = np.fmax(special.ndtr(-z), _welch(t, each, (n1, n0), (s1, s0), (q1, q0)))
    return Comparison(r, np.where(np.isnan(r), np.nan, p), float(each.sum()))


def _welch(
    t: np.ndarray,
    each: np.ndarray,
    counts: tuple[np.ndarray, np.ndarray],
    sums: tuple[np.ndarray, np.ndarray],
    squares: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """One-sided p of ``t`` with a variance within classes for each group; NaN where one has none.

    Degrees of freedom by Satterthwaite 1946.
    """
    error, dofs = [], []
    for n, s, q in zip(counts, sums, squares, strict=True):
        dof = float((n - 1).sum())
        spread = np.maximum(q.sum(0) - (1 / n) @ s**2, 0)
        error.append(spread / dof * float((each**2 / n).sum()) if dof else np.nan * spread)
        dofs.append(max(dof, 1.0))
    first, second = error
    dof = (first + second) ** 2 / (first**2 / dofs[0] + second**2 / dofs[1])
    return special.stdtr(dof, -t / np.sqrt(first + second))
