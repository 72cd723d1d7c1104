"""The frozen result of one validation: a table of neurons, its outcomes, pictures and evidence.

Nothing here needs torch: TensorBoard's side and a notebook without a GPU read reports too.
Columns are NumPy arrays over all neurons, layer after layer; rows are made when they are asked for.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import zip_longest
from pathlib import Path
from typing import Any, overload

import numpy as np

from lightning_neurocorr import verdict
from lightning_neurocorr.evidence import Panel, Picture, Sample, pack_panels, unpack_panels

__all__ = [
    "COLUMNS",
    "LayerSummary",
    "NeuronReport",
    "NeuronRow",
    "Outcomes",
    "Panel",
    "Picture",
    "Rows",
    "Sample",
]

SCHEMA = 1

# Every column of a row that is a number, in the order of the table.
COLUMNS = (
    "r", "r_low", "r_high", "p_value", "q_value",
    "r_within_class", "p_within_class", "q_within_class", "r_replicated",
    "r_fold_0", "r_fold_1",
    "contrast_t", "mean_both", "mean_only_model", "mean_only_baseline", "mean_neither",
    "mean", "std", "active",
    "attribution", "attribution_low", "attribution_high", "attribution_q", "attribution_contrast",
    "ablation", "ablation_control", "ablation_p", "ablation_advantage", "ablation_shared",
)  # fmt: skip

SMALL_IS_STRONG = {
    "p_value",
    "q_value",
    "p_within_class",
    "q_within_class",
    "attribution_q",
    "ablation_p",
}


@dataclass(frozen=True)
class Outcomes:
    """How many samples fall in each outcome group, and whether the model beats the baseline.

    Attributes:
        both: Samples that model and baseline both get right.
        only_model: Samples that only the model gets right.
        only_baseline: Samples that only the baseline gets right.
        neither: Samples that neither gets right.
        p_value: McNemar's exact two-sided p; NaN where no sample tells the two apart.
    """

    both: int = 0
    only_model: int = 0
    only_baseline: int = 0
    neither: int = 0
    p_value: float = math.nan

    @property
    def n(self) -> int:
        """Number of samples; 0 where right and wrong mean nothing (regression, say)."""
        return self.both + self.only_model + self.only_baseline + self.neither

    @property
    def model_accuracy(self) -> float:
        """Share of samples that the model gets right."""
        return (self.both + self.only_model) / self.n if self.n else math.nan

    @property
    def baseline_accuracy(self) -> float:
        """Share of samples that the baseline gets right."""
        return (self.both + self.only_baseline) / self.n if self.n else math.nan

    @property
    def counts(self) -> dict[str, int]:
        """The four counts by the name of their group."""
        return {
            name: getattr(self, name) for name in ("both", "only_model", "only_baseline", "neither")
        }


@dataclass(frozen=True)
class NeuronRow:
    """What is known of one neuron; undefined is NaN.

    Attributes:
        layer: Dotted name of the layer.
        unit: Index of the neuron in its layer.
        r: Pearson correlation of activation and advantage.
        r_low: Lower end of its 95 % interval (Fisher's z).
        r_high: Upper end.
        p_value: Two-sided p of r; NaN where too few samples are expected to be co-active.
        q_value: Benjamini-Hochberg q over the neurons of the layer that have a p.
        r_within_class: r with the class means of activation and advantage taken out.
        p_within_class: Its p.
        q_within_class: Its q.
        r_replicated: r on the half of the samples that supports it less: an estimate that the
            selection of the neuron by its r cannot have inflated.
        r_fold_0: r on one half of the samples.
        r_fold_1: r on the other half.
        contrast_t: Smallest t of only_model against each other outcome group.
        mean_both: Mean activation over the samples that both get right.
        mean_only_model: Mean activation where only the model is right.
        mean_only_baseline: Mean activation where only the baseline is right.
        mean_neither: Mean activation where neither is right.
        mean: Mean activation.
        std: Standard deviation of the activation.
        active: Share of samples in which the activation is not 0.
        attribution: Mean over only_model samples of (activation - mean) x gradient of
            logit[truth] - logit[baseline's answer], in logits.
        attribution_low: Lower end of its 95 % interval.
        attribution_high: Upper end.
        attribution_q: Benjamini-Hochberg q of attribution = 0 within the layer.
        attribution_contrast: Attribution minus that on class-matched samples that both get right.
        ablation: What silencing costs in logit[truth] - logit[baseline's answer] on held-out
            advantage samples beyond what it costs on shared ones (difference in differences).
        ablation_control: The same for random neurons of the layer, on average.
        ablation_p: Share of random neurons that cost at least as much.
        ablation_advantage: Loss of accuracy on held-out advantage samples.
        ablation_shared: Loss of accuracy on class-matched held-out shared samples.
        dead: Whether the neuron was the same on every sample.
        verdict: What of this can be believed, in words.
    """

    layer: str
    unit: int
    r: float
    r_low: float
    r_high: float
    p_value: float
    q_value: float
    r_within_class: float
    p_within_class: float
    q_within_class: float
    r_replicated: float
    r_fold_0: float
    r_fold_1: float
    contrast_t: float
    mean_both: float
    mean_only_model: float
    mean_only_baseline: float
    mean_neither: float
    mean: float
    std: float
    active: float
    attribution: float
    attribution_low: float
    attribution_high: float
    attribution_q: float
    attribution_contrast: float
    ablation: float
    ablation_control: float
    ablation_p: float
    ablation_advantage: float
    ablation_shared: float
    dead: bool
    verdict: str

    @property
    def name(self) -> str:
        """``layer:unit``."""
        return f"{self.layer}:{self.unit}"


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
        verdict: The layer in words.
    """

    layer: str
    neurons: int
    dead: int
    strongest: int
    max_r: float
    min_r: float
    significant: int
    noise_ceiling: float
    verdict: str


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
    outcomes: Outcomes = Outcomes()
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
        total = sum(self.sizes)
        if len(self.layers) != len(self.sizes):
            raise ValueError(
                f"Expected `sizes` to have one entry per layer ({len(self.layers)}), "
                f"but got {len(self.sizes)}."
            )
        for name, column in self.columns.items():
            if name not in COLUMNS or np.shape(column) != (total,):
                raise ValueError(
                    f"Expected `columns` to hold arrays of shape ({total},) named in COLUMNS, "
                    f"but got {name!r} of shape {np.shape(column)}."
                )

    @property
    def rows(self) -> Rows:
        """One :class:`NeuronRow` per neuron, made on access."""
        return Rows(self)

    @property
    def summaries(self) -> list[LayerSummary]:
        """One :class:`LayerSummary` per layer."""
        return [self._summary(i) for i in range(len(self.layers))]

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
        keys = np.where(np.isnan(values), np.inf, -values if largest else values)
        k = max(0, min(k, len(keys)))
        # Partition first: sorting a million neurons for ten rows is the slow way.
        near = np.argpartition(keys, k - 1)[:k] if 0 < k < len(keys) else np.arange(len(keys))
        order = near[np.lexsort((near, keys[near]))][:k]
        return [self.rows[int(i) + offset] for i in order if not np.isnan(values[i])]

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
        path = Path(path)
        arrays, panels = pack_panels(self.panels)
        meta = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("columns", "panels")
        }
        meta |= {"schema": SCHEMA, "outcomes": vars(self.outcomes), "panels": panels}
        arrays |= {f"column/{name}": np.asarray(column) for name, column in self.columns.items()}
        encoded = json.dumps(meta, default=_plain).encode()
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                np.savez(file, meta=np.frombuffer(encoded, dtype=np.uint8), **arrays)  # type: ignore[arg-type]
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | Path) -> NeuronReport:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is not a report or is of a newer schema.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                meta = json.loads(archive["meta"].tobytes())
                schema = meta.pop("schema")
                if not isinstance(schema, int) or schema > SCHEMA:
                    raise ValueError(f"its schema is {schema!r}, this version reads up to {SCHEMA}")
                columns = {
                    key.removeprefix("column/"): archive[key]
                    for key in archive.files
                    if key.startswith("column/")
                }
                panels = unpack_panels(archive, meta.pop("panels"))
                meta["outcomes"] = Outcomes(**meta["outcomes"])
                for name in ("layers", "sizes", "notes"):
                    meta[name] = tuple(meta[name])
                return cls(columns=columns, panels=panels, **meta)
        except (OSError, MemoryError, RecursionError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise _not_a_report(path, error) from error
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, IndexError,
                NotImplementedError, ArithmeticError, SyntaxError, RuntimeError) as error:  # fmt: skip
            raise _not_a_report(path, error) from error

    def _span(self, layer: str) -> tuple[int, int]:
        if layer not in self.layers:
            raise ValueError(
                f"Expected `layer` to be one of {', '.join(map(repr, self.layers))}, but got {layer!r}."
            )
        i = self.layers.index(layer)
        return sum(self.sizes[:i]), self.sizes[i]

    def _summary(self, i: int) -> LayerSummary:
        start = sum(self.sizes[:i])
        span = slice(start, start + self.sizes[i])
        r, q = self.column("r")[span], self.column("q_value")[span]
        known = np.flatnonzero(np.isfinite(r))
        ceiling = math.sqrt(2 * math.log(2 * len(r)) / self.n) if self.n and len(r) else math.nan
        return LayerSummary(
            layer=self.layers[i],
            neurons=self.sizes[i],
            dead=int(self.column("dead")[span].sum()),
            strongest=int(known[np.argmax(r[known])]) if len(known) else -1,
            max_r=float(np.max(r[known])) if len(known) else math.nan,
            min_r=float(np.min(r[known])) if len(known) else math.nan,
            significant=int((q <= verdict.ALPHA).sum()),
            noise_ceiling=min(1.0, ceiling),
            verdict=verdict.layer({name: self.column(name)[span] for name in COLUMNS}),
        )


class Rows(Sequence[NeuronRow]):
    """The rows of a report, made on access."""

    def __init__(self, report: NeuronReport) -> None:
        self._report = report
        self._ends = np.cumsum(report.sizes)
        self._columns = {name: report.column(name) for name in (*COLUMNS, "dead")}

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
        values: dict[str, Any] = {name: float(self._columns[name][i]) for name in COLUMNS}
        dead = bool(self._columns["dead"][i])
        return NeuronRow(
            layer=self._report.layers[layer],
            unit=i - int(self._ends[layer]) + self._report.sizes[layer],
            **values,
            dead=dead,
            verdict=verdict.neuron(values, dead=dead),
        )

    def __iter__(self) -> Iterator[NeuronRow]:
        return (self[i] for i in range(len(self)))


def _plain(value: Any) -> Any:
    """What JSON does not know: NumPy's numbers and read-only mappings."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"Expected plain data in a report, but got {type(value).__name__}.")


def _not_a_report(path: str | Path, error: Exception) -> ValueError:
    return ValueError(
        f"Expected `path` to be a report written by NeuronReport.save, but {str(path)!r} is not: {error}."
    )
