"""A report in few numbers with stable names: what any logger can plot over validations."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from lightning_neurocorr.report import NeuronReport
from lightning_neurocorr.report.history import HistoryEntry

# With more layers than this, neighbours share tags: 6 groups make 6 x 5 + 8 = 38 tags of all kinds,
# and forty can be read, four hundred cannot. A ResNet has six: stem, four stages, head.
MAX_GROUPS = 6
_FEWEST_GROUPS = 3


def layer_groups(layers: tuple[str, ...], limit: int = MAX_GROUPS) -> dict[str, list[str]]:
    """Layers in at most ``limit`` groups, by a name that is safe as a tag.

    Few layers stand for themselves. Otherwise they are grouped by the longest prefix of their
    dotted names that leaves few enough groups, and if that leaves hardly any, by runs of
    neighbours.
    """
    depth = max((name.count(".") for name in layers), default=0)
    for parts in range(depth + 1, 0, -1):
        groups = _grouped((name, ".".join(name.split(".")[:parts])) for name in layers)
        if len(groups) <= limit:
            if parts > depth or len(groups) >= _FEWEST_GROUPS:
                return groups
            break
    runs = np.array_split(np.array(layers, dtype=object), limit)
    return _grouped((name, f"{run[0]}..{run[-1]}") for run in runs for name in run)


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Layers by the tag of their group; groups whose tags agree are one."""
    groups: dict[str, list[str]] = {}
    for layer, group in pairs:
        groups.setdefault(tag_part(group), []).append(layer)
    return groups


def tag_part(name: str) -> str:
    """A layer name as part of a tag: odd characters become ``_``, long names lose their middle."""
    safe = re.sub(r"[^A-Za-z0-9_.\-]", "_", name)
    return safe if len(safe) <= 60 else f"{safe[:28]}...{safe[-28:]}"


def summary_scalars(report: NeuronReport, entry: HistoryEntry) -> dict[str, float]:
    """Numbers by tag, without the callback's name in front; undefined is NaN.

    Accuracies and outcome counts; per group of layers the strongest r, the number of significant
    neurons and the stability of the top list since the previous validation.
    """
    outcomes = report.outcomes
    numbers = {
        "accuracy/model": outcomes.model_accuracy,
        "accuracy/baseline": outcomes.baseline_accuracy,
        **{f"outcomes/{name}": float(count) for name, count in outcomes.counts.items()},
    }
    summaries = {summary.layer: summary for summary in report.summaries}
    for group, names in layer_groups(report.layers).items():
        strongest = [summaries[name].max_r for name in names]
        stable = [entry.stability.get(name, math.nan) for name in names]
        numbers[f"strongest_r/{group}"] = _nan_safe(np.nanmax, strongest)
        numbers[f"significant/{group}"] = float(sum(summaries[name].significant for name in names))
        numbers[f"stability/{group}"] = _nan_safe(np.nanmean, stable)
    return numbers


def group_r(report: NeuronReport) -> dict[str, np.ndarray]:
    """The finite r of every group of layers, for histograms."""
    r = report.layout.split(report.column("r"))
    found = {
        group: np.concatenate([r[name] for name in names])
        for group, names in layer_groups(report.layers).items()
    }
    return {group: values[np.isfinite(values)] for group, values in found.items()}


def _nan_safe(reduce: Callable[..., Any], values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(reduce(known)) if known else math.nan
