"""From the moments of neurons to the columns of their rows in a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr import functional as F
from lightning_neurocorr.attribution import AttributionColumns
from lightning_neurocorr.functional import Moments, stratified
from lightning_neurocorr.functional.comparing import Comparison
from lightning_neurocorr.functional.stratified import CellMoments, Stratified
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

Groups = tuple[int, int]

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
    n = float(total.n)
    r, active = _array(F.correlation(total)), _array(total.active)
    columns = {"r": r, **dict(zip(("r_low", "r_high"), F.fisher_interval(r, n), strict=True))}
    testable = F.expected_coactive(active, advantage_active) >= F.MIN_EXPECTED_COACTIVE
    columns["p_value"] = np.where(testable, F.p_value(r, n), np.nan)
    p = {"q_value": columns["p_value"]}
    found = stratified.stratify(cells) if cells else None
    if found is not None and found.compared:
        columns |= _within_class(total, found, testable)
        columns |= _parts(r, found.compared)
        p["q_within_class"] = columns["p_within_class"]
        p |= _p_of_parts(r, active / n, found.compared)
    layers = by_size((len(r),) if sizes is None else sizes)
    columns |= dict(zip(p, _adjusted(np.stack(list(p.values())), layers), strict=True))
    if found is not None and found.compared:
        for claim, (needed, _) in CLAIMS.items():  # of those that ask for one part only
            columns.setdefault(f"q_{claim}", columns[f"q_{needed}"])
        # Where the class says all about neuron or advantage, nothing within it can be shown.
        empty = testable & np.isnan(columns["r_within_class"]) & ~np.isnan(r)
        columns["q_within_class"][empty] = 1.0
    columns |= _replication(r, folds)
    columns |= {
        "mean": mean_column(total),
        "std": _array((total.m2.clamp_min(0) / total.n).sqrt()),
        "active": active / n,
    }
    return columns if found is None else columns | _profile(total, found)


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

    p = np.stack([joined("p_value"), joined("contrast_p")])
    q, contrast_q = _adjusted(p, by_size(layout.sizes))
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
    """False-discovery-rate q of each p ``(rows, D)`` among the neurons of its layer.

    Args:
        p: A row for each kind of test.
        layers: The neurons of each layer, an array ``(layers, size)`` for all of one size: one
            call each.
    """
    known = ~np.isnan(p).all(-1)  # there may be nothing to compare for a whole row
    some, q = p[known], np.full_like(p, np.nan)
    found = np.empty_like(some)
    for neurons in layers:
        found[:, neurons] = F.adjust_p_values(some.take(neurons, 1))
    q[known] = found
    return q


def _within_class(total: Moments, found: Stratified, testable: np.ndarray) -> dict[str, np.ndarray]:
    """Correlation and its p with class means taken out."""
    spread = float(total.ww[0, 0])
    r, seen = stratified.correlation_within(found, _array(total.c[0]), _array(total.m2), spread)
    p = np.where(testable, F.p_value(r, float(total.n), seen - 1), np.nan)
    return {"r_within_class": r, "p_within_class": p}


def _parts(r: np.ndarray, compared: Mapping[Groups, Comparison]) -> dict[str, np.ndarray]:
    """Correlation with each part of the advantage, and whether both parts hold in both halves.

    Args:
        r: Correlation with the advantage, ``(D,)``: its sign says which parts are replicated.
        compared: The parts, by their groups.
    """
    known = ~np.isnan(r)  # not where activations in other groups were not finite
    won, lost = (
        np.fmin.reduce([compared[PARTS[part]].weakest for part in _asked(claim, compared)])
        for claim in CLAIMS
    )
    columns = {
        f"r_{name}": np.where(known, compared[groups].r, np.nan) for name, groups in PARTS.items()
    }
    replicated = np.where(r < 0, lost, won)
    return columns | {"parts_replicated": np.where(known, replicated, np.nan)}


def _p_of_parts(
    r: np.ndarray, active: np.ndarray, compared: Mapping[Groups, Comparison]
) -> dict[str, np.ndarray]:
    """The p of each part, and of each claim that asks for both, by the name of its q.

    Args:
        r: Correlation with the advantage, ``(D,)``.
        active: Share of samples in which each neuron is not 0, ``(D,)``.
        compared: The parts, by their groups.
    """
    known, p = ~np.isnan(r), {}
    for name, groups in PARTS.items():
        part = compared[groups]
        enough = part.pairs * active >= F.MIN_EXPECTED_COACTIVE
        p[f"q_{name}"] = np.where(known & enough, part.p, np.nan)
    for claim in CLAIMS:
        asked = _asked(claim, compared)
        if len(asked) > 1:
            p[f"q_{claim}"] = np.maximum(*(p[f"q_{part}"] for part in asked))
    return p


def _asked(claim: str, compared: Mapping[Groups, Comparison]) -> list[str]:
    """The parts that a claim asks for."""
    needed, other = CLAIMS[claim]
    return [needed, other] if compared[PARTS[other]].pairs >= MIN_PAIRS else [needed]


def _replication(r: np.ndarray, folds: Sequence[Moments]) -> dict[str, np.ndarray]:
    """Pearson's r in each half of the samples, and the one that supports r less."""
    first, second = (_array(F.correlation(fold)) for fold in folds)
    sign = np.where(r < 0, -1.0, 1.0)
    return {
        "r_replicated": sign * np.minimum(sign * first, sign * second),
        "r_fold_0": first,
        "r_fold_1": second,
    }


def _profile(total: Moments, found: Stratified) -> dict[str, np.ndarray]:
    """Mean activation per outcome group and the contrast t of only_model."""
    spread, means = _array(total.m2), found.means
    means[:, ~np.isfinite(spread)] = np.nan
    names = ("mean_both", "mean_only_model", "mean_only_baseline", "mean_neither")
    t = F.contrast_t(means, found.counts.sum(0), spread)
    return dict(zip(names, means, strict=True)) | {"contrast_t": t}


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().double().numpy()
