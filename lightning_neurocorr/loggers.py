"""Show a report with whatever logger a run has; TensorBoard gets everything, others what they can.

Loggers are told apart by what they can do, so that none of their packages is needed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lightning_neurocorr.history import HistoryEntry
from lightning_neurocorr.report import NeuronReport
from lightning_neurocorr.scalars import tag_part
from lightning_neurocorr.sheets import contact_sheet
from lightning_neurocorr.tensorboard import draw_report, draw_sheets, draw_table


def log_report(
    report: NeuronReport, history: Sequence[HistoryEntry], loggers: Iterable[Any], top_k: int
) -> None:
    """Tables, histograms and the history figure for every TensorBoard among ``loggers``."""
    for logger in loggers:
        writer = _summary_writer(logger)
        if writer is not None:
            draw_report(report, history, writer, top_k)


def log_table(
    report: NeuronReport, history: Sequence[HistoryEntry], loggers: Iterable[Any], top_k: int
) -> None:
    """The table alone, with columns that came later, for every TensorBoard among ``loggers``."""
    for logger in loggers:
        writer = _summary_writer(logger)
        if writer is not None:
            draw_table(report, history, writer, top_k)


def log_sheets(report: NeuronReport, loggers: Iterable[Any], folder: str | None) -> list[Path]:
    """Contact sheets for every logger with an image call; PNG files in ``folder`` if none has one.

    Returns:
        The files written.
    """
    if not report.panels:
        return []
    sheets = {
        layer: contact_sheet(report, layer)
        for layer in dict.fromkeys(panel.layer for panel in report.panels)
    }
    shown = [_show(report, sheets, logger) for logger in loggers]
    if any(shown) or folder is None:
        return []
    return [_write(folder, report, layer, sheet) for layer, sheet in sheets.items()]


def _show(report: NeuronReport, sheets: dict[str, np.ndarray], logger: Any) -> bool:
    """Give the sheets to one logger; False if it cannot show images."""
    writer = _summary_writer(logger)
    if writer is not None:
        draw_sheets(report, writer)
        return True
    for layer, sheet in sheets.items():
        key = f"{report.name}/what neurons see/{tag_part(layer)}"
        if hasattr(logger, "log_image"):  # W&B
            logger.log_image(key=key, images=[Image.fromarray(sheet)])
        elif hasattr(getattr(logger, "experiment", None), "log_image") and hasattr(
            logger, "run_id"
        ):
            artifact = f"{report.name}/{tag_part(layer)}-{report.step}.png"
            logger.experiment.log_image(logger.run_id, sheet, artifact_file=artifact)  # MLflow
        else:
            return False
    return True


def _summary_writer(logger: Any) -> Any:
    """The logger's ``SummaryWriter``; None for other loggers, tensorboardX among them."""
    from torch.utils.tensorboard import SummaryWriter

    if not hasattr(logger, "log_graph") and not isinstance(logger, SummaryWriter):
        return None
    experiment = getattr(logger, "experiment", logger)
    return experiment if isinstance(experiment, SummaryWriter) else None


def _write(folder: str, report: NeuronReport, layer: str, sheet: np.ndarray) -> Path:
    own = tag_part(report.name).strip(".") or "_"  # ".." would leave the log folder
    target = Path(folder) / own / f"{tag_part(layer)}-{report.step}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(target)
    return target
