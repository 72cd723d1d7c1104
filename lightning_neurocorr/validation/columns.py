"""From the moments of neurons to the columns of their rows in a report."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr import functional as F
from lightning_neurocorr.attribution import AttributionColumns
from lightning_neurocorr.functional import Moments, stratified
from lightning_neurocorr.functional.stratified import CellMoments
from lightning_neurocorr.report.layout import Layout, by_size

# Being better has two parts, each told by two outcome groups: the first should be the higher.
PARTS = {
    "baseline_wrong": (F.ONLY_MODEL, F.BOTH),  # among samples that the model gets right
    "model_right": (F.ONLY_MODEL, F.NEITHER),  # among those that the baseline gets wrong
    "baseline_right": (F.ONLY_BASELINE, F.NEITHER),  # among those that the model gets wrong
    "model_wrong": (F.ONLY_BASELINE, F.BOTH),  # among those that the baseline gets right
}

# A claim asks for both parts. In the first, model and class are the same and the baseline differs:
# it is asked for always, and fails where the baseline is right and wrong at random. The second can
# be left out where too few samples tell of it.
CLAIMS = {
    "only_model": ("baseline_wrong", "model_right"),
    "only_baseline": ("baseline_right", "model_wrong"),
}

# Fewer pairs of samples cannot tell one outcome group from another.
MIN_PAIRS = 25.0


def correlation_columns(
    total: Moments,
    folds: Sequence[Moments],
    advantage_active: float,
    *,
    cells: Sequence[CellMoments] = (),
    sizes: Sequence[int] | None = None,
) -> dict[str, np.ndarray]:
    """Every column that needs nothing but moments, float64 arrays ``(D,)``.

    Args:
        total: Moments over all samples.
        folds: Moments of the two halves.
        advantage_active: Share of samples with an advantage other than 0, for the sparsity guard.
        cells: Sums by class and outcome group of the two halves; empty without outcome groups.
        sizes: Neurons of each of the layers that lie side by side here: q counts the neurons of
            a layer. All are one layer when left out.
    """
    adjusted = partial(_adjusted, layers=by_size((len(total.mean),) if sizes is None else sizes))
    n = float(total.n)
    r = _array(F.correlation(total))
    columns = {"r": r, **dict(zip(("r_low", "r_high"), F.fisher_interval(r, n), strict=True))}
    coactive = F.expected_coactive(_array(total.active), advantage_active)
    testable = coactive >= F.MIN_EXPECTED_COACTIVE
    columns["p_value"] = np.where(testable, F.p_value(r, n), np.nan)
    columns["q_value"] = adjusted(columns["p_value"])
    whole = reduce(operator.add, cells) if cells else None
    if whole is not None and whole.by_class:
        columns |= _within_class(r, total, whole, testable, adjusted)
        columns |= _parts(r, _array(total.active / total.n), cells, whole, adjusted)
    columns |= _replication(r, folds)
    columns |= {
        "mean": mean_column(total),
        "std": _array((total.m2.clamp_min(0) / total.n).sqrt()),
        "active": _array(total.active / total.n),
    }
    return columns if whole is None else columns | _profile(total, whole)


def mean_column(total: Moments) -> np.ndarray:
    """Mean activations ``(D,)``; NaN of neurons that were not always finite."""
    return _array(torch.where(total.m2.isfinite(), total.mean, torch.nan))


def attribution_columns(
    found: Mapping[str, AttributionColumns], layout: Layout
) -> dict[str, np.ndarray]:
    """The *used* columns of all layers, with q over the neurons of each; NaN of other layers."""
    if not found:
        return {}

    def joined(name: str) -> np.ndarray:
        return layout.joined({layer: getattr(one, name) for layer, one in found.items()})

    adjusted = partial(_adjusted, layers=by_size(layout.sizes))
    q, contrast_q = adjusted(np.stack([joined("p_value"), joined("contrast_p")]))
    return {
        "attribution": joined("attribution"),
        "attribution_low": joined("low"),
        "attribution_high": joined("high"),
        "attribution_q": q,
        "attribution_contrast": joined("contrast"),
        "attribution_contrast_low": joined("contrast_low"),
        "attribution_contrast_high": joined("contrast_high"),
        "attribution_contrast_q": contrast_q,
        "attribution_shared": joined("shared"),
    }


def _adjusted(p: np.ndarray, layers: Sequence[np.ndarray]) -> np.ndarray:
    """False-discovery-rate q of each p ``(..., D)`` among the neurons of its layer.

    Args:
        p: A row for each kind of test.
        layers: The neurons of each layer, an array ``(layers, size)`` for all of one size: one
            call each.
    """
    q = np.empty_like(p)
    for neurons in layers:
        q[..., neurons] = F.adjust_p_values(p[..., neurons])
    return q


def _within_class(
    plain: np.ndarray,
    total: Moments,
    cells: CellMoments,
    testable: np.ndarray,
    adjusted: Callable[[np.ndarray], np.ndarray],
) -> dict[str, np.ndarray]:
    """r, p and q with class means taken out; ``plain`` r is not."""
    spread = float(total.ww[0, 0])
    r, seen = stratified.correlation_within(cells, _array(total.c[0]), _array(total.m2), spread)
    p = np.where(testable, F.p_value(r, float(total.n), seen - 1), np.nan)
    # Where the class says all about neuron or advantage, nothing within it can be shown: q is 1.
    empty = testable & np.isnan(r) & ~np.isnan(plain)
    return {
        "r_within_class": r,
        "p_within_class": p,
        "q_within_class": np.where(empty, 1.0, adjusted(p)),
    }


def _parts(
    r: np.ndarray,
    active: np.ndarray,
    cells: Sequence[CellMoments],
    total: CellMoments,
    adjusted: Callable[[np.ndarray], np.ndarray],
) -> dict[str, np.ndarray]:
    """The advantage in its two parts, that of the baseline likewise, and whether both hold.

    Args:
        r: Correlation with the advantage, ``(D,)``: its sign says which parts are replicated.
        active: Share of samples in which each neuron is not 0, ``(D,)``.
        cells: Sums by class and outcome group of each half.
        total: Those of both.
        adjusted: From p to q.
    """
    found = {name: stratified.compare_groups(total, *groups) for name, groups in PARTS.items()}
    halves = {
        name: [stratified.compare_groups(half, *groups, tested=False).r for half in cells]
        for name, groups in PARTS.items()
    }
    known = ~np.isnan(r)  # not where activations in other groups were not finite
    p = {
        name: np.where(known & (part.pairs * active >= F.MIN_EXPECTED_COACTIVE), part.p, np.nan)
        for name, part in found.items()
    }
    weakest = []
    for claim, (needed, other) in CLAIMS.items():
        asked = [needed, other] if found[other].pairs >= MIN_PAIRS else [needed]
        p[claim] = np.max([p[name] for name in asked], 0)
        weakest.append(np.fmin.reduce([half for name in asked for half in halves[name]]))
    q = adjusted(np.stack(list(p.values())))
    columns = {f"q_{name}": row for name, row in zip(p, q, strict=True)}
    columns |= {f"r_{name}": np.where(known, part.r, np.nan) for name, part in found.items()}
    replicated = np.where(r < 0, weakest[1], weakest[0])
    return columns | {"parts_replicated": np.where(known, replicated, np.nan)}


def _replication(r: np.ndarray, folds: Sequence[Moments]) -> dict[str, np.ndarray]:
    """Pearson's r in each half of the samples, and the one that supports r less."""
    first, second = (_array(F.correlation(fold)) for fold in folds)
    sign = np.where(r < 0, -1.0, 1.0)
    return {
        "r_replicated": sign * np.minimum(sign * first, sign * second),
        "r_fold_0": first,
        "r_fold_1": second,
    }


def _profile(total: Moments, cells: CellMoments) -> dict[str, np.ndarray]:
    """Mean activation per outcome group and the contrast t of only_model."""
    means, counts = stratified.group_means(cells)
    means[:, ~np.isfinite(_array(total.m2))] = np.nan
    names = ("mean_both", "mean_only_model", "mean_only_baseline", "mean_neither")
    t = F.contrast_t(means, counts, _array(total.m2))
    return dict(zip(names, means, strict=True)) | {"contrast_t": t}


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().double().numpy()
