"""Draw a report into TensorBoard with the writer that is handed in.

Tags are few and the same at every validation, so that sliders and curves mean something: what
changes between validations (which neurons are on top) is inside tables and pictures, not in tags.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from lightning_neurocorr.figures import history_figure
from lightning_neurocorr.history import HistoryEntry, rise
from lightning_neurocorr.report import NeuronReport, NeuronRow
from lightning_neurocorr.scalars import group_r, tag_part
from lightning_neurocorr.sheets import contact_sheet


class Writer(Protocol):
    """What is used of ``torch.utils.tensorboard.SummaryWriter``."""

    def add_text(self, tag: str, text_string: str, global_step: int | None = None) -> Any:
        """Markdown."""

    def add_image(
        self, tag: str, img_tensor: Any, global_step: int | None = None, *, dataformats: str
    ) -> Any:
        """An image ``(H, W, 3)``."""

    def add_histogram(self, tag: str, values: Any, global_step: int | None = None) -> Any:
        """A distribution."""


def draw_report(
    report: NeuronReport, history: Sequence[HistoryEntry], writer: Writer, top_k: int = 16
) -> None:
    """Write one validation: the table of top neurons, r over validations, histograms of r.

    Args:
        report: What the validation found.
        history: All validations so far, this one last.
        writer: A ``SummaryWriter`` or anything with these three methods.
        top_k: How many neurons the table and the figure show.
    """
    step = report.step
    writer.add_text(f"{report.name}/top neurons", markdown(report, history, top_k), step)
    for group, values in group_r(report).items():
        if len(values):
            writer.add_histogram(f"{report.name}/r/{group}", values, step)
    shown = report.shown(top_k)
    if shown:
        figure = history_figure(history, [(row.layer, row.unit) for row in shown])
        writer.add_image(f"{report.name}/r over validations", figure, step, dataformats="HWC")


def draw_sheets(report: NeuronReport, writer: Writer) -> None:
    """Write one contact sheet per layer that has panels."""
    for layer in dict.fromkeys(panel.layer for panel in report.panels):
        tag = f"{report.name}/what neurons see/{tag_part(layer)}"
        writer.add_image(tag, contact_sheet(report, layer), report.step, dataformats="HWC")


def markdown(report: NeuronReport, history: Sequence[HistoryEntry] = (), top_k: int = 16) -> str:
    """The report as Markdown: headline, outcome groups, layers, top neurons and remarks."""
    parts = [f"**{escape(report.headline)}**", _outcome_table(report)]
    if not report.message:
        parts += [_layer_table(report), _neuron_table(report, history, top_k)]
    if report.notes:
        parts.append("\n".join(f"- {escape(note)}" for note in report.notes))
    return "\n\n".join(part for part in parts if part)


def escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = re.sub(r"\s+", " ", text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#+!|~])", r"\\\1", text)


def _outcome_table(report: NeuronReport) -> str:
    outcomes = report.outcomes
    if not outcomes.n:
        return ""
    return (
        f"|{report.baseline and ' ' + escape(report.baseline)} | baseline right | baseline wrong |\n"
        "|---|---|---|\n"
        f"| **model right** ({outcomes.model_accuracy:.1%}) | both: {outcomes.both} "
        f"| only_model: {outcomes.only_model} |\n"
        f"| **model wrong** | only_baseline: {outcomes.only_baseline} "
        f"| neither: {outcomes.neither} |\n"
        f"| | baseline: {outcomes.baseline_accuracy:.1%} | |"
    )


def _layer_table(report: NeuronReport) -> str:
    lines = [
        "| layer | neurons | strongest r | by chance | significant | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for layer in report.summaries:
        found = (
            f"{_number(layer.max_r)} (unit {layer.strongest})" if layer.strongest >= 0 else "n/a"
        )
        lines.append(
            f"| {escape(layer.layer)} | {layer.neurons} | {found} | "
            f"{_number(layer.noise_ceiling, sign=False)} | {layer.significant} | "
            f"{escape(layer.verdict)} |"
        )
    return "\n".join(lines)


def _neuron_table(report: NeuronReport, history: Sequence[HistoryEntry], top_k: int) -> str:
    rows = report.shown(top_k)
    if not rows:
        return ""
    columns = {
        "neuron": lambda row: f"**{escape(row.name)}**",
        "r (95 %)": lambda row: _interval(row.r, row.r_low, row.r_high),
        "q": lambda row: _small(row.q_value),
        "r in class": lambda row: _number(row.r_within_class),
        "r replicated": lambda row: _number(row.r_replicated),
        "both / only_model / only_baseline / neither": _profile,
        "contrast t": lambda row: _number(row.contrast_t, digits=1),
        "attribution (95 %)": lambda row: _interval(
            row.attribution, row.attribution_low, row.attribution_high
        ),
        "ablation": lambda row: _number(row.ablation, digits=3),
        "since epoch": lambda row: _since(history, row),
        "verdict": lambda row: escape(row.verdict),
    }
    for name in ("attribution", "ablation"):
        if not any(math.isfinite(getattr(row, name)) for row in rows):
            columns = {key: cell for key, cell in columns.items() if not key.startswith(name)}
    if len(history) < 2:
        columns.pop("since epoch")
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(cell(row) for cell in columns.values())} |" for row in rows]
    return "\n".join(lines)


def _profile(row: NeuronRow) -> str:
    means = (row.mean_both, row.mean_only_model, row.mean_only_baseline, row.mean_neither)
    return " / ".join(f"{mean:.3g}" if math.isfinite(mean) else "n/a" for mean in means)


def _since(history: Sequence[HistoryEntry], row: NeuronRow) -> str:
    entry = rise(history, row.layer, row.unit)
    return str(entry.epoch) if entry else "n/a"


def _interval(value: float, low: float, high: float) -> str:
    return f"{_number(value)} ({_number(low)} to {_number(high)})" if np.isfinite(value) else "n/a"


def _number(value: float, digits: int = 2, *, sign: bool = True) -> str:
    """Fixed digits with a true minus sign; n/a for what is undefined."""
    if not math.isfinite(value):
        return "n/a"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def _small(value: float) -> str:
    if not math.isfinite(value):
        return "n/a"
    return "< 1e-300" if value == 0 else f"{value:.2g}"
