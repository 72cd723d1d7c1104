"""First and second moments of many neurons and a few columns, and the correlations they give.

All moments are float64; what cannot be computed is NaN, never 0.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

# Of a second moment, less is what rounding leaves where controls explain it. And of the distance of
# a fold's mean from that of all, squared, less is what float64 sums of a batch leave.
_ROUNDED, _SUMMED = 1e-6, 1e-12


@dataclass(frozen=True)
class Moments:
    """First and second moments of ``D`` neurons and ``k`` columns, float64, mergeable without loss.

    Every field may have one leading dimension, the folds.

    Attributes:
        n: Number of samples, ``()``.
        w: Means of the columns, ``(k,)``.
        ww: Centred co-moments of the columns, ``(k, k)``.
        mean: Means of the neurons, ``(D,)``.
        m2: Centred second moments of the neurons, ``(D,)``.
        active: Number of samples in which the neuron is not 0, ``(D,)``.
        c: Centred co-moments of columns and neurons, ``(k, D)``.
    """

    n: Tensor
    w: Tensor
    ww: Tensor
    mean: Tensor
    m2: Tensor
    active: Tensor
    c: Tensor

    def fold(self, index: int) -> Moments:
        """The moments of one fold."""
        return Moments(*(getattr(self, field.name)[index] for field in fields(self)))

    def neurons(self, chosen: slice) -> Moments:
        """The moments of some neurons, views of these."""
        if chosen.start == 0 and chosen.stop >= self.mean.shape[-1]:
            return self
        rows = (part[..., chosen] for part in (self.mean, self.m2, self.active, self.c))
        return Moments(self.n, self.w, self.ww, *rows)


def merge_moments_(a: Moments, b: Moments) -> None:
    """Add ``b``, the moments of other samples, to ``a`` in place."""
    step = merge_step(a, b.n, b.w)
    merge_neurons_(a, b, step)
    merge_shared_(a, step, b.n, b.ww)


class MergeStep(NamedTuple):
    """What all neurons share where other samples are merged.

    Attributes:
        share: The share of the other samples in the union, ``(1,)``; 0 where there are none.
        weight: ``share`` times the number of samples before.
        dw: What the means of the columns of the other samples have more, ``(k,)``.
    """

    share: Tensor
    weight: Tensor
    dw: Tensor


def merge_step(a: Moments, n: Tensor, w: Tensor) -> MergeStep:
    """How ``a`` goes on with ``n`` other samples, whose columns have the means ``w``."""
    share = (n / (a.n + n).clamp_min(1))[..., None]
    return MergeStep(share, share * a.n[..., None], w - a.w)


def merge_neurons_(a: Moments, b: Moments, step: MergeStep) -> None:
    """Add the part of ``b`` that each neuron has to ``a`` in place, before :func:`merge_shared_`.

    Formulas: Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance".
    """
    dm = b.mean - a.mean
    a.m2.add_(b.m2).addcmul_(step.weight * dm, dm)
    a.c.add_(b.c).addcmul_((step.weight * step.dw)[..., None], dm[..., None, :])
    a.active.add_(b.active)
    a.mean.addcmul_(step.share, dm)  # exact for the first samples: 0 + 1 * (b.mean - 0)


def merge_shared_(a: Moments, step: MergeStep, n: Tensor, ww: Tensor) -> None:
    """Add the part that all neurons share of the moments of other samples to ``a`` in place."""
    dw = step.dw
    a.ww.add_(ww).addcmul_((step.weight * dw)[..., None], dw[..., None, :])
    a.w.addcmul_(step.share, dw)
    a.n.add_(n)


def levelled_folds(total: Moments, folds: Moments, counted: bool) -> Moments:
    """The folds, in which a neuron that is constant there is exactly so.

    A batch is added around one provisional mean for all folds. Of a neuron that varies in one fold
    only, rounding may leave a little spread in another.

    Args:
        total: The moments of all of them.
        folds: Each of them.
        counted: Whether ``active`` was counted, which says exactly where a neuron is always 0.
    """
    variance = total.m2 / total.n.clamp_min(1)
    apart = (folds.mean - total.mean).square_().maximum(variance)
    constant = folds.m2 <= apart.mul_(_SUMMED * folds.n[:, None])
    if counted:
        constant |= folds.active == 0
    c = folds.c.masked_fill(constant[:, None], 0)
    return replace(folds, m2=folds.m2.masked_fill(constant, 0), c=c)


def correlation(moments: Moments, column: int = 0) -> Tensor:
    """Pearson's r of every neuron with a column.

    Args:
        moments: Of neurons and columns.
        column: Which column.

    Returns:
        ``(D,)``; NaN where one of the two is constant or not finite.
    """
    return _ratio(moments.c[column], moments.m2, moments.ww[column, column])


def correlation_within(moments: Moments, groups: slice, column: int = 0) -> tuple[Tensor, int]:
    """Pearson's r of neuron and column with the means of groups taken out, and the groups seen.

    This is the partial correlation given one-hot columns ``groups`` (Frisch-Waugh-Lovell): what
    remains of both when each is compared with the mean of its own group. Samples in none of the
    groups are a group of their own.

    Args:
        moments: Of neurons and columns.
        groups: The one-hot columns.
        column: Which column is correlated.

    Returns:
        r ``(D,)``, NaN where the groups explain all of one of the two, and how many groups have
        samples: one more than the controls of this r.
    """
    p, cg, wg = moments.w[groups], moments.c[groups], moments.ww[groups, column]
    rest = 1 - p.sum()
    if float(rest * moments.n) > 0.5:  # co-moments over all groups sum to 0
        p, cg = torch.cat([p, rest[None]]), torch.cat([cg, -cg.sum(0, keepdim=True)])
        wg = torch.cat([wg, -wg.sum()[None]])
    seen = p > 0
    weight = torch.where(seen, 1 / (moments.n * p).clamp_min(0.5), 0.0)  # C_g = n_g (mean_g - mean)
    c = moments.c[column] - (weight * wg) @ cg
    m2 = moments.m2 - weight @ (cg * cg)
    ww = moments.ww[column, column] - (weight * wg * wg).sum()
    return _partial_ratio(c, m2, ww, moments, column), int(seen.sum())


def correlation_given(moments: Moments, given: int, column: int = 0) -> Tensor:
    """Pearson's r of neuron and column with the linear effect of another column taken out.

    Args:
        moments: Of neurons and columns.
        given: The column whose effect is taken out; a constant one has none.
        column: Which column is correlated.

    Returns:
        ``(D,)``; NaN where ``given`` explains all of one of the two.
    """
    spread = moments.ww[given, given]
    if not spread > 1e-20 * moments.n * moments.w[given] ** 2:
        return correlation(moments, column)
    slope = moments.ww[column, given] / spread
    c = moments.c[column] - slope * moments.c[given]
    m2 = moments.m2 - moments.c[given] ** 2 / spread
    ww = moments.ww[column, column] - slope * moments.ww[column, given]
    return _partial_ratio(c, m2, ww, moments, column)


def _ratio(c: Tensor, m2: Tensor, ww: Tensor) -> Tensor:
    # Two roots, because the product under one could overflow.
    r = c / (m2.clamp_min(0).sqrt() * ww.clamp_min(0).sqrt())
    valid = (m2 > 0) & (m2 < torch.inf) & (ww > 0)
    return torch.where(valid, r.clamp(-1, 1), torch.nan)


def _partial_ratio(c: Tensor, m2: Tensor, ww: Tensor, moments: Moments, column: int) -> Tensor:
    """As :func:`_ratio`, NaN where the controls explain all but rounding."""
    explained = (m2 <= _ROUNDED * moments.m2) | (ww <= 1e-9 * moments.ww[column, column])
    return torch.where(explained, torch.nan, _ratio(c, m2, ww))


def group_means(moments: Moments, group: int) -> Tensor:
    """Mean activation where the indicator column ``group`` is 1, ``(D,)``; NaN if it never is."""
    n_g = moments.n * moments.w[group]
    return torch.where(n_g > 0.5, moments.mean + moments.c[group] / n_g, torch.nan)
