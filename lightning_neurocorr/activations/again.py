"""Tensors like those of the batch before: what was decided about them is not decided again."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_neurocorr.activations.axes import Axes
from lightning_neurocorr.activations.pooling import mean_dtype
from lightning_neurocorr.activations.sites import Place
from lightning_neurocorr.isolation.torch_private import is_transformed


class PlainMean(NamedTuple):
    """How to take the mean over positions of tensors of one shape, heard at one place.

    Attributes:
        place: Where they are heard.
        shape: Their shape.
        dtype: Their dtype, a floating one.
        positions: The axes of positions; several, or none. Of one, a mask may say which count.
        count: How many positions each sample has.
        wide: The dtype of the mean.
    """

    place: Place
    shape: torch.Size
    dtype: torch.dtype
    positions: tuple[int, ...]
    count: int
    wide: torch.dtype

    def is_for(self, place: Place, value: Any) -> bool:
        """Whether a value is such a tensor."""
        return (
            self.place is place
            and type(value) is Tensor
            and not value.is_nested
            and value.shape == self.shape
            and value.dtype is self.dtype
            and not is_transformed(value)
        )

    def of(self, value: Tensor) -> Tensor:
        """The means, ``(N, D)``."""
        if self.positions:
            return value.detach().mean(self.positions, dtype=self.wide)
        return value.detach().clone()


def plain_mean(place: Place, value: Tensor, axes: Axes) -> PlainMean | None:
    """How to read tensors like this one, which has no mask; None where each is looked at."""
    plain = type(value) is Tensor and value.dtype.is_floating_point and len(axes.positions) != 1
    if not plain:
        return None
    count = math.prod([value.shape[axis] for axis in axes.positions])
    wide = mean_dtype(value)
    return PlainMean(place, value.shape, value.dtype, axes.positions, count, wide)
