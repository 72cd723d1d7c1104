"""From the moments of neurons to the columns of their rows in a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from scipy import special
from torch import Tensor

from lightning_neurocorr import functional as F
from lightning_neurocorr.attribution import AttributionColumns
from lightning_neurocorr.functional import Moments

# Column 0 of the moments is the advantage, then come indicators of three outcome groups; the fourth
# follows from them. Class indicators (or one class-level covariate) come last.
GROUPS = {"both": 1, "only_model": 2, "only_baseline": 3}

# A spread below this share of the mean is what float32 makes of equal numbers.
_ROUNDING = 1e-6


def correlation_columns(
    total: Moments,
    folds: list[Moments],
    advantage_active: float,
    *,
    grouped: bool,
    controls: int,
    sizes: Sequence[int] | None = None,
) -> dict[str, np.ndarray]:
    """Every column that needs nothing but moments, arrays ``(D,)``.

    Args:
        total: Moments over all samples.
        folds: Moments of the two halves.
        advantage_active: Share of samples with an advantage other than 0, for the sparsity guard.
        grouped: Whether columns 1 to 3 are outcome groups; otherwise there are none.
        controls: Number of class columns at the end: 0 for none, 1 for a class-level covariate.
        sizes: Neurons of each of the layers that lie side by side here: q counts the neurons of
            a layer. All are one layer when left out.
    """
    adjusted = partial(_adjusted, sizes=(len(total.mean),) if sizes is None else sizes)
    n = float(total.n)
    r = _array(F.correlation(total))
    columns = {"r": r, **dict(zip(("r_low", "r_high"), F.fisher_interval(r, n), strict=True))}
    coactive = F.expected_coactive(_array(total.active), advantage_active)
    testable = coactive >= F.MIN_EXPECTED_COACTIVE
    columns["p_value"] = np.where(testable, F.p_value(r, n), np.nan)
    columns["q_value"] = adjusted(columns["p_value"])
    columns |= _within_class(total, testable, controls, adjusted)
    columns |= _replication(r, folds)
    columns |= {
        "mean": _array(torch.where(total.m2.isfinite(), total.mean, torch.nan)),
        "std": _array((total.m2.clamp_min(0) / total.n).sqrt()),
        "active": _array(total.active / total.n),
    }
    return columns | (_profile(total) if grouped else {})


def attribution_columns(found: AttributionColumns) -> dict[str, np.ndarray]:
    """The *used* columns of a layer, with q of attribution = 0 over its neurons (Student's t)."""
    half = (found.high - found.low) / 2
    dof = max(found.n - 1, 1)
    half = np.where(half > _ROUNDING * np.abs(found.attribution), half, np.nan)  # else no spread
    with np.errstate(invalid="ignore"):
        t = np.abs(found.attribution) * special.stdtrit(dof, 0.975) / half
    p = np.where(np.isfinite(t), 2 * special.stdtr(dof, -t), np.nan)
    return {
        "attribution": found.attribution,
        "attribution_low": found.low,
        "attribution_high": found.high,
        "attribution_q": F.adjust_p_values(p),
        "attribution_contrast": found.contrast,
    }


def by_layer(values: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """The neurons of each layer, of arrays in which layers follow each other."""
    return np.split(values, np.cumsum(sizes)[:-1])


def _adjusted(p: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """False-discovery-rate q of each p among the neurons of its layer."""
    return np.concatenate([F.adjust_p_values(layer) for layer in by_layer(p, sizes)])


def _within_class(
    total: Moments,
    testable: np.ndarray,
    controls: int,
    adjusted: Callable[[np.ndarray], np.ndarray],
) -> dict[str, np.ndarray]:
    """r, p and q with class means taken out: exact from indicators, else by the covariate."""
    if not controls:
        return {}
    k = len(total.w)
    if controls == 1:
        r, dof_lost = F.correlation_given(total, k - 1), 1
    else:
        r, seen = F.correlation_within(total, slice(k - controls, k))
        dof_lost = seen - 1
    r_within = _array(r)
    p = np.where(testable, F.p_value(r_within, float(total.n), dof_lost), np.nan)
    # Where the class says all about neuron or advantage, nothing within it can be shown: q is 1.
    empty = testable & np.isnan(r_within) & ~np.isnan(_array(F.correlation(total)))
    return {
        "r_within_class": r_within,
        "p_within_class": p,
        "q_within_class": np.where(empty, 1.0, adjusted(p)),
    }


def _replication(r: np.ndarray, folds: list[Moments]) -> dict[str, np.ndarray]:
    """Pearson's r in each half of the samples, and the one that supports r less."""
    first, second = (_array(F.correlation(fold)) for fold in folds)
    sign = np.where(r < 0, -1.0, 1.0)
    return {
        "r_replicated": sign * np.minimum(sign * first, sign * second),
        "r_fold_0": first,
        "r_fold_1": second,
    }


def _profile(total: Moments) -> dict[str, np.ndarray]:
    """Mean activation per outcome group and the contrast t of only_model."""
    n = float(total.n)
    shares = [float(total.w[column]) for column in GROUPS.values()]
    counts = np.rint(n * np.array([*shares, 1 - sum(shares)]))
    means = [_array(F.group_means(total, column)) for column in GROUPS.values()]
    means.append(_array(_neither(total, counts[3])))
    names = ("mean_both", "mean_only_model", "mean_only_baseline", "mean_neither")
    t = F.contrast_t(np.stack(means), counts, _array(total.m2))
    return dict(zip(names, means, strict=True)) | {"contrast_t": t}


def _neither(total: Moments, count: float) -> Tensor:
    """Mean activation outside the three indicated groups: co-moments of all four sum to 0."""
    if count < 0.5:
        return torch.full_like(total.mean, torch.nan)
    return total.mean - total.c[1:4].sum(0) / count


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().double().numpy()
