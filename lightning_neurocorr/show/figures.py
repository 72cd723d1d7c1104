"""Figures of a history, as arrays; drawn with matplotlib's objects, without its global state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine

from lightning_neurocorr.report.history import HistoryEntry, trajectory
from lightning_neurocorr.report.written import fixed

# TensorBoard shows images about 320 px wide until one clicks on them; text has to be legible there,
# so the figure is drawn for that width, with twice as many pixels for the click.
_WIDTH, _ROW, _DPI = 3.3, 0.2, 200
_TEXT = 7.5
_MAX_COLUMNS = 40
_NUMBERED_COLUMNS = 8
_MAX_LAYERS = 6
_PAPER = "#e9ebee"  # does not glare on a dark page
_UNKNOWN = "#c3c7ce"


def history_figure(
    history: Sequence[HistoryEntry], neurons: Sequence[tuple[str, int]]
) -> np.ndarray:
    """The r of some neurons over validations, and how stable the top lists of their layers were.

    A row per neuron or layer, a column per validation.

    Args:
        history: Validations in order. Of more than forty, forty evenly spaced ones are shown.
        neurons: Layer and unit of each row, from top to bottom.

    Returns:
        An RGB image ``(H, W, 3)``, uint8. Grey cells: not watched then, or undefined.
    """
    if len(history) > _MAX_COLUMNS:
        chosen = np.unique(np.linspace(0, len(history) - 1, _MAX_COLUMNS).round().astype(int))
        history = [history[i] for i in chosen]
    r = np.stack([trajectory(history, layer, unit) for layer, unit in neurons])
    layers, stability = _stability(history, list(dict.fromkeys(layer for layer, _ in neurons)))
    known = np.abs(r[np.isfinite(r)])
    limit = max(0.05, float(known.max())) if len(known) else 1.0
    figure = Figure(
        figsize=(_WIDTH, 1.25 + _ROW * (len(neurons) + len(layers))),
        dpi=_DPI,
        layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02),
        facecolor=_PAPER,
    )
    canvas = FigureCanvasAgg(figure)
    above, below = figure.subplots(2, height_ratios=[len(neurons), len(layers)])
    shown = _cells(above, r, "RdBu_r", -limit, limit)
    _label(above, history, [_name(layer, unit) for layer, unit in neurons])
    if len(history) <= _NUMBERED_COLUMNS:
        _number(above, r, limit, sign=True)
        _number(below, stability, 1.0)
    bar = figure.colorbar(shown, ax=above, location="bottom", aspect=45, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=_TEXT)
    bar.set_label("correlation with the advantage, r", fontsize=_TEXT)
    _cells(below, stability, "Greens", 0, 1)
    _bare(below, layers)
    below.set_xticks([])
    below.set_xlabel("share of the top list kept since the\nvalidation before: white 0, green 1",
                     fontsize=_TEXT)  # fmt: skip
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _stability(
    history: Sequence[HistoryEntry], layers: Sequence[str]
) -> tuple[list[str], np.ndarray]:
    """Names and stability ``(rows, validations)``: a row per layer, or one for many of them."""
    every = [[entry.stability.get(layer, np.nan) for entry in history] for layer in layers]
    values = np.array(every, dtype=float)
    if len(layers) <= _MAX_LAYERS:
        return [_name(layer) for layer in layers], values
    known = np.isfinite(values)
    counts = known.sum(0)
    mean = np.where(known, values, 0).sum(0) / np.maximum(counts, 1)
    return [f"mean of {len(layers)} layers"], np.where(counts, mean, np.nan)[None]


def _cells(axes: Axes, values: np.ndarray, colours: str, low: float, high: float) -> AxesImage:
    axes.set_facecolor(_UNKNOWN)
    return axes.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto")


def _bare(axes: Axes, names: Sequence[str]) -> None:
    """Names on the left, and no lines."""
    axes.set_yticks(range(len(names)), names, fontsize=_TEXT)
    axes.tick_params(length=0, pad=2)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _label(axes: Axes, history: Sequence[HistoryEntry], names: Sequence[str]) -> None:
    """Neurons on the left, epochs of the validations on top."""
    _bare(axes, names)
    every = -(-len(history) // 10)
    ticks = range(0, len(history), every)
    axes.set_xticks(ticks, [str(history[i].epoch) for i in ticks], fontsize=_TEXT)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("epoch", fontsize=_TEXT, labelpad=2)


def _number(axes: Axes, values: np.ndarray, limit: float, *, sign: bool = False) -> None:
    """Write the value into each cell, in the colour that can be read there."""
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if abs(value) > 0.6 * limit else "black"
            text = fixed(value, sign=sign).replace("0.", ".")
            axes.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)


def _name(layer: str, unit: int | None = None) -> str:
    """``layer:unit``, without the middle of a long layer name."""
    name = "".join(c if c.isprintable() else " " for c in layer)
    name = name.encode("ascii", "replace").decode()  # the font lacks most scripts
    name = name if len(name) <= 18 else f"{name[:7]}…{name[-10:]}"
    return (name if unit is None else f"{name}:{unit}").replace("$", r"\$")
