"""Runs that the callback wrote for the browser tests, and the file that was exported of them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import lightning_neurocorr as nc
from lightning_neurocorr.inspector import export
from lightning_neurocorr.inspector.reading import stored_in
from lightning_neurocorr.report import NeuronReport
from lightning_neurocorr.studies import Column, Finding, Look, Study, Table
from tests.make_microscope_run import make_run
from tests.microscope_hostile import hostile_run, regression_run
from tests.microscope_states import gone_run, large_run, message_run, silent_run

RUN, PLAIN, COUNT = "digits/version_0", "digits/version_1", 8
WORDS = {"both": "both right", "only_model": "only the model right",
         "only_baseline": "only the baseline right", "neither": "both wrong"}  # fmt: skip


@dataclass(frozen=True)
class Squares(Study):
    """r squared of all neurons: a table too long to be drawn whole."""

    def find(self, look: Look) -> Finding:
        layer, unit = zip(*((row.layer, row.unit) for row in look.report.rows), strict=True)
        columns = (Column("layer", "Its layer.", format="text"),
                   Column("unit", "Its index.", format="count"),
                   Column("squared", "r squared"))  # fmt: skip
        values = {"layer": list(layer), "unit": np.array(unit),
                  "squared": look.report.column("r") ** 2}  # fmt: skip
        return Finding("Squares", "r squared.", tables=(Table("neuron", columns, values),))


class Written:
    """Runs that the callback wrote, and what it had found."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Of the three validations the first has no full table.
        inspector = nc.Inspector(every_n_validations=2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning's advice, ours about a layer that is gone
            self.callback = make_run(folder, 3, inspector=inspector, studies=[Squares()])
            self.plain = make_run(folder, 1, visualizer=None, ablation=None)
            self.hostile = hostile_run(folder)
            self.regression = regression_run(folder)
            self.message, self.silent = message_run(folder), silent_run(folder)
            self.gone, self.large = gone_run(folder), large_run(folder)
        store = stored_in(folder)
        self.file = folder / "page.html"
        text = export.page([export.stored(store, series) for series in store.series()], "runs")
        export.write(self.file, text)

    @property
    def report(self) -> NeuronReport:
        """What the last validation of the first run found."""
        assert self.callback.report is not None
        return self.callback.report


def first(report: NeuronReport, by: str = "r") -> np.ndarray:
    """Rows with the largest first, of equals the first, NaN last."""
    return np.argsort(-report.column(by), kind="stable")


def names(report: NeuronReport) -> list[str]:
    """Names of all neurons."""
    return [row.name for row in report.rows]
