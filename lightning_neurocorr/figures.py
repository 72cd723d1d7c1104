"""Figures of a history, as arrays; drawn with matplotlib's objects, without its global state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lightning_neurocorr.history import HistoryEntry, trajectory

_MAX_COLUMNS = 40


def history_figure(
    history: Sequence[HistoryEntry], neurons: Sequence[tuple[str, int]]
) -> np.ndarray:
    """r of some neurons over validations: a row per neuron, a column per validation.

    Args:
        history: Validations in order. Of more than forty, forty evenly spaced ones are shown.
        neurons: Layer and unit of each row, from top to bottom.

    Returns:
        An RGB image ``(H, W, 3)``, uint8.
    """
    if len(history) > _MAX_COLUMNS:
        chosen = np.unique(np.linspace(0, len(history) - 1, _MAX_COLUMNS).round().astype(int))
        history = [history[i] for i in chosen]
    r = np.stack([trajectory(history, layer, unit) for layer, unit in neurons])
    known = np.abs(r[np.isfinite(r)])
    limit = max(0.05, float(known.max())) if len(known) else 1.0
    cell = 0.46 if len(history) <= 12 else 0.3
    figure = Figure(
        figsize=(3.4 + cell * max(len(history), 6), 1.5 + 0.26 * len(neurons)),
        dpi=110,
        layout="constrained",
    )
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor("#d9d9d9")  # not watched, or undefined
    shown = axes.imshow(r, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    axes.set_yticks(range(len(neurons)), [_label(layer, unit) for layer, unit in neurons])
    every = max(1, len(history) // 12)
    ticks = range(0, len(history), every)
    axes.set_xticks(ticks, [str(history[i].epoch) for i in ticks])
    axes.set(xlabel="epoch of the validation", title="Correlation with the advantage, r")
    axes.title.set_fontsize(10)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if len(history) <= 12:
        _annotate(axes, r, limit)
    bar = figure.colorbar(shown, ax=axes, fraction=0.05, pad=0.02)
    bar.outline.set_visible(False)  # type: ignore[operator]
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _annotate(axes: object, r: np.ndarray, limit: float) -> None:
    """Write r into its cell where there is room, in the colour that can be read there."""
    for (row, column), value in np.ndenumerate(r):
        if np.isfinite(value):
            colour = "white" if abs(value) > 0.65 * limit else "black"
            text = f"{value:+.2f}".replace("0.", ".").replace("-", "−")
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)  # type: ignore[attr-defined]


def _label(layer: str, unit: int) -> str:
    name = "".join(c if c.isprintable() else " " for c in layer).replace("$", r"\$")
    return f"{name if len(name) <= 28 else f'{name[:12]}…{name[-14:]}'}:{unit}"
