"""What a report says of one layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lightning_neurocorr.report import rules, verdict


@dataclass(frozen=True)
class LayerSummary:
    """One layer at a glance.

    Attributes:
        layer: Dotted name.
        neurons: Number of neurons, D.
        dead: How many were the same on every sample.
        strongest: Unit with the largest r, -1 where there is none.
        max_r: Its r.
        min_r: The most negative r.
        significant: Neurons with ``q_value <= 0.05``.
        noise_ceiling: The |r| that the largest of D unrelated neurons reaches by chance.
        stability: Share of the top list by r that the list of the validation before shares
            (Jaccard index); NaN where there was none.
        verdict: The layer in words.
        read_at: Where it is read: its own name, or the place behind it; empty where unknown.
    """

    layer: str
    neurons: int
    dead: int
    strongest: int
    max_r: float
    min_r: float
    significant: int
    noise_ceiling: float
    stability: float
    verdict: str
    read_at: str = ""


def noise_ceiling(num_neurons: int, n: float) -> float:
    """The |r| that the largest of D unrelated neurons reaches by chance: sqrt(2 ln(2 D) / n).

    Args:
        num_neurons: D.
        n: Samples.
    """
    if num_neurons < 1 or n <= 0:
        return math.nan
    return min(1.0, math.sqrt(2 * math.log(2 * num_neurons) / n))


def summary(
    layer: str,
    columns: Mapping[str, np.ndarray],
    dead: np.ndarray,
    n: int,
    *,
    stability: float = math.nan,
    read_at: str = "",
) -> LayerSummary:
    """A layer at a glance, from its columns ``(D,)`` over ``n`` samples; ``r`` has to be there."""
    r = columns["r"]
    known = np.flatnonzero(np.isfinite(r))
    return LayerSummary(
        layer=layer,
        neurons=len(r),
        dead=int(dead.sum()),
        strongest=int(known[np.argmax(r[known])]) if len(known) else -1,
        max_r=float(np.max(r[known])) if len(known) else math.nan,
        min_r=float(np.min(r[known])) if len(known) else math.nan,
        significant=int(rules.associated(columns).sum()),
        noise_ceiling=noise_ceiling(len(r), n),
        stability=stability,
        verdict=verdict.layer(columns),
        read_at=read_at,
    )
