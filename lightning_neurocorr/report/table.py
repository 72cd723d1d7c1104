"""The table of neurons that a validation found, with its outcomes, pictures and evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from lightning_neurocorr.report import storage, verdict
from lightning_neurocorr.report.dataframe import dataframe
from lightning_neurocorr.report.finding import Finding, overview
from lightning_neurocorr.report.layout import Layout
from lightning_neurocorr.report.neuron import COLUMNS, SMALL_IS_STRONG, NeuronRow
from lightning_neurocorr.report.outcomes import Outcomes
from lightning_neurocorr.report.panels import Panel
from lightning_neurocorr.report.placebo import PlaceboCounts
from lightning_neurocorr.report.ranking import largest_of, worth_showing
from lightning_neurocorr.report.rows import Rows, is_dead
from lightning_neurocorr.report.samples import Samples
from lightning_neurocorr.report.summary import LayerSummary, summary
from lightning_neurocorr.report.top_list import TopList
from lightning_neurocorr.report.written import counted, printable, typeset


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
        placebo: How many neurons a baseline with nothing left to know would have got called; empty
            where none was tried.
        stability: How far the top list of each layer is that of the validation before, by layer.
        provenance: In words, which tensors were compared: ``"prediction"``, ``"target"``,
            ``"baseline"``, ``"positions"`` and more.
        read_at: Where each layer is read: its own name, or that of the module behind it. Empty in
            reports of earlier versions, which read every layer at its own output.
        samples: Every sample, and which of them drive each neuron most; None where that was not
            kept.
        class_names: Names of classes by their id; empty where none were given.
        asked: Whether ``"attribution"``, ``"ablation"`` and so on were asked for; what is not in it
            is not known.
        studies: What each study found, or why it found nothing, by the study's name.
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
    stability: Mapping[str, float] = field(default_factory=dict)
    placebo: PlaceboCounts = field(default_factory=PlaceboCounts)
    provenance: Mapping[str, str] = field(default_factory=dict)
    read_at: tuple[str, ...] = ()
    samples: Samples | None = None
    class_names: Mapping[int, str] = field(default_factory=dict)
    asked: Mapping[str, bool] = field(default_factory=dict)
    studies: Mapping[str, Finding] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.read_at and len(self.read_at) != len(self.layers):
            raise ValueError(
                f"Expected `read_at` to be empty or a place for each of {len(self.layers)} layers, "
                f"but got {self.read_at}."
            )
        for name, finding in self.studies.items():
            if not isinstance(name, str) or not isinstance(finding, Finding):
                raise TypeError(
                    f"Expected `studies` to hold a Finding by name, but got {name!r}: {finding!r}."
                )
        total = len(self.layout)
        shown = {} if self.samples is None else self.samples.exemplars
        if any(len(rows) != total for rows in shown.values()):
            counts = sorted({len(rows) for rows in shown.values()})
            raise ValueError(
                f"Expected `samples` to have exemplars of {total} neurons, but got {counts}."
            )
        for name, column in self.columns.items():
            found = np.asarray(column)
            if name not in COLUMNS or found.shape != (total,) or found.dtype.kind not in "fiub":
                raise ValueError(
                    f"Expected `columns` to hold numbers of shape ({total},) named in COLUMNS, "
                    f"but got {name!r} of shape {found.shape} and type {found.dtype}."
                )

    def __repr__(self) -> str:
        neurons, layers = counted(len(self.rows), "neuron"), counted(len(self.layers), "layer")
        about = f"{neurons} in {layers}, {counted(self.n, 'sample')}"
        top = "" if self.message else f"\n\n{self.shown(5)}"
        compared = f"\n{printable(self.compared)}" if self.provenance else ""
        told = "".join(f"\n  {line}" for line in overview(self.studies))
        studies = f"\n\nStudies:{told}" if told else ""
        return f"NeuronReport {self.name!r}: {about}.\n{self.headline}{compared}{top}{studies}"

    def _repr_html_(self) -> str:
        """The headline and the top neurons, for a notebook."""
        top = "" if self.message else self.shown(5)._repr_html_()
        compared = f"<p>{escape(printable(self.compared))}</p>" if self.provenance else ""
        studies = "".join(
            found._repr_html_() for found in self.studies.values() if found.state != "not_asked"
        )
        return f"<p>{escape(typeset(self.headline))}</p>{compared}{top}{studies}"

    @cached_property
    def layout(self) -> Layout:
        """Where the neurons of each layer lie in a column."""
        return Layout(self.layers, self.sizes)

    @property
    def rows(self) -> Rows:
        """One :class:`NeuronRow` per neuron, made on access."""
        return Rows(self.layout, self.columns)

    @property
    def verdicts(self) -> np.ndarray:
        """The verdict on every neuron, ``(neurons,)`` of strings."""
        return verdict.neurons({"r": self.column("r"), **self.columns}, self.column("dead"))

    @property
    def summaries(self) -> list[LayerSummary]:
        """One :class:`LayerSummary` per layer."""
        dead, known = self.column("dead"), {"r": self.column("r"), **self.columns}
        places = self.read_at or [""] * len(self.layers)
        return [
            summary(
                layer,
                {name: column[span] for name, column in known.items()},
                dead[span],
                self.n,
                stability=self.stability.get(layer, math.nan),
                read_at=place,
            )
            for (layer, span), place in zip(self.layout.slices.items(), places, strict=True)
        ]

    @property
    def headline(self) -> str:
        """The result in one or two sentences."""
        if self.message:
            return self.message
        return verdict.headline(self.outcomes, {"r": self.column("r"), **self.columns})

    @property
    def compared(self) -> str:
        """What was compared, on one line: ``prediction: output of `forward`, (N, 10); ...``."""
        return "; ".join(f"{what}: {words}" for what, words in self.provenance.items())

    def column(self, name: str) -> np.ndarray:
        """A column over all neurons, ``(neurons,)``.

        Raises:
            ValueError: If there is no such column.
        """
        if name == "dead":
            return is_dead(self.column("mean"), self.column("std"))
        if name not in COLUMNS:
            close = get_close_matches(str(name), COLUMNS, n=3) or COLUMNS
            raise ValueError(
                f"Expected a column of numbers, but got {name!r}. "
                f"{'There are' if close is COLUMNS else 'Close ones are'} {', '.join(close)}."
            )
        found = self.columns.get(name)
        return self.layout.unknown() if found is None else found

    def top(
        self, k: int = 10, by: str = "r", *, layer: str | None = None, largest: bool | None = None
    ) -> TopList:
        """The ``k`` strongest neurons by a column; neurons without a value are left out.

        Args:
            k: How many, at most.
            by: Any numeric column. Signs count: the most negative r comes last, not first.
            layer: Only this layer. Scores of different layers are not strictly comparable.
            largest: Largest values first; by default so, except for p and q.

        Returns:
            A list, strongest first, that prints as a table; of equals, the first in the report
            comes first.

        Raises:
            TypeError: If ``k`` is no whole number.
            ValueError: If the column or the layer is unknown.
        """
        if not isinstance(k, (int, np.integer)) or isinstance(k, bool):
            raise TypeError(
                f"Expected `k` to be a number of neurons, but got {k!r}. A column to rank by goes "
                "into `by`, a layer into `layer`."
            )
        span = self._span(layer)
        values = self.column(by).astype(np.float64)[span]
        if largest is None:
            largest = by not in SMALL_IS_STRONG
        known = np.flatnonzero(~np.isnan(values))
        rows, strength = self.rows, values if largest else -values
        chosen = [rows[span.start + int(i)] for i in largest_of(strength, known, max(0, int(k)))]
        order = f"the {'largest' if largest else 'smallest'} {by} first"
        return TopList(
            chosen,
            order=order,
            by=by,
            layer=layer,
            chosen_from=len(values),
            n=self.n,
            placebo=self.placebo.sentence,
        )

    def shown(self, k: int = 16, *, layer: str | None = None) -> TopList:
        """``k`` neurons to look at: first those that passed their controls.

        Those that encode the advantage and are used, those that encode it, those that are used,
        those that are needed; of a kind, the one with more evidence first. Then of the others in
        turn the one with the largest r (within class where the class explains it) and that with
        the largest attribution.

        Args:
            k: How many, at most.
            layer: Only this layer.
        """
        span = self._span(layer)
        columns = {name: self.column(name)[span] for name in ("r", "attribution")}
        columns |= {name: column[span] for name, column in self.columns.items()}
        chosen, counts = worth_showing(columns, max(0, k))
        rows = self.rows
        return TopList(
            [rows[span.start + i] for i in chosen],
            order="those that passed their controls first",
            layer=layer,
            chosen_from=len(columns["r"]),
            n=self.n,
            placebo=self.placebo.sentence,
            kinds=counts,
        )

    def row(self, layer: str, unit: int) -> NeuronRow:
        """The row of one neuron."""
        return self.rows[self.layout.position(layer, unit)]

    def panel(self, layer: str, unit: int) -> Panel | None:
        """Exemplars and picture of one neuron, if it was shown."""
        return next((p for p in self.panels if (p.layer, p.unit) == (layer, unit)), None)

    def to_dataframe(self) -> Any:
        """All rows as a ``pandas.DataFrame`` (needs the extra ``pandas``)."""
        table: dict[str, Any] = {
            "layer": self.layout.repeated(self.layers),
            "unit": self.layout.units,
        }
        if self.read_at:
            table["read_at"] = self.layout.repeated(self.read_at)
        table |= {name: self.column(name) for name in COLUMNS}
        table |= {"dead": self.column("dead"), "verdict": self.verdicts}
        return dataframe(table)

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

    def export(
        self,
        path: str | Path,
        *,
        history: Sequence[Any] = (),
        runs: Mapping[str, NeuronReport] | None = None,
        title: str = "",
        max_bytes: int = 20_000_000,
    ) -> Path:
        """Write the neuron microscope with this report as one HTML file and return its path.

        It opens from disk, asks no network for anything and needs nothing installed.

        Args:
            path: Where to write it.
            history: The validations before, ``callback.history``: r of every neuron over time.
            runs: Further reports to compare with, by a name for each.
            title: What stands in the title of the window.
            max_bytes: About how large it may be. Beyond, older tables, thumbnails and columns are
                left out, and the page says so.

        Raises:
            TypeError: If a report or an entry of the history is none.
        """
        from lightning_neurocorr.inspector import export

        series = export.of_reports(self, history, runs or {})
        return export.write(path, export.page(series, title, max_bytes))

    def class_name(self, number: int) -> str:
        """A class as it is shown: its name, else its id."""
        return self.class_names.get(number, str(number))

    def _span(self, layer: str | None) -> slice:
        """The positions of a layer's neurons; of all where it is None."""
        return slice(0, len(self.layout)) if layer is None else self.layout.span(layer)
