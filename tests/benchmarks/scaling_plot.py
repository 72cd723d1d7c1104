"""Small multiples: one panel per size that cost grows with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_PAPER, _GRID, _TEXT = "#f4f5f7", "#d5d8de", "#30343b"  # light, also on a dark page
_COLOURS = ("#1f6fb4", "#d1622b", "#5b8f4e")
_COLUMNS = 4


@dataclass(frozen=True)
class Panel:
    """One size and what it costs.

    Attributes:
        title: The size.
        unit: What the values are multiples of, or MB.
        sizes: Values of the size.
        values: By size, the value of each curve.
    """

    title: str
    unit: str
    sizes: Sequence[int]
    values: Sequence[dict[str, float]]

    @property
    def names(self) -> list[str]:
        return list(self.values[0])

    def rows(self) -> list[list[str]]:
        """The rows of a table."""
        digits = 0 if self.unit == "MB" else 2
        return [
            [f"{size:,}", *(f"{value:,.{digits}f}" for value in curves.values())]
            for size, curves in zip(self.sizes, self.values, strict=True)
        ]


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Write all panels into a PNG."""
    rows = -(-len(panels) // _COLUMNS)
    figure = Figure(figsize=(11, 2.75 * rows), dpi=150, layout="constrained", facecolor=_PAPER)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.1)  # type: ignore[union-attr]
    canvas = FigureCanvasAgg(figure)
    for i, panel in enumerate(panels):
        _draw_panel(figure.add_subplot(rows, _COLUMNS, i + 1), panel)
    canvas.print_png(path)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    for name, colour in zip(panel.names, _COLOURS, strict=False):
        values = [curves[name] for curves in panel.values]
        axes.plot(panel.sizes, values, "o-", color=colour, markersize=4, linewidth=1.6, label=name)
    axes.set_xscale("log")
    axes.set_xticks(panel.sizes, [_short(size) for size in panel.sizes])
    if panel.unit == "MB":
        axes.set_yscale("log")
    else:
        top = max(max(curves.values()) for curves in panel.values)
        axes.set_ylim(0, 1.15 * max(top, 2))
        axes.axhline(1, color=_TEXT, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.minorticks_off()
    axes.set_title(panel.title, fontsize=10, color=_TEXT, loc="left", fontweight="bold")
    axes.set_ylabel(panel.unit, fontsize=8.5, color=_TEXT)
    axes.set_facecolor(_PAPER)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.tick_params(labelsize=8.5, length=0, colors=_TEXT)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.legend(fontsize=8, frameon=False, labelcolor=_TEXT)


def _short(size: int) -> str:
    """1000 as 1k, a million as 1M."""
    for power, letter in ((10**6, "M"), (10**3, "k")):
        if size >= power and size % (power // 10) == 0:
            return f"{size / power:g}{letter}"
    return str(size)
