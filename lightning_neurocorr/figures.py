"""Figures of a history, as arrays; drawn with matplotlib's objects, without its global state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from lightning_neurocorr.history import HistoryEntry, trajectory

# TensorBoard shows images about 320 px wide until one clicks on them; text has to be legible there,
# so the figure is drawn for that width, with twice as many pixels for the click.
_WIDTH, _ROW, _DPI = 3.3, 0.2, 200
_TEXT = 7.5
_MAX_COLUMNS = 40
_NUMBERED_COLUMNS = 8
_PAPER = "#e9ebee"  # does not glare on a dark page
_UNKNOWN = "#c3c7ce"


def history_figure(
    history: Sequence[HistoryEntry], neurons: Sequence[tuple[str, int]]
) -> np.ndarray:
    """The r of some neurons over validations: a row per neuron, a column per validation.

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
    known = np.abs(r[np.isfinite(r)])
    limit = max(0.05, float(known.max())) if len(known) else 1.0
    figure = Figure(
        figsize=(_WIDTH, 0.75 + _ROW * len(neurons)),
        dpi=_DPI,
        layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02),
        facecolor=_PAPER,
    )
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor(_UNKNOWN)
    shown = axes.imshow(r, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    _label(axes, history, neurons)
    if len(history) <= _NUMBERED_COLUMNS:
        _number(axes, r, limit)
    bar = figure.colorbar(shown, ax=axes, location="bottom", aspect=45, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=_TEXT)
    bar.set_label("correlation with the advantage, r", fontsize=_TEXT)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _label(axes: Axes, history: Sequence[HistoryEntry], neurons: Sequence[tuple[str, int]]) -> None:
    """Neurons on the left, epochs of the validations on top."""
    names = [_name(layer, unit) for layer, unit in neurons]
    axes.set_yticks(range(len(names)), names, fontsize=_TEXT)
    every = -(-len(history) // 10)
    ticks = range(0, len(history), every)
    axes.set_xticks(ticks, [str(history[i].epoch) for i in ticks], fontsize=_TEXT)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("epoch", fontsize=_TEXT, labelpad=2)
    axes.tick_params(length=0, pad=2)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _number(axes: Axes, r: np.ndarray, limit: float) -> None:
    """Write r into each cell, in the colour that can be read there."""
    for (row, column), value in np.ndenumerate(r):
        if np.isfinite(value):
            colour = "white" if abs(value) > 0.6 * limit else "black"
            text = f"{value:+.2f}".replace("0.", ".").replace("-", "−")
            text = text[1:] if text[1:] == ".00" else text
            axes.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)


def _name(layer: str, unit: int) -> str:
    """``layer:unit``, without the middle of a long layer name."""
    name = "".join(c if c.isprintable() else " " for c in layer)
    name = name.encode("ascii", "replace").decode()  # the font lacks most scripts
    name = name if len(name) <= 18 else f"{name[:7]}…{name[-10:]}"
    return f"{name}:{unit}".replace("$", r"\$")
