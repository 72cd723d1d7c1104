"""Show a report with whatever loggers a run has; TensorBoard gets everything, others what they can.

How each kind of logger takes it stands in ``ways``. ``inspected`` says that TensorBoard has the
microscope too: what the microscope shows better is not drawn twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lightning_neurocorr.report import NeuronReport
from lightning_neurocorr.report.history import HistoryEntry
from lightning_neurocorr.show.sheets import contact_sheets
from lightning_neurocorr.show.tensorboard import shows_history
from lightning_neurocorr.show.ways import Way, sheet_file, summary_writer, way_into


def log_report(
    report: NeuronReport,
    history: Sequence[HistoryEntry],
    loggers: Iterable[Any],
    top_k: int,
    *,
    inspected: bool = False,
) -> None:
    """Tables, histograms and the history figure."""
    _for_each(loggers, lambda way: way.report(report, history, top_k), inspected)


def log_table(
    report: NeuronReport, history: Sequence[HistoryEntry], loggers: Iterable[Any], top_k: int
) -> None:
    """The table alone, with columns that came later."""
    _for_each(loggers, lambda way: way.top(report, history, top_k))


def log_findings(report: NeuronReport, loggers: Iterable[Any], *, inspected: bool = False) -> None:
    """What studies found."""
    _for_each(loggers, lambda way: way.findings(report), inspected)


def log_history(
    report: NeuronReport | None,
    history: Sequence[HistoryEntry],
    loggers: Iterable[Any],
    top_k: int,
    *,
    inspected: bool = False,
) -> None:
    """At the end of a run the history figure, where the last validation came without one."""
    if report is not None and not shows_history(len(history)):
        _for_each(loggers, lambda way: way.history(report, history, top_k), inspected)


def log_sheets(
    report: NeuronReport, loggers: Iterable[Any], folder: str | None, *, inspected: bool = False
) -> list[Path]:
    """Contact sheets for every logger that shows them; PNG files in ``folder`` if none does.

    Returns:
        The files written.
    """
    sheets = cache(partial(contact_sheets, report))
    largest = max(Counter(panel.layer for panel in report.panels).values(), default=0)

    def show(way: Way) -> bool:
        most = way.most_neurons if way.most_neurons < largest else None
        way.sheets(report, sheets(most))
        return way.shows_sheets

    if any(_for_each(loggers, show, inspected)) or folder is None:
        return []
    return [_write(folder, report, layer, sheet) for layer, sheet in sheets(None).items()]


def summary_writers(loggers: Iterable[Any]) -> list[Any]:
    """The ``SummaryWriter`` of every TensorBoard among ``loggers``."""
    return [writer for writer in map(summary_writer, loggers) if writer is not None]


def _for_each(
    loggers: Iterable[Any], show: Callable[[Way], Any], inspected: bool = False
) -> list[Any]:
    """What ``show`` returns for each way; the first error comes out when all had their turn."""
    shown, errors = [], []
    for logger in loggers:
        try:
            way = way_into(logger)
            if way is not None:
                way.inspected = inspected
                shown.append(show(way))
        except Exception as error:  # noqa: BLE001 -- a full disk must not cost the others theirs
            errors.append(error)
    if errors:
        raise errors[0]
    return shown


def _write(folder: str, report: NeuronReport, layer: str, sheet: np.ndarray) -> Path:
    target = Path(folder) / sheet_file(report, layer)
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(target)
    return target
