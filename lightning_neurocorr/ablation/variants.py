"""Several sets of units of a layer silenced in one forward, each in its own part of the batch.

The batch holds the same ``n`` samples ``V`` times, one time after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lightning_neurocorr.ablation.silencing import Fill, others, resampled, token_mask, with_first
from lightning_neurocorr.activations import (
    Place,
    batch_axis,
    first_tensor,
    listen,
    packed_in,
    told_unit_axis,
)
from lightning_neurocorr.activations.token_calls import AskedMask


@contextmanager
def silence_variants(
    place: Place,
    sets: Sequence[Sequence[int]],
    samples: int,
    fill: Fill,
    value: Tensor | None = None,
    seed: int = 0,
) -> Iterator[None]:
    """Silence units ``sets[v]`` of a layer in part ``v`` of the batch, as :func:`silence` would.

    Args:
        place: Where the layer is read.
        sets: Units, for each part of the batch.
        samples: Of each part, ``n``.
        fill: See :func:`silence`.
        value: Of each unit for ``"mean"``, ``(D,)``; the mean of a batch depends on all its parts.
        seed: Of the pairing of samples for ``"resample"``, the same in every part.

    Raises:
        ValueError: In the forward, if the layer does not say one tensor with the parts of the batch
            on one axis, or never speaks.
    """
    generator = torch.Generator().manual_seed(seed)
    early: list[AskedMask] = []
    spoken = False

    def hook(place: Place, output: Any) -> Any:
        nonlocal spoken
        spoken = True
        activation = first_tensor(output)
        if activation.is_nested or packed_in(output) is not None:
            raise ValueError("Expected a tensor with an axis of samples, but got packed sequences.")
        units, rows = told_unit_axis(place, activation), batch_axis(place, activation)
        if activation.shape[rows] != len(sets) * samples or units == rows:
            raise ValueError(
                f"Expected {len(sets)} times {samples} samples on axis {rows} of a layer's output, "
                f"but got {tuple(activation.shape)}."
            )
        shape = [1] * (activation.ndim + 1)
        shape[rows], shape[units + (units > rows)] = len(sets), activation.shape[units]
        silent = _silent(sets, activation.shape[units], transposed=units < rows)
        if fill == "mean" and value is None:
            raise ValueError("Expected `value` with fill='mean', but got None.")
        if fill == "resample":
            one = others(samples, generator)
            other = (torch.arange(len(sets))[:, None] * samples + one).flatten()
            mask = token_mask(place, activation, early)
            other = other.to(activation.device, non_blocking=True)
            said = resampled(activation, place, activation, other, mask)
            said = said.to(activation.dtype).unflatten(rows, (len(sets), samples))
        elif value is None:
            said = activation.new_zeros(())
        else:
            there = [-1 if axis == units + (units > rows) else 1 for axis in range(len(shape))]
            said = value.to(activation, non_blocking=True).reshape(there)
        stacked = activation.unflatten(rows, (len(sets), samples))
        silent = silent.reshape(shape).to(activation.device, non_blocking=True)
        changed = torch.where(silent, said, stacked).flatten(rows, rows + 1)
        return with_first(output, activation, changed)

    handle = listen(place, hook)
    try:
        yield
    finally:
        handle.remove()
    if any(asked.answer() is not None for asked in early):
        raise ValueError("Expected a layer behind the token mask, but the mask came after it.")
    if not spoken:
        raise ValueError("Expected the layer to be called, but it was not.")


def _silent(sets: Sequence[Sequence[int]], size: int, *, transposed: bool) -> Tensor:
    """Which units are silent in each part, ``(V, D)`` or ``(D, V)``."""
    silent = torch.zeros(len(sets), size, dtype=torch.bool)
    for row, units in enumerate(sets):
        silent[row, list(units)] = True
    return silent.T if transposed else silent
