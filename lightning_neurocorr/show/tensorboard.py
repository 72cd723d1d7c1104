"""Draw a report into TensorBoard with the writer that is handed in.

Tags are few and the same at every validation, so that sliders and curves mean something: what
changes between validations (which neurons are on top) is inside tables and pictures, not in tags.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from lightning_neurocorr.report import NeuronReport
from lightning_neurocorr.report.history import HistoryEntry
from lightning_neurocorr.show.figures import history_figure
from lightning_neurocorr.show.markdown import markdown
from lightning_neurocorr.show.scalars import group_r, layer_groups
from lightning_neurocorr.show.sheets import contact_sheets


class Writer(Protocol):
    """What is used of ``torch.utils.tensorboard.SummaryWriter``."""

    def add_text(self, tag: str, text_string: str, global_step: int | None = None) -> Any:
        """Markdown."""

    def add_image(
        self, tag: str, img_tensor: Any, global_step: int | None = None, *, dataformats: str
    ) -> Any:
        """An image ``(H, W, 3)``."""

    def add_histogram(
        self, tag: str, values: Any, global_step: int | None = None, bins: Any = ...
    ) -> Any:
        """A distribution, counted between the edges ``bins``."""


def draw_report(
    report: NeuronReport,
    history: Sequence[HistoryEntry],
    writer: Writer,
    top_k: int = 16,
    *,
    figure: bool = True,
) -> None:
    """Write one validation: the table of top neurons, histograms of r, and r over validations.

    The figure of r over validations is left out where hardly any has come since the last one.

    Where there is no advantage to explain, a message takes the place of all three.

    Args:
        report: What the validation found.
        history: All validations so far, this one last.
        writer: A ``SummaryWriter`` or anything with these three methods.
        top_k: How many neurons the table and the figure show.
        figure: Whether the figure is drawn: the microscope has a better one.
    """
    draw_table(report, history, writer, top_k)
    if report.message:
        return
    for group, values in group_r(report).items():
        if len(values):
            edges = _edges(len(values))
            writer.add_histogram(f"{report.name}/r/{group}", values, report.step, bins=edges)
    if figure and shows_history(len(history)):
        draw_history(report, history, writer, top_k)


def draw_history(
    report: NeuronReport, history: Sequence[HistoryEntry], writer: Writer, top_k: int = 16
) -> None:
    """Write the figure of r over validations alone."""
    neurons = [(row.layer, row.unit) for row in report.shown(top_k)]
    if neurons and not report.message:
        figure = history_figure(history, neurons)
        writer.add_image(
            f"{report.name}/r over validations", figure, report.step, dataformats="HWC"
        )


def _edges(neurons: int) -> np.ndarray:
    """Even bins of [-1, 1], wider for few neurons, where each would be a spike of its own.

    The writer's own bins crowd around 0, a thousand of them for the thirty that are shown.
    """
    width = next((w for n, w in ((100, 0.04), (1000, 0.02)) if neurons < n), 0.005)
    return np.linspace(-1, 1, round(2 / width) + 1)


def shows_history(validations: int) -> bool:
    """Whether the figure is drawn after so many validations: each of ten, then every tenth part.

    It shows what was before, and of all its steps TensorBoard keeps ten.
    """
    tenth = max(1, validations // 10)
    return validations < 10 or validations % tenth == 0


def draw_table(
    report: NeuronReport, history: Sequence[HistoryEntry], writer: Writer, top_k: int = 16
) -> None:
    """Write the table of top neurons alone."""
    text = markdown(report, history, top_k)
    writer.add_text(f"{report.name}/top neurons", text, report.step)


def draw_sheets(
    report: NeuronReport, writer: Writer, sheets: Mapping[str, np.ndarray] | None = None
) -> None:
    """Write the contact sheets: one per layer, or per group of layers that share tags.

    Args:
        report: What the validation found.
        writer: A ``SummaryWriter`` or anything like it.
        sheets: The sheets by layer, where they have been drawn already.
    """
    sheets = contact_sheets(report) if sheets is None else sheets
    for group, layers in layer_groups(report.layers).items():
        parts = [sheets[layer] for layer in layers if layer in sheets]
        if parts:
            tag = f"{report.name}/what neurons see/{group}"
            writer.add_image(tag, _stacked(parts), report.step, dataformats="HWC")


def _stacked(sheets: Sequence[np.ndarray]) -> np.ndarray:
    """Sheets below each other, narrower ones filled up with the colour of their corner."""
    width = max(sheet.shape[1] for sheet in sheets)
    parts = []
    for sheet in sheets:
        part = np.broadcast_to(sheet[-1, -1], (len(sheet), width, 3)).copy()
        part[:, : sheet.shape[1]] = sheet
        parts.append(part)
    return np.concatenate(parts)
