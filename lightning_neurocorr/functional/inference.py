"""What a correlation would be by chance: intervals, p, and correction for many neurons."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from scipy import special
from scipy.interpolate import CubicHermiteSpline

from lightning_neurocorr.functional.advantage import ONLY_MODEL

# Below this many expected co-active samples the far tail of the t test is much too optimistic.
MIN_EXPECTED_COACTIVE = 25.0

# Of many r, log p is worked out at points this far apart in Fisher's z over its standard error, up
# to where p is 1e-300 and less, and only where r are this many times as many as points.
_STEP, _FAR, _MANY = 1 / 64, 40.0, 4


def fisher_interval(
    r: np.ndarray, n: float, controls: int = 0, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Confidence interval of r by Fisher's z (1921), with ``n - 3 - controls`` degrees of freedom.

    Args:
        r: Correlations, of any shape.
        n: Samples they were computed on.
        controls: Columns whose effect was taken out of them.
        confidence: Share of intervals that hold the true value.

    Returns:
        Lower and upper ends, of the shape of ``r``; NaN where there are no degrees of freedom.
    """
    r = np.asarray(r, dtype=np.float64)
    dof = n - 3 - controls
    if dof <= 0:
        return np.full_like(r, np.nan), np.full_like(r, np.nan)
    half = special.ndtri(0.5 + confidence / 2) / math.sqrt(dof)
    with np.errstate(divide="ignore"):
        z = np.arctanh(np.clip(r, -1, 1))
    return np.tanh(z - half), np.tanh(z + half)


def log_p_value(r: np.ndarray, n: float, controls: int = 0) -> np.ndarray:
    """Natural log of the two-sided p of r under no correlation, far beyond the smallest float.

    t = r sqrt(dof / (1 - r^2)) with dof = n - 2 - controls gives p = I_x(a, 1/2), the regularised
    incomplete beta function at x = 1 - r^2, a = dof / 2. Of many r it is read from a curve through
    some points, which is as exact.

    Args:
        r: Correlations, of any shape.
        n: Samples they were computed on.
        controls: Columns whose effect was taken out of them.

    Returns:
        Of the shape of ``r``; NaN where there are no degrees of freedom.
    """
    r = np.minimum(np.abs(np.asarray(r, dtype=np.float64)), 1.0)
    a = (n - 2 - controls) / 2
    if a <= 0:
        return np.full_like(r, np.nan)
    with np.errstate(all="ignore"):
        z = np.arctanh(r) * math.sqrt(2 * a)  # nearly normal
        near = z < _FAR
        points = _STEP * np.arange(int(z[near].max(initial=0) / _STEP) + 2)
        if r.size < _MANY * len(points):
            return _log_beta(r, (1 - r) * (1 + r), a)
        found, rest = np.empty_like(r), r[~near]
        found[near] = _along(points, z[near], a)
        found[~near] = _log_beta(rest, (1 - rest) * (1 + rest), a)
    return found


def _along(points: np.ndarray, z: np.ndarray, a: float) -> np.ndarray:
    """Log p at ``z`` by cubic polynomials between points with the right values and slopes.

    They are off by less than 3e-10: log p has small fourth derivatives in z.
    """
    scale = math.sqrt(2 * a)
    x = np.cosh(points / scale) ** -2
    log_p = _log_beta(np.tanh(points / scale), x, a)
    slopes = -2 / scale * np.exp(a * np.log(x) - special.betaln(a, 0.5) - log_p)
    left = (z / _STEP).astype(np.int64)
    cubics = CubicHermiteSpline(points, log_p, slopes).c
    return np.polyval(cubics.take(left, 1), z - points[left])  # the spline itself looks for `left`


def _log_beta(r: np.ndarray, x: np.ndarray, a: float) -> np.ndarray:
    """Log I_x(a, 1/2) at x = 1 - r^2.

    Where that underflows, its expansion x^a / (a B(a, 1/2) |r|) (1 - y/2 / (a+1) + y^2 3/4 /
    ((a+1)(a+2)) - ...), y = x / r^2 (DLMF 8.17.7 and 15.8.1).
    """
    found = np.log(special.betainc(a, 0.5, x))
    far = ~(found > -600)  # few are
    return np.where(far, _log_tail(r, x, a), found) if far.any() else found


def _log_tail(r: np.ndarray, x: np.ndarray, a: float) -> np.ndarray:
    """The expansion of :func:`_log_beta`."""
    y, term, total = x / r**2, np.ones_like(r), np.ones_like(r)
    for k in range(20):
        term = term * (-y * (k + 0.5) / (a + 1 + k))
        total = total + term
    return a * np.log(x) - math.log(a) - special.betaln(a, 0.5) - np.log(r) + np.log(total)


def p_value(r: np.ndarray, n: float, controls: int = 0) -> np.ndarray:
    """Two-sided p of r under no correlation (t test, ``n - 2 - controls`` degrees of freedom).

    Args:
        r: Correlations, of any shape.
        n: Samples they were computed on.
        controls: Columns whose effect was taken out of them.

    Returns:
        Of the shape of ``r``; NaN where there are no degrees of freedom.
    """
    return np.exp(np.minimum(log_p_value(r, n, controls), 0.0))


def student_p(t: np.ndarray, dof: float) -> np.ndarray:
    """Two-sided p of Student's t: that of r = t / sqrt(t^2 + dof)."""
    return p_value(t / np.sqrt(t**2 + dof), dof + 2)


def expected_coactive(active: np.ndarray, advantage_active: float) -> np.ndarray:
    """Expected number of samples with both neuron and advantage non-zero, were they independent.

    Args:
        active: Number of samples in which each neuron is not 0, ``(D,)``.
        advantage_active: Share of samples with an advantage other than 0.
    """
    return np.asarray(active, dtype=np.float64) * advantage_active


def adjust_p_values(p: np.ndarray, method: Literal["bh", "by"] = "bh") -> np.ndarray:
    """False-discovery-rate q of each p along the last axis; NaN stays NaN and is no test.

    Benjamini & Hochberg 1995 (``"bh"``), or Benjamini & Yekutieli 2001 (``"by"``), which holds
    under any dependence between neurons. A hundred small layers are adjusted in every validation:
    SciPy's ``false_discovery_control`` takes three times as long for one of them.

    Args:
        p: ``(..., D)``: the tests along the last axis are corrected together.
        method: ``"bh"`` or ``"by"``.

    Returns:
        Of the shape of ``p``.
    """
    p = np.asarray(p, dtype=np.float64)
    if not p.size:
        return p.copy()
    n = p.shape[-1]
    rows = p.reshape(-1, n)
    unknown = np.isnan(rows)
    rows = np.where(unknown, np.inf, rows)  # NaN would be sorted ten times as slowly
    tests = np.maximum(n - np.count_nonzero(unknown, -1, keepdims=True), 1)
    rank = np.arange(1, n + 1)
    order = np.argsort(rows, -1) + n * np.arange(len(rows))[:, None]
    q = rows.take(order)
    q *= tests / rank
    if method == "by":
        q *= np.cumsum(1 / rank)[tests - 1]
    lowest = np.minimum.accumulate(q[:, ::-1], -1)[:, ::-1]  # of this and all larger p
    found = np.empty(q.size)
    found[order.ravel()] = np.minimum(lowest, 1.0).ravel()
    found[unknown.ravel()] = np.nan
    return found.reshape(p.shape)


def contrast_t(means: np.ndarray, counts: np.ndarray, total_ss: np.ndarray) -> np.ndarray:
    """How clearly each neuron stands out in ``only_model``: its smallest t against another group.

    Args:
        means: Mean activation per outcome group, ``(4, D)``: both, only_model, only_baseline,
            neither.
        counts: Samples per group, ``(4,)``. Empty groups are left out.
        total_ss: Centred sum of squares of each neuron over all samples, ``(D,)``.

    Returns:
        ``(D,)``. The variance is pooled within groups: (total_ss - sum_g n_g (mean_g - mean)^2) /
        (n - groups).
    """
    counts = np.asarray(counts, dtype=np.float64)
    others = [g for g in range(4) if g != ONLY_MODEL and counts[g] > 0]
    seen = [g for g in range(4) if counts[g] > 0]
    n, dof = counts.sum(), counts.sum() - len(seen)
    if counts[ONLY_MODEL] == 0 or not others or dof <= 0:
        return np.full(means.shape[1], np.nan)
    size, of_seen = counts[seen][:, None], means[seen]
    mean = (size * of_seen).sum(0) / n
    between = (size * (of_seen - mean) ** 2).sum(0)
    variance = np.maximum(total_ss - between, 0) / dof
    inverse = 1 / counts[ONLY_MODEL] + 1 / counts[others]
    with np.errstate(divide="ignore", invalid="ignore"):
        gaps = (means[ONLY_MODEL] - means[others]) / np.sqrt(inverse)[:, None]
        t = (gaps / np.sqrt(variance)).min(0)
        return np.where((total_ss > 0) & np.isfinite(total_ss), t, np.nan)


def mcnemar_p(only_model: int, only_baseline: int) -> float:
    """McNemar's exact two-sided p (1947): are the discordant samples split evenly?

    Args:
        only_model: Samples that only the model gets right.
        only_baseline: Samples that only the baseline gets right.

    Returns:
        p; NaN where there are no such samples.
    """
    discordant, fewer = only_model + only_baseline, min(only_model, only_baseline)
    if not discordant:
        return math.nan
    tail = special.betainc(discordant - fewer, fewer + 1, 0.5)  # the binomial sum up to `fewer`
    return min(1.0, 2 * float(tail))
