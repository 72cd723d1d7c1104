"""Draw a report into TensorBoard with the writer that is handed in.

Tags are few and the same at every validation, so that sliders and curves mean something: what
changes between validations (which neurons are on top) is inside tables and pictures, not in tags.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from textwrap import wrap
from typing import Any, Protocol

import numpy as np

from lightning_neurocorr.report import LayerSummary, NeuronReport, NeuronRow
from lightning_neurocorr.report.finding import overview
from lightning_neurocorr.report.history import HistoryEntry
from lightning_neurocorr.show.figures import history_figure
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
    report: NeuronReport, history: Sequence[HistoryEntry], writer: Writer, top_k: int = 16
) -> None:
    """Write one validation: the table of top neurons, histograms of r, and r over validations.

    The figure of r over validations is left out where hardly any has come since the last one.

    Where there is no advantage to explain, a message takes the place of all three.

    Args:
        report: What the validation found.
        history: All validations so far, this one last.
        writer: A ``SummaryWriter`` or anything with these three methods.
        top_k: How many neurons the table and the figure show.
    """
    draw_table(report, history, writer, top_k)
    if report.message:
        return
    for group, values in group_r(report).items():
        if len(values):
            edges = _edges(len(values))
            writer.add_histogram(f"{report.name}/r/{group}", values, report.step, bins=edges)
    if shows_history(len(history)):
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


def markdown(report: NeuronReport, history: Sequence[HistoryEntry] = (), top_k: int = 16) -> str:
    """The report as Markdown: headline, outcome groups, top neurons, layers and remarks."""
    # A true minus, at which no line breaks: p = 8.7e−42.
    headline = re.sub(r"(?<=\de)-(?=\d)", "−", report.headline)
    parts = [f"**{escape(headline)}**", _outcome_table(report)]
    if not report.message:
        parts += [_neuron_table(report, history, top_k), _layer_table(report)]
    parts.append("\n".join(f"- {escape(line)}" for line in overview(report.studies)))
    parts.append(f"Baseline: {escape(report.baseline)}. Advantage: {escape(report.advantage)}.")
    if report.provenance:
        parts.append(f"Compared: {escape(report.compared)}.")
    parts.append("\n".join(f"- {escape(note)}" for note in report.notes))
    return "\n\n".join(part for part in parts if part)


def escape(text: str) -> str:
    """Any text as Markdown that shows it as it is, on one line.

    Entities rather than backslashes: these also survive inside tables.
    """
    text = re.sub(r"\s+", " ", text).strip()
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return re.sub(r"[&<>|`*_\[\]{}#!~\\]|^[^A-Za-z]", lambda c: f"&#{ord(c[0])};", text)


def _outcome_table(report: NeuronReport) -> str:
    outcomes = report.outcomes
    if not outcomes.n:
        return ""
    return (
        f"| {outcomes.n} samples | baseline right ({outcomes.baseline_accuracy:.1%}) "
        "| baseline wrong |\n|---|---|---|\n"
        f"| **model right** ({outcomes.model_accuracy:.1%}) | both: {outcomes.both} "
        f"| only_model: **{outcomes.only_model}** |\n"
        f"| **model wrong** | only_baseline: {outcomes.only_baseline} "
        f"| neither: {outcomes.neither} |"
    )


def _neuron_table(report: NeuronReport, history: Sequence[HistoryEntry], top_k: int) -> str:
    """Few columns: TensorBoard's page takes about six before it breaks words apart."""
    rows = report.shown(top_k)
    if not rows:
        return ""
    epochs = {float(entry.step): entry.epoch for entry in history}
    columns: dict[str, Callable[[NeuronRow], str]] = {
        "neuron<br>verdict": _verdict,
        "r<br>95 %<br>q": _correlation,
        "r in class<br>replicated<br>since": lambda row: _controls(row, epochs),
    }
    if any(math.isfinite(row.attribution) for row in rows):
        columns["attribution<br>95 %"] = _attribution
    if any(math.isfinite(row.ablation) for row in rows):
        columns["ablation<br>random"] = _ablation
    if report.outcomes.n:
        columns["mean in both / only_model /<br>only_baseline / neither<br>contrast t"] = _profile
    lines = ["Neurons to look at, those that passed their controls first:", ""]
    lines += [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(cell(row) for cell in columns.values())} |" for row in rows]
    lines += ["", escape(rows.foot)]
    return "\n".join(lines)


def _layer_table(report: NeuronReport) -> str:
    lines = [
        "Layers, with the largest |r| that so many unrelated neurons would reach by chance:",
        "",
    ]
    lines += ["| layer | largest r | by chance | verdict |", "|---|---|---|---|"]
    for layer in report.summaries:
        unit = f" (unit {layer.strongest})" if layer.strongest >= 0 else ""
        chance = _number(layer.noise_ceiling, sign=False)
        lines.append(
            f"| **{escape(layer.layer)}**{_place(layer)} | {_number(layer.max_r)}{unit} | {chance} "
            f"| {escape(layer.verdict)} |"
        )
    return "\n".join(lines)


def _place(layer: LayerSummary) -> str:
    """Where a layer is read, if not at its own output."""
    elsewhere = layer.read_at not in ("", layer.layer)
    return f"<br>read at {escape(layer.read_at)}" if elsewhere else ""


def _verdict(row: NeuronRow) -> str:
    """Claims below each other, in short lines: a long one would take the width of all numbers."""
    lines = [line for claim in row.verdict.split("; ") for line in wrap(claim, 36)]
    return "<br>".join([f"**{escape(row.name)}**", *map(escape, lines)])


def _correlation(row: NeuronRow) -> str:
    return f"**{_number(row.r)}**<br>{_interval(row.r_low, row.r_high)}<br>q {_small(row.q_value)}"


def _controls(row: NeuronRow, epochs: Mapping[float, int]) -> str:
    since = "n/a" if math.isnan(row.risen_at) else f"step {row.risen_at:.0f}"
    if row.risen_at in epochs:
        since = f"epoch {epochs[row.risen_at]}"
    return f"{_number(row.r_within_class)}<br>{_number(row.r_replicated)}<br>{since}"


def _attribution(row: NeuronRow) -> str:
    interval = _interval(row.attribution_low, row.attribution_high)
    return f"**{_number(row.attribution)}**<br>{interval}"


def _ablation(row: NeuronRow) -> str:
    """In logits, as attribution."""
    return f"**{_number(row.ablation)}**<br>{_number(row.ablation_control)}"


def _profile(row: NeuronRow) -> str:
    means = (row.mean_both, row.mean_only_model, row.mean_only_baseline, row.mean_neither)
    largest = max((abs(mean) for mean in means if math.isfinite(mean)), default=0.0)
    digits = max(0, 2 - math.floor(math.log10(largest))) if largest else 0
    if digits > 4:
        texts = [f"{mean:.2g}" if math.isfinite(mean) else "n/a" for mean in means]
    else:
        texts = [_number(mean, digits, sign=False) for mean in means]
    texts[1] = f"**{texts[1]}**"
    return f"{' / '.join(texts)}<br>t {_number(row.contrast_t, 1)}"


def _interval(low: float, high: float) -> str:
    """On one line wherever it fits."""
    return "\N{NO-BREAK SPACE}".join([_number(low), "to", _number(high)])


def _number(value: float, digits: int = 2, *, sign: bool = True) -> str:
    """Fixed digits with a true minus sign and no sign before zero; n/a for what is undefined."""
    if not math.isfinite(value):
        return "n/a"
    text = f"{abs(value):.{digits}f}"
    if not float(text):
        return text
    return f"−{text}" if value < 0 else f"{'+' if sign else ''}{text}"


def _small(value: float) -> str:
    """A q value with two digits at most."""
    if not math.isfinite(value):
        return "n/a"
    return f"{value:.2g}" if value >= 1e-4 or value == 0 else f"{value:.0e}".replace("e-0", "e-")


def _stacked(sheets: Sequence[np.ndarray]) -> np.ndarray:
    """Sheets below each other, narrower ones filled up with the colour of their corner."""
    width = max(sheet.shape[1] for sheet in sheets)
    parts = []
    for sheet in sheets:
        part = np.broadcast_to(sheet[-1, -1], (len(sheet), width, 3)).copy()
        part[:, : sheet.shape[1]] = sheet
        parts.append(part)
    return np.concatenate(parts)
