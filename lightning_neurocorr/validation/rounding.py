"""Neurons that say the same of every sample up to rounding: a norm over positions makes them.

What is left of their activations is noise of the arithmetic, and a correlation with it would be one
with nothing. So they count as constant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr.functional import Moments
from lightning_neurocorr.functional.stratified import CellMoments
from lightning_neurocorr.report.layout import Layout
from lightning_neurocorr.validation.processes import running


def largest(
    rounding: Mapping[str, Tensor | None], layout: Layout, device: torch.device
) -> np.ndarray:
    """The largest rounding error of each neuron in any process, ``(D,)``; all must call it.

    Args:
        rounding: Of this process by layer, ``(D,)`` each; 0 of layers that are missing.
        layout: The layers.
        device: Where processes meet.
    """
    if not rounding and not running():
        return np.zeros(len(layout))
    parts = []
    for name, size in zip(layout.layers, layout.sizes, strict=True):
        found = rounding.get(name)
        parts.append(
            torch.zeros(size, device="cpu") if found is None or len(found) != size else found
        )
    where = device if running() else parts[0].device
    whole = torch.cat([part.to(where, torch.float32) for part in parts])
    if running():
        torch.distributed.all_reduce(whole, torch.distributed.ReduceOp.MAX)
    return np.nan_to_num(whole.cpu().numpy(), posinf=0)


def constant(total: Moments, rounding: np.ndarray) -> np.ndarray:
    """Neurons with a spread that is not larger than their rounding error, ``(D,)``."""
    spread = np.sqrt(np.maximum(total.m2.numpy(), 0) / np.maximum(total.n.numpy(), 1))
    return (spread > 0) & (spread <= rounding)


def level(
    total: Moments, halves: Sequence[Moments], cells: Sequence[CellMoments], constant: np.ndarray
) -> tuple[Moments, list[Moments], list[CellMoments]]:
    """The same sums, where some neurons are exactly their mean over all samples.

    Args:
        total: Of all samples.
        halves: Of each half.
        cells: By class, outcome group and half.
        constant: Which neurons, ``(D,)`` bool.
    """
    which = torch.from_numpy(constant)
    return (
        _levelled(total, total.mean, which),
        [_levelled(half, total.mean, which) for half in halves],
        [_levelled_cells(part, total.mean, which) for part in cells],
    )


def _levelled(moments: Moments, mean: Tensor, constant: Tensor) -> Moments:
    return replace(
        moments,
        mean=torch.where(constant & (moments.n > 0), mean, moments.mean),
        m2=moments.m2.masked_fill(constant, 0),
        c=moments.c.masked_fill(constant, 0),
    )


def _levelled_cells(cells: CellMoments, mean: Tensor, constant: Tensor) -> CellMoments:
    shift = torch.from_numpy(cells.shift)
    return replace(
        cells,
        shift=torch.where(constant, mean, shift).numpy(),
        sums=cells.sums.masked_fill(constant.to(cells.sums.device), 0),
        squares=cells.squares.masked_fill(constant.to(cells.squares.device), 0),
    )


def silent_layers(layout: Layout, total: Moments, constant: np.ndarray) -> tuple[str, ...]:
    """Layers in which no neuron tells samples apart, and some do only by rounding."""
    silent, rounded = layout.split((total.m2.numpy() <= 0) | constant), layout.split(constant)
    return tuple(name for name in layout.layers if silent[name].all() and rounded[name].any())
