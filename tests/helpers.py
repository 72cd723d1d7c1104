"""Slow and obvious second implementations of what the package computes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr.functional.stratified import CellMoments
from lightning_neurocorr.metric import Cells, NeuronAdvantageCorrelation
from lightning_neurocorr.report import NeuronReport, Outcomes
from lightning_neurocorr.report.panels import Panel

GROUP_NAMES = ("both", "only_model", "only_baseline", "neither")


def pearson(x: np.ndarray, a: np.ndarray) -> float:
    """Pearson's r of two columns in two passes of float64; NaN where one is constant."""
    x, a = np.asarray(x, np.float64), np.asarray(a, np.float64)
    if not len(x) or not np.isfinite(x).all() or (x == x[0]).all() or (a == a[0]).all():
        return math.nan
    x, a = x - x.mean(), a - a.mean()
    x, a = x / np.abs(x).max(), a / np.abs(a).max()  # squares of 1e200 would overflow
    return float(np.clip(x @ a / math.sqrt(x @ x) / math.sqrt(a @ a), -1, 1))


def all_pearson(x: Tensor, a: Tensor) -> np.ndarray:
    """Pearson's r of every column of ``x`` ``(N, D)`` with ``a``, ``(D,)``."""
    wide = x.double().numpy()
    return np.array([pearson(wide[:, j], a.double().numpy()) for j in range(x.shape[1])])


def partial_r(x: np.ndarray, a: np.ndarray, controls: np.ndarray) -> float:
    """Pearson's r of the residuals of two columns after regression on controls ``(N, q)``."""
    design = np.column_stack([np.ones(len(x)), controls])
    residuals = [y - design @ np.linalg.lstsq(design, y, rcond=None)[0] for y in (x, a)]
    return pearson(*residuals)


def cells_of(
    x: Any, a: Any, target: Any, group: Any, fold: Any, *, rows: int = 0, by_class: bool = True
) -> list[CellMoments]:
    """Sums by class, outcome group and half, streamed in batches of 100."""
    x, a, target, group, fold = map(torch.as_tensor, (x, a, target, group, fold))
    rows = max(rows, int(target.max()) + 1)
    cells = Cells(x.shape[1], rows)
    for part in torch.arange(len(a)).split(100):
        cells.add([x[part]], a[part], target[part], group[part], fold[part])
    return cells.moments(range(rows) if by_class else None, by_class)


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    return (labels[:, None] == np.arange(classes)).astype(np.float64)


def split(parts: Mapping[str, Tensor], sizes: Sequence[int]) -> Iterator[dict[str, Tensor]]:
    """Batches of the given sizes; the last size repeats until the samples are used up."""
    start, n = 0, len(next(iter(parts.values())))
    turn = 0
    while start < n:
        size = sizes[min(turn, len(sizes) - 1)]
        yield {name: values[start : start + size] for name, values in parts.items()}
        start, turn = start + size, turn + 1


def streamed(x: Tensor, a: Tensor, sizes: Sequence[int] = (256,), **more: Any) -> np.ndarray:
    """The metric's r after batches of the given sizes."""
    metric = NeuronAdvantageCorrelation(x.shape[1], **more)
    for batch in split({"activations": x, "advantage": a}, sizes):
        metric.update(**batch)
    return metric.compute().numpy()


def assert_same_r(found: Any, expected: Any, tolerance: float = 1e-6) -> None:
    """NaN exactly where expected, and close elsewhere."""
    found, expected = np.asarray(found), np.asarray(expected)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def slow_fdr(p: Sequence[float], method: str = "bh") -> list[float]:
    """Step-up q values by their definition, one at a time; NaN is no test."""
    tested = [value for value in p if not math.isnan(value)]
    m = len(tested)
    penalty = sum(1 / i for i in range(1, m + 1)) if method == "by" else 1.0
    ordered = sorted(tested)

    def q(value: float) -> float:
        later = [
            other * m * penalty / (rank + 1) for rank, other in enumerate(ordered) if other >= value
        ]
        return min(1.0, *later)

    return [math.nan if math.isnan(value) else q(value) for value in p]


def make_report(
    sizes: Mapping[str, int], columns: Mapping[str, Any] | None = None, **more: Any
) -> NeuronReport:
    """A report with the given columns; r is random where it is not given."""
    total = sum(sizes.values())
    columns = dict(columns or {})
    columns.setdefault("r", np.random.default_rng(0).uniform(-1, 1, total))
    found = {name: np.asarray(column, np.float64) for name, column in columns.items()}
    settings = {"n": 100, "outcomes": Outcomes(60, 20, 10, 10, 0.1), **more}
    return NeuronReport(tuple(sizes), tuple(sizes.values()), found, **settings)


def make_panel(layer: str, unit: int, **more: Any) -> Panel:
    return Panel(layer=layer, unit=unit, **more)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
