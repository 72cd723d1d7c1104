"""From sums to the *used* columns of a layer.

Shapes: ``D`` neurons of a layer, ``S`` strata (classes).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special


@dataclass(frozen=True)
class AttributionColumns:
    """The *used* columns of a layer, float64 ``(D,)`` arrays; NaN where undefined.

    Attributes:
        attribution: Mean contribution over ``only_model`` samples.
        low: Lower end of its 95 % interval over samples (Student's t).
        high: Upper end.
        p_value: Two-sided p of a mean of 0.
        contrast: The same mean minus that over ``both`` samples, class by class; classes count as
            often as they have ``only_model`` samples, those without a sample of ``both`` do not.
        contrast_low: Lower end of its 95 % interval (Welch 1947, spread within classes).
        contrast_high: Upper end.
        contrast_t: Its t.
        per_fold: ``attribution`` of each fold, ``(2, D)``.
        n: How many ``only_model`` samples were attributed.
        n_shared: How many of ``both``.
    """

    attribution: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p_value: np.ndarray
    contrast: np.ndarray
    contrast_low: np.ndarray
    contrast_high: np.ndarray
    contrast_t: np.ndarray
    per_fold: np.ndarray
    n: int
    n_shared: int


Strata = tuple[np.ndarray, np.ndarray]  # counts (S, 2), sums of u and v (2, S, 2, D)


@np.errstate(invalid="ignore", divide="ignore")
def columns(
    sums: np.ndarray, counts: np.ndarray, mean: np.ndarray, strata: Strata | None
) -> AttributionColumns:
    """Columns from sums ``(5, 2, 2, D)`` and counts by group and fold, and means ``(D,)``."""
    u, v, uu, uv, vv = sums
    k, kk = u - mean * v, uu - 2 * mean * uv + mean**2 * vv  # sums of k and k^2, (2, 2, D)
    n = counts.sum(1)
    k_mean = _over(k[0].sum(0), n[0])
    spread = kk[0].sum(0) - n[0] * k_mean**2
    se = np.sqrt(_over(_over(np.maximum(spread, 0), n[0] - 1), n[0]))
    dof = max(n[0] - 1, 1)
    half = special.stdtrit(dof, 0.975) * se
    contrast, contrast_half, contrast_t = _contrast(kk.sum(1), mean, strata)
    return AttributionColumns(
        attribution=k_mean,
        low=k_mean - half,
        high=k_mean + half,
        p_value=np.where(se > 0, 2 * special.stdtr(dof, -np.abs(k_mean) / se), np.nan),
        contrast=contrast,
        contrast_low=contrast - contrast_half,
        contrast_high=contrast + contrast_half,
        contrast_t=contrast_t,
        per_fold=_over(k[0], counts[0][:, None]),
        n=int(n[0]),
        n_shared=int(n[1]),
    )


def _contrast(
    squares: np.ndarray, mean: np.ndarray, strata: Strata | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The contrast, half its interval and its t, from sums of k^2 by group ``(2, D)``.

    Post-stratification: group means per class, weighted by the ``only_model`` samples of the class
    where both groups have some. Each group has one variance within classes.
    """
    undefined = np.full(len(mean), np.nan)
    if strata is None:
        return undefined, undefined, undefined
    counts, (u, v) = strata
    totals = u - mean * v  # sums of k, (S, 2, D)
    common = (counts > 0).all(1)
    if not common.any():
        return undefined, undefined, undefined
    weights = counts[common, 0] / counts[common, 0].sum()
    means = totals[common] / counts[common][:, :, None]
    contrast = np.einsum("s,sd->d", weights, means[:, 0] - means[:, 1])
    contrast = np.where(np.isnan(squares).any(0), np.nan, contrast)
    dof = counts.sum(0) - (counts > 0).sum(0)
    between = (totals**2 / np.maximum(counts, 1)[:, :, None]).sum(0)
    variance = _over(np.maximum(squares - between, 0), dof[:, None])
    error = variance * (weights[:, None] ** 2 / counts[common]).sum(0)[:, None]  # squared, (2, D)
    se = np.sqrt(error.sum(0))
    dof = se**4 / (error**2 / np.maximum(dof, 1)[:, None]).sum(0)
    half = special.stdtrit(dof, 0.975) * se
    return contrast, half, np.where(se > 0, contrast / se, np.nan)


def _over(total: np.ndarray, count: np.ndarray | float) -> np.ndarray:
    """``total / count``, NaN where nothing was counted."""
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
