"""What is heard again: the very tensor, or one like that of the batch before."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from lightning_neurocorr.activations.axes import Axes
from lightning_neurocorr.activations.pooling import mean_dtype
from lightning_neurocorr.activations.sites import Place
from lightning_neurocorr.isolation.torch_private import is_transformed, version_of

_Made = TypeVar("_Made")


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


class HeardLast:
    """What was made of the tensor that was heard last: modules hand the same one on."""

    def __init__(self) -> None:
        self._tensor: Callable[[], Any] = lambda: None  # a weak reference: it dies as it would
        self._state: tuple[int, Axes] | None = None
        self._made: dict[Callable[..., Any], Any] = {}

    def once(self, make: Callable[..., _Made], heard: Any, axes: Axes | None, *more: Any) -> _Made:
        """What ``make(heard, *more)`` gives, which is only asked for another tensor than before.

        Args:
            make: Makes it.
            heard: What was heard.
            axes: Its axes; where they are not known, nothing is kept.
            more: Further arguments, which are the same wherever the tensor is heard.
        """
        if axes is None or heard.is_inference():  # nobody counts how often that is written to
            return make(heard, *more)
        state = version_of(heard), axes
        if self._tensor() is not heard or self._state != state:
            self._tensor, self._state, self._made = weakref.ref(heard), state, {}
        if make not in self._made:
            self._made[make] = make(heard, *more)
        return self._made[make]
