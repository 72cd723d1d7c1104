"""Several sets of units of a layer silenced in one forward, each in its own part of the batch.

The batch holds the same ``n`` samples ``V`` times, one time after the other, and maybe some more
that stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_neurocorr.ablation.filling import Fill, others, resampled, token_mask, with_first
from lightning_neurocorr.activations import (
    Place,
    batch_axis,
    first_tensor,
    listen,
    packed_in,
    told_unit_axis,
)
from lightning_neurocorr.activations.token_calls import AskedMask
from lightning_neurocorr.functional.devices import sent


@contextmanager
def silence_variants(
    place: Place,
    sets: Sequence[Sequence[int]],
    samples: int,
    fill: Fill,
    value: Tensor | None = None,
    seed: int = 0,
    untouched: int = 0,
) -> Iterator[None]:
    """Silence units ``sets[v]`` of a layer in part ``v`` of the batch, as :func:`silence` would.

    Args:
        place: Where the layer is read.
        sets: Units, for each part of the batch.
        samples: Of each part, ``n``.
        fill: See :func:`silence`.
        value: Of each unit for ``"mean"``, ``(D,)``; the mean of a batch depends on all its parts.
        seed: Of the pairing of samples for ``"resample"``, the same in every part.
        untouched: Samples behind all parts in which nothing is silenced.

    Raises:
        ValueError: In the forward, if the layer does not say one tensor with the parts of the batch
            on one axis, or never speaks.
    """
    generator = torch.Generator().manual_seed(seed)
    variants = _Variants(sets, samples, untouched, fill, value, generator)
    handle = listen(place, variants)
    try:
        yield
    finally:
        handle.remove()
    variants.check()


@dataclass
class _Variants:
    """A hook that returns what a layer says with other units replaced in each part."""

    sets: Sequence[Sequence[int]]
    samples: int
    untouched: int
    fill: Fill
    value: Tensor | None
    generator: torch.Generator
    early: list[AskedMask] = field(default_factory=list)
    spoken: bool = False

    def __call__(self, place: Place, output: Any) -> Any:
        self.spoken = True
        activation = first_tensor(output)
        if activation.is_nested or packed_in(output) is not None:
            raise ValueError("Expected a tensor with an axis of samples, but got packed sequences.")
        units, rows = told_unit_axis(place, activation), batch_axis(place, activation)
        parts, size = len(self.sets), len(self.sets) * self.samples
        if activation.shape[rows] != size + self.untouched or units == rows:
            raise ValueError(
                f"Expected {parts} times {self.samples} samples and {self.untouched} more on axis "
                f"{rows} of a layer's output, but got {tuple(activation.shape)}."
            )
        stacked = activation.narrow(rows, 0, size).unflatten(rows, (parts, self.samples))
        unit_axis = units + (units > rows)
        shape = [1] * stacked.ndim
        shape[rows], shape[unit_axis] = parts, activation.shape[units]
        silent = _silent(self.sets, activation.shape[units], transposed=units < rows)
        said = self._said(place, activation, rows, unit_axis)
        silent = sent(silent.reshape(shape), activation.device)
        changed = torch.where(silent, said, stacked).flatten(rows, rows + 1)
        if self.untouched:
            changed = torch.cat([changed, activation.narrow(rows, size, self.untouched)], rows)
        return with_first(output, activation, changed)

    def _said(self, place: Place, activation: Tensor, rows: int, unit_axis: int) -> Tensor:
        """What silenced units say, as wide as the activation with its parts on an axis."""
        if self.fill == "mean" and self.value is None:
            raise ValueError("Expected `value` with fill='mean', but got None.")
        if self.fill == "resample":
            parts = torch.arange(len(self.sets), device="cpu")[:, None]
            other = (parts * self.samples + others(self.samples, self.generator)).flatten()
            size = len(other)
            itself = torch.arange(size, size + self.untouched, device="cpu")
            mask = token_mask(place, activation, self.early)
            other = sent(torch.cat([other, itself]), activation.device)
            said = resampled(activation, place, activation, other, mask).narrow(rows, 0, size)
            return said.to(activation.dtype).unflatten(rows, (len(self.sets), self.samples))
        if self.value is None:
            return activation.new_zeros(())
        shape = [-1 if axis == unit_axis else 1 for axis in range(activation.ndim + 1)]
        return sent(self.value, activation.device, activation.dtype).reshape(shape)

    def check(self) -> None:
        """After the forward: the layer has spoken, and not before its mask."""
        if any(asked.answer() is not None for asked in self.early):
            raise ValueError("Expected a layer behind the token mask, but the mask came after it.")
        if not self.spoken:
            raise ValueError("Expected the layer to be called, but it was not.")


def _silent(sets: Sequence[Sequence[int]], size: int, *, transposed: bool) -> Tensor:
    """Which units are silent in each part, ``(V, D)`` or ``(D, V)``."""
    silent = torch.zeros(len(sets), size, dtype=torch.bool, device="cpu")
    for row, units in enumerate(sets):
        silent[row, list(units)] = True
    return silent.T if transposed else silent
