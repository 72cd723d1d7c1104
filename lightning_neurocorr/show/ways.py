"""The ways into loggers, a class each: what one kind of logger can show, and how it takes it.

Kinds are told apart by what they can do, so that none of their packages is needed here. A new kind
is a class and its entry in ``WAYS``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from lightning_neurocorr.report import NeuronReport
from lightning_neurocorr.report.finding_table import Table
from lightning_neurocorr.report.history import HistoryEntry
from lightning_neurocorr.show.findings import draw_findings, plain_rows
from lightning_neurocorr.show.scalars import tag_part
from lightning_neurocorr.show.tensorboard import draw_history, draw_report, draw_sheets, draw_table

_FEW = 4  # neurons of a layer on the sheet beside a microscope


class Way:
    """Into one logger. A kind overrides what it can show; the rest is left out.

    Args:
        logger: The logger of a run.

    Attributes:
        inspected: Whether the run has the microscope too, in TensorBoard.
    """

    shows_sheets: ClassVar[bool] = False
    inspected: bool = False

    @property
    def most_neurons(self) -> float:
        """Of how many neurons of a layer a sheet tells."""
        return math.inf

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    @staticmethod
    def fits(logger: Any) -> bool:
        """Whether the logger is of this kind."""
        raise NotImplementedError

    def report(self, report: NeuronReport, history: Sequence[HistoryEntry], top_k: int) -> None:
        """All of a validation but its sheets and findings."""

    def top(self, report: NeuronReport, history: Sequence[HistoryEntry], top_k: int) -> None:
        """The table of top neurons alone."""

    def history(self, report: NeuronReport, history: Sequence[HistoryEntry], top_k: int) -> None:
        """The figure of r over validations alone."""

    def sheets(self, report: NeuronReport, sheets: Mapping[str, np.ndarray]) -> None:
        """Contact sheets ``(H, W, 3)`` uint8 by layer."""
        for layer, sheet in sheets.items():
            self.sheet(report, layer, sheet)

    def sheet(self, report: NeuronReport, layer: str, sheet: np.ndarray) -> None:
        """The contact sheet of one layer."""

    def findings(self, report: NeuronReport) -> None:
        """What studies found."""
        for name, finding in report.studies.items():
            for table in finding.tables:
                key = f"{report.name}/studies/{tag_part(name)}/{tag_part(table.name)}"
                self.finding(report, key, table)

    def finding(self, report: NeuronReport, key: str, table: Table) -> None:
        """One table of a study, with a key that is safe as a tag and as a path."""


class TensorBoard(Way):
    """A ``SummaryWriter``, PyTorch's or tensorboardX's, or a logger that has one."""

    shows_sheets = True

    def __init__(self, logger: Any) -> None:
        super().__init__(logger)
        self.writer = summary_writer(logger)

    @property
    def most_neurons(self) -> float:
        """Few where the microscope has all."""
        return _FEW if self.inspected else math.inf

    @staticmethod
    def fits(logger: Any) -> bool:
        """Whether there is a writer."""
        return summary_writer(logger) is not None

    def report(self, report: NeuronReport, history: Sequence[HistoryEntry], top_k: int) -> None:
        """The table, histograms and the history figure."""
        draw_report(report, history, self.writer, top_k, figure=not self.inspected)

    def top(self, report: NeuronReport, history: Sequence[HistoryEntry], top_k: int) -> None:
        """As Markdown."""
        draw_table(report, history, self.writer, top_k)

    def history(self, report: NeuronReport, history: Sequence[HistoryEntry], top_k: int) -> None:
        """As an image."""
        if not self.inspected:
            draw_history(report, history, self.writer, top_k)

    def sheets(self, report: NeuronReport, sheets: Mapping[str, np.ndarray]) -> None:
        """An image per group of layers."""
        draw_sheets(report, self.writer, sheets)

    def findings(self, report: NeuronReport) -> None:
        """Texts with tables, and pictures."""
        draw_findings(report, self.writer, figures=not self.inspected)


class WeightsAndBiases(Way):
    """Lightning's ``WandbLogger``, or any logger with ``log_image`` and ``log_table``."""

    shows_sheets = True

    @staticmethod
    def fits(logger: Any) -> bool:
        """Whether it takes images."""
        return hasattr(logger, "log_image")

    def sheet(self, report: NeuronReport, layer: str, sheet: np.ndarray) -> None:
        """An image with a slider over steps."""
        key = f"{report.name}/what neurons see/{tag_part(layer)}"
        self.logger.log_image(key=key, images=[Image.fromarray(sheet)], step=report.step)

    def finding(self, report: NeuronReport, key: str, table: Table) -> None:
        """A table that can be sorted, where the logger takes one."""
        if hasattr(self.logger, "log_table"):
            columns, rows = plain_rows(table)
            self.logger.log_table(key=key, columns=columns, data=rows, step=report.step)


class MLflow(Way):
    """Lightning's ``MLFlowLogger``: files among the artifacts of a run."""

    shows_sheets = True

    @staticmethod
    def fits(logger: Any) -> bool:
        """Whether it has a run, and a client that takes images."""
        client = getattr(logger, "experiment", None)
        return hasattr(client, "log_image") and hasattr(logger, "run_id")

    def sheet(self, report: NeuronReport, layer: str, sheet: np.ndarray) -> None:
        """A PNG file."""
        file = sheet_file(report, layer).as_posix()
        self.logger.experiment.log_image(self.logger.run_id, sheet, artifact_file=file)

    def finding(self, report: NeuronReport, key: str, table: Table) -> None:
        """A JSON file that MLflow shows as a table."""
        columns, rows = plain_rows(table)
        data = {column: [row[i] for row in rows] for i, column in enumerate(columns)}
        file = f"{key}-{report.step}.json"
        self.logger.experiment.log_table(self.logger.run_id, data, artifact_file=file)


# The first that fits is taken.
WAYS: tuple[type[Way], ...] = (TensorBoard, WeightsAndBiases, MLflow)


def way_into(logger: Any) -> Way | None:
    """The way into a logger; None where there is none, so that it gets numbers alone."""
    return next((way(logger) for way in WAYS if way.fits(logger)), None)


def sheet_file(report: NeuronReport, layer: str) -> Path:
    """The file of a layer's sheet, below a folder."""
    own = tag_part(report.name).strip(".") or "_"  # ".." would leave the log folder
    return Path(own) / f"{tag_part(layer)}-{report.step}.png"


def summary_writer(logger: Any) -> Any:
    """The logger's ``SummaryWriter``; None for other loggers."""
    if not hasattr(logger, "log_graph") and not isinstance(logger, _writer_kinds()):
        return None
    experiment = getattr(logger, "experiment", logger)  # made on first access
    return experiment if isinstance(experiment, _writer_kinds()) else None


def _writer_kinds() -> tuple[type, ...]:
    """The classes of writers that can exist: those whose module somebody has loaded."""
    names = ("torch.utils.tensorboard", "tensorboardX")
    return tuple(sys.modules[name].SummaryWriter for name in names if name in sys.modules)
