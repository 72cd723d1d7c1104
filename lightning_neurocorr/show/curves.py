"""The curves of an ablation, as a small image."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, NullLocator

_WIDTH, _ROW, _DPI = 3.3, 1.15, 200  # legible at 320 px, as TensorBoard shows images
_TEXT = 7.5
_PAPER, _INK, _RANDOM = "#e9ebee", "#22577a", "#8a8f98"
_MOST_LAYERS = 8


def ablation_curves(values: Mapping[str, np.ndarray], spread: np.ndarray) -> np.ndarray:
    """Margin lost over the number of neurons silenced, a row per layer.

    Args:
        values: Columns ``layer``, ``size``, ``beyond`` and ``random`` of the curves, ``(points,)``.
            Of more than eight layers the eight that lose most are shown.
        spread: Standard deviation of the random sets, ``(points,)``.

    Returns:
        An RGB image ``(H, W, 3)``, uint8.
    """
    layers = list(dict.fromkeys(values["layer"]))
    most = {name: np.max(values["beyond"][values["layer"] == name]) for name in layers}
    shown = sorted(layers, key=lambda name: -np.nan_to_num(most[name], nan=-np.inf))[:_MOST_LAYERS]
    layers = [name for name in layers if name in shown]
    figure = Figure(
        figsize=(_WIDTH, 0.35 + _ROW * len(layers)),
        dpi=_DPI,
        layout=ConstrainedLayoutEngine(),
        facecolor=_PAPER,
    )
    canvas = FigureCanvasAgg(figure)
    rows = figure.subplots(len(layers), 1, squeeze=False)[:, 0]
    for axes, name in zip(rows, layers, strict=True):
        mine = values["layer"] == name
        size, lost = values["size"][mine], values["beyond"][mine]
        random, around = values["random"][mine], spread[mine]
        axes.set_facecolor(_PAPER)
        axes.fill_between(
            size, random - 2 * around, random + 2 * around, color=_RANDOM, alpha=0.3, lw=0
        )
        axes.plot(size, random, color=_RANDOM, lw=1, marker="o", ms=2, label="random")
        axes.plot(size, lost, color=_INK, lw=1.4, marker="o", ms=3, label="top")
        axes.axhline(0, color="#b0b5bd", lw=0.6, zorder=0)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(size.tolist()))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([f"{n:g}" for n in size])
        axes.tick_params(labelsize=_TEXT - 1, length=2)
        axes.set_title(name[-44:].replace("$", r"\$"), fontsize=_TEXT, loc="left", pad=2)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    rows[0].legend(fontsize=_TEXT - 1, frameon=False, ncols=2, loc="best")
    rows[-1].set_xlabel("neurons silenced; lost margin in logits", fontsize=_TEXT)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
