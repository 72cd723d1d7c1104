"""Show a report with whatever logger a run has; TensorBoard gets everything, others what they can.

Loggers are told apart by what they can do, so that none of their packages is needed here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lightning_neurocorr.report import NeuronReport
from lightning_neurocorr.report.history import HistoryEntry
from lightning_neurocorr.show.findings import draw_findings, plain_rows
from lightning_neurocorr.show.scalars import tag_part
from lightning_neurocorr.show.sheets import contact_sheets
from lightning_neurocorr.show.tensorboard import (
    draw_history,
    draw_report,
    draw_sheets,
    draw_table,
    shows_history,
)


def log_report(
    report: NeuronReport, history: Sequence[HistoryEntry], loggers: Iterable[Any], top_k: int
) -> None:
    """Tables, histograms and the history figure for every TensorBoard among ``loggers``."""
    _for_each(summary_writers(loggers), lambda writer: draw_report(report, history, writer, top_k))


def log_table(
    report: NeuronReport, history: Sequence[HistoryEntry], loggers: Iterable[Any], top_k: int
) -> None:
    """The table alone, with columns that came later, for every TensorBoard among ``loggers``."""
    _for_each(summary_writers(loggers), lambda writer: draw_table(report, history, writer, top_k))


def log_findings(report: NeuronReport, loggers: Iterable[Any]) -> None:
    """What studies found, for every TensorBoard and every logger that takes tables."""
    _for_each(loggers, lambda logger: _show_findings(report, logger))


def _show_findings(report: NeuronReport, logger: Any) -> None:
    writer = _summary_writer(logger)
    if writer is not None:
        draw_findings(report, writer)
        return
    for name, finding in report.studies.items():
        for table in finding.tables:
            columns, rows = plain_rows(table)
            key = f"{report.name}/studies/{tag_part(name)}/{tag_part(table.name)}"
            experiment = getattr(logger, "experiment", None)
            if hasattr(logger, "log_table"):  # W&B
                logger.log_table(key=key, columns=columns, data=rows, step=report.step)
            elif experiment is not None and hasattr(logger, "run_id"):  # MLflow
                data = {column: [row[i] for row in rows] for i, column in enumerate(columns)}
                file = f"{key}-{report.step}.json"
                experiment.log_table(logger.run_id, data, artifact_file=file)


def log_history(
    report: NeuronReport | None,
    history: Sequence[HistoryEntry],
    loggers: Iterable[Any],
    top_k: int,
) -> None:
    """At the end of a run the history figure, where the last validation came without one."""
    if report is not None and not shows_history(len(history)):
        _for_each(
            summary_writers(loggers), lambda writer: draw_history(report, history, writer, top_k)
        )


def log_sheets(report: NeuronReport, loggers: Iterable[Any], folder: str | None) -> list[Path]:
    """Contact sheets for every logger with an image call; PNG files in ``folder`` if none has one.

    Returns:
        The files written.
    """
    sheets = contact_sheets(report)
    shown = _for_each(loggers, lambda logger: _show(report, sheets, logger))
    if any(shown) or folder is None:
        return []
    return [_write(folder, report, layer, sheet) for layer, sheet in sheets.items()]


def _for_each(loggers: Iterable[Any], show: Callable[[Any], Any]) -> list[Any]:
    """What ``show`` returns for each; the first error comes out when all have had their turn."""
    shown, errors = [], []
    for logger in loggers:
        try:
            shown.append(show(logger))
        except Exception as error:  # noqa: BLE001 -- a full disk must not cost the others theirs
            errors.append(error)
    if errors:
        raise errors[0]
    return shown


def summary_writers(loggers: Iterable[Any]) -> list[Any]:
    """The ``SummaryWriter`` of every TensorBoard among ``loggers``."""
    return [writer for writer in map(_summary_writer, loggers) if writer is not None]


def _show(report: NeuronReport, sheets: Mapping[str, np.ndarray], logger: Any) -> bool:
    """Give the sheets to one logger; False if it cannot show images."""
    writer = _summary_writer(logger)
    if writer is not None:
        draw_sheets(report, writer, sheets)
        return True
    for layer, sheet in sheets.items():
        if hasattr(logger, "log_image"):  # W&B
            key = f"{report.name}/what neurons see/{tag_part(layer)}"
            logger.log_image(key=key, images=[Image.fromarray(sheet)], step=report.step)
        elif hasattr(getattr(logger, "experiment", None), "log_image") and hasattr(
            logger, "run_id"
        ):  # MLflow
            file = _place(report, layer).as_posix()
            logger.experiment.log_image(logger.run_id, sheet, artifact_file=file)
        else:
            return False
    return True


def _summary_writer(logger: Any) -> Any:
    """The logger's ``SummaryWriter``, PyTorch's or tensorboardX's; None for other loggers."""
    if not hasattr(logger, "log_graph") and not isinstance(logger, _writer_kinds()):
        return None
    experiment = getattr(logger, "experiment", logger)  # made on first access
    return experiment if isinstance(experiment, _writer_kinds()) else None


def _writer_kinds() -> tuple[type, ...]:
    """The classes of writers that can exist: those whose module somebody has loaded."""
    names = ("torch.utils.tensorboard", "tensorboardX")
    return tuple(sys.modules[name].SummaryWriter for name in names if name in sys.modules)


def _place(report: NeuronReport, layer: str) -> Path:
    """Where the sheet of a layer goes below the log folder."""
    own = tag_part(report.name).strip(".") or "_"  # ".." would leave the log folder
    return Path(own) / f"{tag_part(layer)}-{report.step}.png"


def _write(folder: str, report: NeuronReport, layer: str, sheet: np.ndarray) -> Path:
    target = Path(folder) / _place(report, layer)
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(target)
    return target
