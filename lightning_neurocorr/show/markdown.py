"""A report as Markdown: what TensorBoard's page of texts shows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from textwrap import wrap

from lightning_neurocorr.report import LayerSummary, NeuronReport, NeuronRow
from lightning_neurocorr.report.finding import overview
from lightning_neurocorr.report.history import HistoryEntry
from lightning_neurocorr.report.neuron import COLUMNS, DECLARED, TENSORBOARD
from lightning_neurocorr.report.written import (
    UNDEFINED,
    counted,
    fixed,
    printable,
    share,
    small,
    step,
    typeset,
    written,
)

_LINE = 28  # characters
_LINES = rf".{{1,{_LINE}}}$|.{{0,{_LINE - 1}}}[./:_ -]|.{{1,{_LINE}}}"


def markdown(report: NeuronReport, history: Sequence[HistoryEntry] = (), top_k: int = 16) -> str:
    """The report as Markdown: headline, outcome groups, top neurons, layers and remarks."""
    parts = [f"**{escape(typeset(report.headline))}**", _outcome_table(report)]
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
    text = printable(re.sub(r"\s+", " ", text).strip())
    return re.sub(r"[&<>|`*_\[\]{}#!~\\]|^[^A-Za-z]", lambda c: f"&#{ord(c[0])};", text)


def in_lines(text: str, mark: str = "") -> str:
    """Any text on short lines, for a cell: a long one would take the width of all numbers.

    Args:
        text: The text; it is broken behind a dot, a slash and the like where it has one.
        mark: Stands around each line, as ``"**"`` for bold.
    """
    whole = re.sub(r"\s+", " ", text).strip()
    lines = [escape(line) for line in re.findall(_LINES, whole) if line.strip()]
    return "<br>".join(f"{mark}{line}{mark}" for line in lines)


def _outcome_table(report: NeuronReport) -> str:
    outcomes = report.outcomes
    if not outcomes.n:
        return ""
    return (
        f"| {counted(outcomes.n, 'sample')} | baseline right ({share(outcomes.baseline_accuracy)}) "
        "| baseline wrong |\n|---|---|---|\n"
        f"| **model right** ({share(outcomes.model_accuracy)}) | both: {outcomes.both:,} "
        f"| only_model: **{outcomes.only_model:,}** |\n"
        f"| **model wrong** | only_baseline: {outcomes.only_baseline:,} "
        f"| neither: {outcomes.neither:,} |"
    )


def _neuron_table(report: NeuronReport, history: Sequence[HistoryEntry], top_k: int) -> str:
    """Few columns of short lines: where they do not fit, TensorBoard's page breaks words apart."""
    rows = report.shown(top_k)
    if not rows:
        return escape(f"No neuron stands out. {rows.foot}".rstrip())
    epochs = {float(entry.step): entry.epoch for entry in history}
    cells = _cells(rows, epochs, bool(report.outcomes.n))
    lines = ["Neurons to look at, those that passed their controls first:", ""]
    lines += [f"| {' | '.join(cells)} |", "|" + "---|" * len(cells)]
    lines += [f"| {' | '.join(cell(row) for cell in cells.values())} |" for row in rows]
    lines += ["", escape(rows.foot)]
    return "\n".join(lines)


# Columns that stand below each other in one cell; any other one has a cell of its own.
_CORRELATION = ("r", "r_low", "r_high", "q_value")
_CONTROLS = ("r_within_class", "r_replicated", "risen_at")
_ATTRIBUTION = ("attribution", "attribution_low", "attribution_high")
_ABLATION = ("ablation", "ablation_control")
_MEANS = ("mean_both", "mean_only_model", "mean_only_baseline", "mean_neither")
_STACKED = {*_CORRELATION, *_CONTROLS, *_ATTRIBUTION, *_ABLATION, *_MEANS, "contrast_t"}


def _cells(
    rows: Sequence[NeuronRow], epochs: Mapping[float, int], grouped: bool
) -> dict[str, Callable[[NeuronRow], str]]:
    """What stands in a row of the table, by title; columns that nobody measured are left out."""

    def known(name: str) -> bool:
        return any(math.isfinite(getattr(row, name)) for row in rows)

    cells: dict[str, Callable[[NeuronRow], str]] = {
        "neuron<br>verdict": _verdict,
        "r<br>95 %<br>q": _correlation,
        "r in class<br>replicated<br>since": lambda row: _controls(row, epochs),
    }
    if known("attribution"):
        cells["attribution<br>95 %"] = _attribution
    if known("ablation"):
        cells["ablation<br>random"] = _ablation
    if grouped:
        cells["mean in both /<br>only_model /<br>only_baseline /<br>neither<br>contrast t"] = (
            _profile
        )
    for name in COLUMNS:
        if TENSORBOARD in DECLARED[name].shown and name not in _STACKED and known(name):
            cells[escape(name)] = partial(_own, name=name)
    return cells


def _own(row: NeuronRow, name: str) -> str:
    return written(getattr(row, name), DECLARED[name].format)


def _layer_table(report: NeuronReport) -> str:
    lines = [
        "Layers, with the largest |r| that so many unrelated neurons would reach by chance:",
        "",
    ]
    lines += ["| layer | largest r | by chance | verdict |", "|---|---|---|---|"]
    for layer in report.summaries:
        unit = f" (unit {layer.strongest})" if layer.strongest >= 0 else ""
        name, chance = f"{in_lines(layer.layer, '**')}{_place(layer)}", fixed(layer.noise_ceiling)
        verdict = "<br>".join(map(escape, wrap(layer.verdict, 2 * _LINE)))
        lines.append(f"| {name} | {_number(layer.max_r)}{unit} | {chance} | {verdict} |")
    return "\n".join(lines)


def _place(layer: LayerSummary) -> str:
    """Where a layer is read, if not at its own output."""
    elsewhere = layer.read_at not in ("", layer.layer)
    return f"<br>{in_lines(f'read at {layer.read_at}')}" if elsewhere else ""


def _verdict(row: NeuronRow) -> str:
    """The neuron, and its claims below each other."""
    lines = [line for claim in row.verdict.split("; ") for line in wrap(claim, _LINE)]
    return "<br>".join([in_lines(row.name, "**"), *map(escape, lines)])


def _correlation(row: NeuronRow) -> str:
    return f"**{_number(row.r)}**<br>{_interval(row.r_low, row.r_high)}<br>q {small(row.q_value)}"


def _controls(row: NeuronRow, epochs: Mapping[float, int]) -> str:
    since = UNDEFINED if math.isnan(row.risen_at) else f"step {step(row.risen_at)}"
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
    means = [getattr(row, name) for name in _MEANS]
    largest = max((abs(mean) for mean in means if math.isfinite(mean)), default=0.0)
    digits = max(0, 2 - math.floor(math.log10(largest))) if largest else 0
    if digits > 4:
        texts = [small(mean) for mean in means]
    else:
        texts = [fixed(mean, digits) for mean in means]
    texts[1] = f"**{texts[1]}**"
    first, second = " / ".join(texts[:2]), " / ".join(texts[2:])
    return f"{first} /<br>{second}<br>t {_number(row.contrast_t, 1)}"


_number = partial(fixed, sign=True)


def _interval(low: float, high: float) -> str:
    """On two lines: a long one in a narrow column is broken inside a number."""
    return f"{_number(low)}<br>to {_number(high)}"
