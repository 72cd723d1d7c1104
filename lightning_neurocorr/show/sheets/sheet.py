"""One contact sheet per layer: its title, a row per neuron, a legend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_neurocorr.report import COLUMNS, NeuronReport, NeuronRow, rules
from lightning_neurocorr.report.panels import Panel
from lightning_neurocorr.report.written import fixed
from lightning_neurocorr.show.sheets import words
from lightning_neurocorr.show.sheets.canvas import (
    DARK,
    LIGHT,
    MARGIN,
    OUTCOME_COLOURS,
    WIDTH,
    Canvas,
    Palette,
    font,
    line_height,
    shortened,
    wrapped,
)
from lightning_neurocorr.show.sheets.grid import Grid
from lightning_neurocorr.show.sheets.strips import Strips

_TITLE, _NAME, _TEXT, _SMALL = 24, 19, 18, 15


def contact_sheet(
    report: NeuronReport,
    layer: str,
    *,
    samples: int = 4,
    neurons: int | None = None,
    dark: bool = False,
) -> np.ndarray:
    """What the shown neurons of a layer see, a row per neuron: first what passed its controls.

    Args:
        report: A report with panels for the layer.
        layer: Dotted name of the layer.
        samples: The most samples per group and neuron. Where images have other than 1 or 3
            channels, each takes a line, and fewer are shown.
        neurons: The most neurons; None for all. A line says how many more there are.
        dark: Light on dark paper.

    Returns:
        ``(H, W, 3)`` uint8.

    Raises:
        ValueError: If nothing is to be shown for the layer, or a number is below 1.
    """
    for name, value in (("samples", samples), ("neurons", neurons)):
        if value is not None and value < 1:
            raise ValueError(f"Expected `{name}` to be at least 1, but got {value}.")
    every = ranked_panels(report, layer)
    ranked = every[:neurons]
    if not ranked:
        shown = ", ".join(sorted({repr(panel.layer) for panel in report.panels})) or "none"
        raise ValueError(f"Expected `layer` to be one with panels ({shown}), but got {layer!r}.")
    palette = DARK if dark else LIGHT
    panels = [panel for panel, _ in ranked]
    shape = _shape(panels)
    if shape[0] in (1, 3):
        layout = Grid(panels, samples, palette)
    else:
        layout = Strips(panels, samples, palette, shape)
    parts = [_title(report, layer, palette), layout.header()]
    for panel, row in ranked:
        parts += [_heading(row, palette), layout.row(panel)]
    if more := len(every) - len(ranked):
        parts.append(_rest(more, palette))
    parts.append(_legend(panels, layout.legend, palette))
    return np.concatenate([part.array() for part in parts])


def contact_sheets(report: NeuronReport, neurons: int | None = None) -> dict[str, np.ndarray]:
    """The contact sheet of every layer that has panels, by layer, in the order of the report."""
    drawn = [layer for layer in report.layers if any(p.layer == layer for p in report.panels)]
    return {layer: contact_sheet(report, layer, neurons=neurons) for layer in drawn}


def ranked_panels(report: NeuronReport, layer: str) -> list[tuple[Panel, NeuronRow]]:
    """The layer's panels with their rows, those that passed their controls first."""
    rows = {p.unit: report.row(layer, p.unit) for p in report.panels if p.layer == layer}
    kind, evidence = rules.standing(
        {name: np.array([getattr(row, name) for row in rows.values()]) for name in COLUMNS}
    )
    order = dict(
        zip(rows, zip(kind, np.nan_to_num(-evidence, nan=np.inf), rows, strict=True), strict=True)
    )
    units = sorted(rows, key=lambda unit: order[unit])
    return [(panel, rows[unit]) for unit in units if (panel := report.panel(layer, unit))]


def _shape(panels: Sequence[Panel]) -> tuple[int, int, int]:
    """``(C, H, W)`` of the images; C is 1 where there is no image."""
    for panel in panels:
        images = [s.image for group in words.TITLES for s in getattr(panel, group)]
        for image in [*images, panel.shown, panel.picture.image if panel.picture else None]:
            if image is not None:
                channels, height, width = image.shape
                return channels, height, width
    return 1, 1, 1


def _title(report: NeuronReport, layer: str, palette: Palette) -> Canvas:
    room = WIDTH - 2 * MARGIN
    when = f"step {report.step}"
    spare = room - round(font(_TEXT).getlength(when)) - 16
    summary = report.summaries[report.layers.index(layer)]
    chance = f"; by chance the largest |r| is about {fixed(summary.noise_ceiling)}"
    about = summary.verdict + (chance if summary.noise_ceiling > 0 else "")
    lines = wrapped(about, room, font(_TEXT))
    if report.placebo.sentence:
        lines += wrapped(report.placebo.sentence, room, font(_TEXT))
    height = MARGIN + line_height(_TITLE) + len(lines) * line_height(_TEXT) + 12
    canvas = Canvas(WIDTH, height, palette)
    name = shortened(layer, spare, font(_TITLE, True))
    canvas.write((MARGIN, MARGIN - 4), name, _TITLE, bold=True)
    canvas.write((WIDTH - MARGIN, MARGIN), when, _TEXT, colour=palette.muted, anchor="r")
    canvas.write((MARGIN, MARGIN + line_height(_TITLE)), lines, _TEXT, colour=palette.muted)
    return canvas


def _heading(row: NeuronRow, palette: Palette) -> Canvas:
    """A line, then the neuron's name, r and verdict."""
    room = WIDTH - 2 * MARGIN
    r = words.correlation(row)
    lines = wrapped(row.verdict, room, font(_TEXT))
    height = 10 + line_height(_NAME) + len(lines) * line_height(_TEXT) + 8
    canvas = Canvas(WIDTH, height, palette)
    canvas.fill((MARGIN, 2, room, 1), palette.line)
    spare = room - round(font(_NAME, True).getlength(r)) - 16
    unit = f":{row.unit}"
    short = shortened(
        row.layer, spare - round(font(_NAME, True).getlength(unit)), font(_NAME, True)
    )
    canvas.write((MARGIN, 8), short + unit, _NAME, bold=True)
    canvas.write((WIDTH - MARGIN, 8), r, _NAME, bold=True, anchor="r")
    canvas.write((MARGIN, 8 + line_height(_NAME)), lines, _TEXT)
    return canvas


def _rest(more: int, palette: Palette) -> Canvas:
    """That the microscope has further neurons."""
    text = f"{more} more of this layer {'is' if more == 1 else 'are'} in the tab NEURONS."
    canvas = Canvas(WIDTH, line_height(_TEXT) + 14, palette)
    canvas.fill((MARGIN, 2, WIDTH - 2 * MARGIN, 1), palette.line)
    canvas.write((MARGIN, 10), text, _TEXT, colour=palette.muted)
    return canvas


def _legend(panels: Sequence[Panel], about: str, palette: Palette) -> Canvas:
    """What the marks mean: captions, bars of outcomes, and ``about`` where there are pictures."""
    room, step = WIDTH - 2 * MARGIN, line_height(_SMALL)
    seen = {s.outcome for panel in panels for g in words.TITLES for s in getattr(panel, g)}
    outcomes = [outcome for outcome in words.OUTCOMES if outcome in seen]
    text = f"{words.LEGEND} {words.BAR_LEGEND}" if outcomes else words.LEGEND
    above = wrapped(text, room, font(_SMALL))
    below = wrapped(about, room, font(_SMALL)) if any(p.picture for p in panels) else []
    chips = _flow(outcomes, room)
    canvas = Canvas(WIDTH, (len(above) + len(chips) + len(below)) * step + MARGIN + 12, palette)
    canvas.fill((MARGIN, 2, room, 1), palette.line)
    y = canvas.write((MARGIN, 10), above, _SMALL, colour=palette.muted)
    for line in chips:
        for x, outcome in line:
            canvas.fill((MARGIN + x, y + 5, 14, 10), OUTCOME_COLOURS[outcome])
            label = (MARGIN + x + 20, y)
            canvas.write(label, words.OUTCOMES[outcome], _SMALL, colour=palette.muted)
        y += step
    canvas.write((MARGIN, y), below, _SMALL, colour=palette.muted)
    return canvas


def _flow(outcomes: Sequence[str], room: int) -> list[list[tuple[int, str]]]:
    """Legend entries with their x, as many per line as fit."""
    lines: list[list[tuple[int, str]]] = []
    x = room
    for outcome in outcomes:
        width = 20 + round(font(_SMALL).getlength(words.OUTCOMES[outcome])) + 18
        if x + width > room + 18:
            lines.append([])
            x = 0
        lines[-1].append((x, outcome))
        x += width
    return lines
