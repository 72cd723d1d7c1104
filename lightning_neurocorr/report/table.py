"""The table of neurons that a validation found, with its outcomes, pictures and evidence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import zip_longest
from pathlib import Path
from typing import Any, overload

import numpy as np

from lightning_neurocorr import verdict
from lightning_neurocorr.evidence import Panel
from lightning_neurocorr.report import storage
from lightning_neurocorr.report.rows import (
    COLUMNS,
    SMALL_IS_STRONG,
    LayerSummary,
    NeuronRow,
    Outcomes,
    noise_ceiling,
)


@dataclass(frozen=True, eq=False)
class NeuronReport:
    """Everything one validation found.

    Attributes:
        layers: Names of the layers with results, in the order of the model.
        sizes: Number of neurons of each layer.
        columns: Arrays ``(neurons,)`` by the names in ``COLUMNS``; a missing name is all NaN.
        outcomes: Counts of the four outcome groups, accuracies and McNemar's p.
        n: Samples that r was computed on.
        name: The callback's name.
        baseline: The baseline in words.
        advantage: ``"correctness"``, ``"log_prob"`` or the callable's name.
        validation: Index of the validation in its run, from 0.
        step: Training step, unique per validation.
        epoch: Training epoch.
        message: Why there is nothing to see, in words; empty where there is.
        notes: Further remarks: layers left out, columns without values, and why.
        panels: What single neurons see: exemplars and pictures.
        study: The ablation study, plain data; empty where none was made.
    """

    layers: tuple[str, ...]
    sizes: tuple[int, ...]
    columns: Mapping[str, np.ndarray]
    outcomes: Outcomes = field(default_factory=Outcomes)
    n: int = 0
    name: str = "neurocorr"
    baseline: str = ""
    advantage: str = "correctness"
    validation: int = 0
    step: int = 0
    epoch: int = 0
    message: str = ""
    notes: tuple[str, ...] = ()
    panels: tuple[Panel, ...] = ()
    study: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.layers) != len(self.sizes) or len(set(self.layers)) != len(self.layers):
            raise ValueError(
                f"Expected `layers` to be different names with one entry of `sizes` each, but got "
                f"{self.layers} and {self.sizes}."
            )
        total = sum(self.sizes)
        for name, column in self.columns.items():
            found = np.asarray(column)
            if name not in COLUMNS or found.shape != (total,) or found.dtype.kind not in "fiub":
                raise ValueError(
                    f"Expected `columns` to hold numbers of shape ({total},) named in COLUMNS, "
                    f"but got {name!r} of shape {found.shape} and type {found.dtype}."
                )

    @property
    def rows(self) -> Rows:
        """One :class:`NeuronRow` per neuron, made on access."""
        return Rows(self)

    @property
    def summaries(self) -> list[LayerSummary]:
        """One :class:`LayerSummary` per layer."""
        dead, starts = self.column("dead"), np.cumsum((0, *self.sizes))
        return [self._summary(i, slice(*starts[i : i + 2]), dead) for i in range(len(self.layers))]

    @property
    def headline(self) -> str:
        """The result in one or two sentences."""
        return self.message or verdict.headline(self)

    def column(self, name: str) -> np.ndarray:
        """A column over all neurons, ``(neurons,)``.

        Raises:
            ValueError: If there is no such column.
        """
        if name == "dead":
            return ~(self.column("std") > 0) & np.isfinite(self.column("mean"))
        if name not in COLUMNS:
            raise ValueError(f"Expected a column among {', '.join(COLUMNS)}, but got {name!r}.")
        found = self.columns.get(name)
        return np.full(sum(self.sizes), np.nan) if found is None else found

    def top(
        self, k: int = 10, by: str = "r", *, layer: str | None = None, largest: bool | None = None
    ) -> list[NeuronRow]:
        """The ``k`` strongest neurons by a column; neurons without a value are left out.

        Args:
            k: How many, at most.
            by: Any numeric column. Signs count: the most negative r comes last, not first.
            layer: Only this layer. Scores of different layers are not strictly comparable.
            largest: Largest values first; by default so, except for p and q.

        Returns:
            Strongest first; of equals, the first in the report comes first.

        Raises:
            ValueError: If the column or the layer is unknown.
        """
        offset = 0
        values = self.column(by).astype(np.float64)
        if layer is not None:
            offset, size = self._span(layer)
            values = values[offset : offset + size]
        if largest is None:
            largest = by not in SMALL_IS_STRONG
        known = np.flatnonzero(~np.isnan(values))
        keys = -values[known] if largest else values[known]
        k = max(0, min(k, len(keys)))
        if 0 < k < len(keys):  # sorting a million neurons for ten rows is the slow way
            near = np.flatnonzero(keys <= np.partition(keys, k - 1)[k - 1])
            known, keys = known[near], keys[near]
        rows = self.rows
        return [rows[int(i) + offset] for i in known[np.argsort(keys, kind="stable")[:k]]]

    def shown(self, k: int = 16) -> list[NeuronRow]:
        """``k`` neurons to look at: in turn the strongest by r and the strongest by attribution.

        Neither score may replace the other: r misses knowledge that is spread over many neurons,
        attribution misses detectors.
        """
        rankings = [
            [row for row in self.top(k, by) if getattr(row, by) > 0] for by in ("r", "attribution")
        ]
        turns = (row for pair in zip_longest(*rankings) for row in pair if row is not None)
        return list({(row.layer, row.unit): row for row in turns}.values())[:k]

    def row(self, layer: str, unit: int) -> NeuronRow:
        """The row of one neuron."""
        offset, size = self._span(layer)
        if not 0 <= unit < size:
            raise ValueError(f"Expected `unit` of {layer!r} to be in [0, {size}), but got {unit}.")
        return self.rows[offset + unit]

    def panel(self, layer: str, unit: int) -> Panel | None:
        """Exemplars and picture of one neuron, if it was shown."""
        return next((p for p in self.panels if (p.layer, p.unit) == (layer, unit)), None)

    def to_dataframe(self) -> Any:
        """All rows as a ``pandas.DataFrame`` (needs the extra ``pandas``)."""
        try:
            import pandas as pd
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                'to_dataframe needs pandas: pip install "lightning_neurocorr[pandas]"'
            ) from error
        table: dict[str, Any] = {
            "layer": np.repeat(np.array(self.layers, dtype=object), self.sizes),
            "unit": np.concatenate([np.arange(size) for size in self.sizes] or [np.arange(0)]),
        }
        table |= {name: self.column(name) for name in COLUMNS}
        table |= {"dead": self.column("dead"), "verdict": [row.verdict for row in self.rows]}
        return pd.DataFrame(table)

    def save(self, path: str | Path) -> Path:
        """Write the report to one file (a zip of arrays and JSON; no pickle) and return its path.

        The file appears whole or not at all.
        """
        return storage.write(path, {f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, path: str | Path) -> NeuronReport:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is not a report or is of a newer schema.
        """
        return storage.read(path, cls)

    def _span(self, layer: str) -> tuple[int, int]:
        if layer not in self.layers:
            raise ValueError(
                f"Expected `layer` to be one of {', '.join(map(repr, self.layers))}, "
                f"but got {layer!r}."
            )
        i = self.layers.index(layer)
        return sum(self.sizes[:i]), self.sizes[i]

    def _summary(self, i: int, span: slice, dead: np.ndarray) -> LayerSummary:
        columns = {name: column[span] for name, column in self.columns.items()}
        columns.setdefault("r", self.column("r")[span])
        r = columns["r"]
        known = np.flatnonzero(np.isfinite(r))
        return LayerSummary(
            layer=self.layers[i],
            neurons=self.sizes[i],
            dead=int(dead[span].sum()),
            strongest=int(known[np.argmax(r[known])]) if len(known) else -1,
            max_r=float(np.max(r[known])) if len(known) else math.nan,
            min_r=float(np.min(r[known])) if len(known) else math.nan,
            significant=int(verdict.associated(columns).sum()),
            noise_ceiling=noise_ceiling(len(r), self.n),
            verdict=verdict.layer(columns),
        )


class Rows(Sequence[NeuronRow]):
    """The rows of a report, made on access."""

    def __init__(self, report: NeuronReport) -> None:
        self._report = report
        self._ends = np.cumsum(report.sizes)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @overload
    def __getitem__(self, index: int) -> NeuronRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[NeuronRow]: ...
    def __getitem__(self, index: int | slice) -> NeuronRow | list[NeuronRow]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        layer = int(np.searchsorted(self._ends, i, side="right"))
        values = dict.fromkeys(COLUMNS, math.nan)
        values |= {name: float(column[i]) for name, column in self._report.columns.items()}
        dead = math.isfinite(values["mean"]) and not values["std"] > 0
        return NeuronRow(
            layer=self._report.layers[layer],
            unit=i - int(self._ends[layer]) + self._report.sizes[layer],
            **values,
            dead=dead,
            verdict=verdict.neuron(values, dead=dead),
        )

    def __iter__(self) -> Iterator[NeuronRow]:
        return (self[i] for i in range(len(self)))
