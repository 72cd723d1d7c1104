"""Several calls of a layer at one moment count as one: what they gave together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_neurocorr.activations.pooling import widened

# Means over positions (N, D) of a batch, and how many positions each sample has.
OverPositions = tuple[Tensor, int | Tensor]


@dataclass(slots=True)
class Calls:
    """The calls of a layer at one moment: their sum or maximum, mean over positions, how many."""

    values: Tensor
    over: OverPositions | None
    calls: int = 1

    def and_one(self, values: Tensor, over: OverPositions | None, *, largest: bool) -> Calls:
        """These and another: the maximum, else the sum."""
        if largest:
            both = torch.maximum(self.values, values)
        else:
            both = widened(self.values) + widened(values)
        return Calls(both, _together(self.over, over), self.calls + 1)


def _together(first: OverPositions | None, second: OverPositions | None) -> OverPositions | None:
    """Calls count as further positions."""
    if first is None or second is None or first[0].shape != second[0].shape:
        return None
    positions = first[1] + second[1]
    total = _times(*first) + _times(*second)
    return _times(total, 1 / positions), positions


def _times(values: Tensor, weight: float | Tensor) -> Tensor:
    """Rows ``(N, D)`` times a number each, or one for all."""
    return widened(values) * (weight[:, None] if isinstance(weight, Tensor) else weight)
