"""Whether neurons are higher in one outcome group than in another, class by class.

If the two groups of each class are drawn from it at random, the sum over classes of (sum of x in
the one - n1 mean_c) has mean 0 and variance n1 n0 / (N (N - 1)) SS_c per class, whatever classes
look like: the stratified permutation test (Mantel 1963; van Elteren 1960). Where few samples are
compared with many and activations have a long tail, its normal p is too small on the side of the
tail; the t with a variance for each group (Welch 1947) is too small on the other. The larger p of
both counts.

All comparisons are worked out together: on a GPU each operator costs more than its arithmetic.

Shapes: ``D`` neurons, ``d`` of a block, ``C`` classes, 4 outcome groups; ``2, 2`` are the groups in
which one side is better, and those in which both are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr.functional.advantage import BOTH, NEITHER, ONLY_BASELINE, ONLY_MODEL
from lightning_neurocorr.functional.student import nearly_student, normal, student

_ONES, _OTHERS = (ONLY_MODEL, ONLY_BASELINE), (BOTH, NEITHER)
_ONE, _OTHER = slice(1, 3), slice(0, 4, 3)  # the same as slices, which copy nothing

# Squares within classes below this share of all of them are what rounding leaves of equal numbers.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Comparison:
    """Whether a neuron is higher in one outcome group than in another, class by class.

    Attributes:
        r: Partial correlation of activation and group, given the class, ``(D,)``.
        p: One-sided p of being higher, ``(D,)``.
        weakest: The smallest r of the halves that have one, ``(D,)``.
        pairs: See :func:`pairs`.
    """

    r: np.ndarray
    p: np.ndarray
    weakest: np.ndarray
    pairs: float


def pairs(counts: np.ndarray, one: int, other: int) -> float:
    """How many pairs of samples of a class would tell as much: sum of n1 n0 / (n1 + n0).

    Args:
        counts: Samples, ``(C, 4)``.
        one: An outcome group.
        other: Another.
    """
    n1, n0 = counts[:, one], counts[:, other]
    return float((n1 * n0 / np.maximum(n1 + n0, 1)).sum())


class Weights(NamedTuple):
    """What classes count for in sums over them; 0 where a class lacks one of the two groups.

    Attributes:
        one: Of the group that may be higher, ``(4, 2, 2, C)``: its sums in the gap, its squares in
            all squares and in the variance, its squared sums in its own spread.
        other: Of the group it is compared with, likewise.
        both: Of the squared sums of both groups in the squares and the variance, ``(2, 2, 2, C)``.
        known: Without neurons, ``(5, 2, 2, 1)``: pairs, and of each group the degrees of freedom
            and what its spread counts for.
    """

    one: Tensor
    other: Tensor
    both: Tensor
    known: Tensor


def weights_of(scopes: Sequence[np.ndarray], device: torch.device) -> list[Weights]:
    """The weights of several sets of samples, from their counts ``(C, 4)``, in one transfer."""
    found = _weights(np.stack(scopes))
    flat = torch.from_numpy(np.concatenate([part.ravel() for part in found])).to(device)
    sent = flat.split([part.size for part in found])
    views = [one.view(part.shape) for one, part in zip(sent, found, strict=True)]
    return [Weights(*(view[i] for view in views)) for i in range(len(scopes))]


def _weights(counts: np.ndarray) -> tuple[np.ndarray, ...]:
    """From counts ``(S, C, 4)``, each with a leading dimension for the sets of samples."""
    n1, n0 = counts.swapaxes(1, 2)[:, _ONE, None], counts.swapaxes(1, 2)[:, None, _OTHER]
    told = ((n1 > 0) & (n0 > 0)).astype(np.float64)
    n, first, second = np.maximum(n1 + n0, 2), np.maximum(n1, 1), np.maximum(n0, 1)
    each = told * n1 * n0 / n
    weight = each / (n - 1)
    factors = each, told * (n1 - 1), told * (n0 - 1), each**2 / first, each**2 / second
    return (
        np.stack([told * n0 / n, told, weight, told / first], 1),
        np.stack([told * n1 / n, told, weight, told / second], 1),
        np.stack([told / n, weight / n], 1),
        np.stack(factors, 1).sum(-1, keepdims=True),
    )


class _Sums(NamedTuple):
    """Sums over classes ``(2, 2, d)``.

    Attributes:
        gap: Of what the one group has more than its share.
        squares: Of squares around the shift.
        within: Of squares around the means of classes.
        variance: Where it is tested, the variance of the gap if groups are drawn at random.
        spreads: Likewise, of squares around the means of classes in each group.
    """

    gap: Tensor
    squares: Tensor
    within: Tensor
    variance: Tensor
    spreads: tuple[Tensor, Tensor] | None = None


def _sums(cells: tuple[Tensor, Tensor], weights: Weights, *, tested: bool) -> _Sums:
    """From sums of y and of y squared, ``(C, 4, d)``."""
    (one, other), (squares, others) = (
        (part.transpose(0, 1)[_ONE], part.transpose(0, 1)[_OTHER]) for part in cells
    )  # (2, C, d) each
    einsum, kinds = torch.einsum, 2 if tested else 1
    gap = einsum("ijc,icd->ijd", weights.one[0], one)
    gap -= einsum("ijc,jcd->ijd", weights.other[0], other)
    of_one = einsum("kijc,icd->kijd", weights.one[1 : 1 + kinds], squares)
    of_other = einsum("kijc,jcd->kijd", weights.other[1 : 1 + kinds], others)
    around_shift = of_one + of_other
    both = one.new_empty(2, *other.shape)  # in the order that a product takes without a copy
    torch.add(one[:, None], other, out=both).square_()
    around_means = around_shift - einsum("kijc,ijcd->kijd", weights.both[:kinds], both)
    spreads = None
    if tested:
        spreads = (
            of_one[0] - einsum("ijc,icd->ijd", weights.one[3], one.square()),
            of_other[0] - einsum("ijc,jcd->ijd", weights.other[3], other.square()),
        )
    return _Sums(gap, around_shift[0], around_means[0], around_means[-1], spreads)


def compare(
    scopes: Sequence[tuple[Tensor, Tensor]], weights: Sequence[Weights]
) -> tuple[Tensor, Tensor]:
    """Compare groups of a block of neurons.

    Args:
        scopes: Sums of y and of y squared ``(C, 4, d)`` over all samples; and over each half, where
            there are several.
        weights: The weights of each.

    Returns:
        r, the smallest r of the halves, and p, ``(12, d)``. And what p follows from where it is NaN
        and r is not, because Student's distribution has to be exact: the normal p, -t and its
        degrees of freedom, ``(12, d)``.
    """
    whole, *halves = (
        _sums(cells, each, tested=not i)
        for i, (cells, each) in enumerate(zip(scopes, weights, strict=True))
    )
    r = _partial_r((whole, *halves), weights)
    weakest = reduce(torch.fmin, r[1:]) if halves else r[0]
    by_normal = normal(whole.gap / -whole.variance.clamp_min(0).sqrt())
    t, dof = _welch(whole, weights[0])
    p = torch.maximum(by_normal, nearly_student(t, dof))  # NaN if either is
    p = torch.where(t.isnan(), by_normal, p)
    known, behind = [r[0], weakest, p], [by_normal, t, dof]
    return torch.stack(known).flatten(0, 2), torch.stack(behind).flatten(0, 2)


def _partial_r(found: Sequence[_Sums], weights: Sequence[Weights]) -> Tensor:
    """Of all sets of samples, ``(S, 2, 2, d)``."""
    gap, squares, within = (torch.stack(part) for part in list(zip(*found, strict=True))[:3])
    within = torch.where(within > ROUNDING * squares, within, torch.nan)
    pairs = torch.stack([each.known[0] for each in weights])
    return (gap / (within.sqrt_() * pairs.sqrt())).clamp_(-1, 1)


def _welch(found: _Sums, weights: Weights) -> tuple[Tensor, Tensor]:
    """Where each group has its own variance within classes: -t, and its degrees of freedom.

    NaN where a group has no variance. Degrees of freedom by Satterthwaite 1946.
    """
    _, *dofs, first, second = weights.known
    errors = [
        torch.where(dof > 0, spread.clamp_min(0) / dof * factor, torch.nan)
        for spread, dof, factor in zip(found.spreads or (), dofs, (first, second), strict=True)
    ]
    error = errors[0] + errors[1]
    parts = [one**2 / dof for one, dof in zip(errors, dofs, strict=True)]
    return found.gap / -error.sqrt(), error**2 / (parts[0] + parts[1])


def read_comparisons(
    known: np.ndarray, behind: Callable[[], np.ndarray], counts: np.ndarray
) -> dict[tuple[int, int], Comparison]:
    """The comparisons by their groups, on the host.

    Args:
        known: What :func:`compare` found first, of all neurons, ``(12, D)``.
        behind: Gives what it found second.
        counts: Samples, ``(C, 4)``.
    """
    r, weakest, p = known.reshape(3, 2, 2, -1)
    unsettled = np.isnan(p) & ~np.isnan(r)
    p[np.isnan(r)] = np.nan
    if unsettled.any():
        by_normal, t, dof = (row[unsettled] for row in behind().reshape(3, 2, 2, -1))
        p[unsettled] = np.fmax(by_normal, student(t, dof))
    return {
        (one, other): Comparison(r[i, j], p[i, j], weakest[i, j], pairs(counts, one, other))
        for i, one in enumerate(_ONES)
        for j, other in enumerate(_OTHERS)
    }
