"""What can be said within classes, from counts, sums and sums of squares per class and outcome.

What has a number per class and neuron stays on its device; what has one per neuron leaves it.

Shapes: ``D`` neurons, ``C`` classes (or pools of classes), 4 outcome groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from scipy import special
from torch import Tensor

# Squares within classes below this share of all of them are what rounding leaves of equal numbers.
_ROUNDING = 1e-9
_EXPLAINED = 1e-6  # of a neuron's spread, as for every partial correlation

_MANY = 100  # degrees of freedom of which Student's distribution is nearly normal
_NEURONS_PER_THREAD = 1 << 12  # half a millisecond of Student's distribution


@dataclass(frozen=True)
class CellMoments:
    """Sums of ``y = x - shift`` over the samples of each class and outcome group, float64.

    Attributes:
        counts: Samples, ``(C, 4)``.
        advantage: Sum of their advantage, ``(C, 4)``.
        shift: A provisional mean of each neuron, ``(D,)``.
        sums: Sum of y, ``(C, 4, D)``, where the metric lies, as the next.
        squares: Sum of y squared, ``(C, 4, D)``.
        by_class: Whether rows are classes or pools of like ones; otherwise all is one row, and
            nothing can be said within classes.
    """

    counts: np.ndarray
    advantage: np.ndarray
    shift: np.ndarray
    sums: Tensor
    squares: Tensor
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
        return cells.shift + _here(cells.sums.sum(0)) / counts[:, None], counts


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
    sums = _rows(cells.sums.sum(1), _chosen(seen, cells.sums.device))
    gap = a / n - a.sum() / n.sum()  # weighted by n they sum to 0, so that no mean of x is needed
    to_gap, to_mean = _like(sums, np.stack([gap, 1 / n]))
    of_gap, of_means, squares = _here(
        torch.stack([to_gap @ sums, to_mean @ sums**2, cells.squares.sum((0, 1))])
    )
    c, xx = comoment - of_gap, squares - of_means
    aa = advantage_spread - float((n * gap**2).sum())
    r = c / (np.sqrt(np.maximum(xx, 0)) * np.sqrt(max(aa, 0.0)))
    explained = ~(xx > _EXPLAINED * spread) | (aa <= _ROUNDING * advantage_spread)
    return np.where(explained | ~np.isfinite(r), np.nan, np.clip(r, -1, 1)), int(seen.sum())


def pairs(counts: np.ndarray, one: int, other: int) -> float:
    """How many pairs of samples of a class would tell as much: sum of n1 n0 / (n1 + n0).

    Args:
        counts: Samples, ``(C, 4)``.
        one: An outcome group.
        other: Another.
    """
    n1, n0 = counts[:, one], counts[:, other]
    return float((n1 * n0 / np.maximum(n1 + n0, 1)).sum())


@np.errstate(invalid="ignore", divide="ignore", over="ignore")
def compare_groups(cells: CellMoments, one: int, other: int, *, tested: bool = True) -> Comparison:
    """Whether activations are higher in outcome group ``one`` than in ``other``, within classes.

    If the two groups of each class are drawn from it at random, the sum over classes of (sum of x
    in ``one`` - n1 mean_c) has mean 0 and variance n1 n0 / (N (N - 1)) SS_c per class, whatever
    classes look like: the stratified permutation test (Mantel 1963; van Elteren 1960). Where few
    samples are compared with many and activations have a long tail, its normal p is too small on
    the side of the tail; the t with a variance for each group (Welch 1947) is too small on the
    other. The larger p of both counts.

    Args:
        cells: Sums by class.
        one: The outcome group that may be higher.
        other: The one it is compared with.
        tested: Whether p is wanted, which takes most of the time; else it is NaN.
    """
    n1, n0 = cells.counts[:, one], cells.counts[:, other]
    told = (n1 > 0) & (n0 > 0)
    undefined = np.full(len(cells.shift), np.nan)
    if not told.any():
        return Comparison(undefined, undefined, 0.0)
    n1, n0 = n1[told], n0[told]
    n, each = n1 + n0, n1 * n0 / (n1 + n0)
    weight = each / (n - 1)  # n is 2 at least
    rows = _chosen(told, cells.sums.device)
    s1, s0 = (_rows(cells.sums[:, group], rows) for group in (one, other))
    q1, q0 = (_rows(cells.squares[:, group], rows) for group in (one, other))
    weights = np.stack([n0 / n, n1 / n, 1 / n, weight, weight / n, 1 / n1, 1 / n0])
    to_one, to_other, to_mean, weight, to_means, to_ones, to_others = _like(s1, weights)
    total, squares = (s1 + s0) ** 2, q1 + q0
    sums = [to_one @ s1 - to_other @ s0, squares.sum(0), to_mean @ total]
    if tested:
        sums += [weight @ squares - to_means @ total]
        sums += [q1.sum(0) - to_ones @ s1**2, q0.sum(0) - to_others @ s0**2]
    t, all_squares, mean_squares, *tests = _here(torch.stack(sums))  # one wait for all
    within = all_squares - mean_squares
    within = np.where(within > _ROUNDING * all_squares, within, np.nan)
    r = np.clip(t / (np.sqrt(within) * np.sqrt(each.sum())), -1, 1)
    if not tested:
        return Comparison(r, undefined, float(each.sum()))
    variance, *spreads = tests
    z = t / np.sqrt(np.maximum(variance, 0))
    p = np.fmax(special.ndtr(-z), _welch(t, each, (n1, n0), spreads))
    return Comparison(r, np.where(np.isnan(r), np.nan, p), float(each.sum()))


def _welch(
    t: np.ndarray, each: np.ndarray, counts: Sequence[np.ndarray], spreads: Sequence[np.ndarray]
) -> np.ndarray:
    """One-sided p of ``t`` with a variance within classes for each group; NaN where one has none.

    Degrees of freedom by Satterthwaite 1946.
    """
    error, dofs = [], []
    for n, spread in zip(counts, spreads, strict=True):
        dof = float((n - 1).sum())
        spread = np.maximum(spread, 0)
        error.append(spread / dof * float((each**2 / n).sum()) if dof else np.nan * spread)
        dofs.append(max(dof, 1.0))
    first, second = error
    dof = (first + second) ** 2 / (first**2 / dofs[0] + second**2 / dofs[1])
    return _student(dof, -t / np.sqrt(first + second))


def _student(dof: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Student's distribution function.

    Of many degrees of freedom, and not far out, by the normal number that is as likely (Hill 1970,
    "Algorithm 395: Student's t-distribution"): to 2e-11, in a seventh of the time.
    """
    a = dof - 0.5
    y = a * np.log1p(t * t / dof)
    b = 48 * a * a
    more = (((-0.4 * y - 3.3) * y - 24) * y - 85.5) / (0.8 * y * y + 100 + b) + y + 3
    p = special.ndtr(np.copysign((more / b + 1) * np.sqrt(y), t))
    rest = ~((dof >= _MANY) & (t * t <= dof / 4))
    p[rest] = _exact_student(dof[rest], t[rest])
    return p


def _exact_student(dof: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The same, on as many threads as PyTorch may use."""
    threads = min(torch.get_num_threads(), len(t) // _NEURONS_PER_THREAD)
    if threads < 2:
        return special.stdtr(dof, t)
    with ThreadPoolExecutor(threads) as pool:
        parts = pool.map(special.stdtr, *(np.array_split(part, threads) for part in (dof, t)))
        return np.concatenate(list(parts))


def _chosen(rows: np.ndarray, device: torch.device) -> Tensor | None:
    """The rows that are chosen; None for all."""
    return None if rows.all() else torch.from_numpy(rows.nonzero()[0]).to(device)


def _rows(values: Tensor, chosen: Tensor | None) -> Tensor:
    """Some rows, copied only where these are not all."""
    return values if chosen is None else values[chosen]


def _like(values: Tensor, numbers: np.ndarray) -> Tensor:
    """Numbers where ``values`` lie."""
    return torch.from_numpy(numbers).to(values.device)


def _here(values: Tensor) -> np.ndarray:
    return values.cpu().numpy()
