"""Whether the samples of the validation set keep their places, as stored answers need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_neurocorr.callback.runs import parts_of
from lightning_neurocorr.validation.asking import describe
from lightning_neurocorr.validation.batches import SampleTable
from lightning_neurocorr.validation.options import Options


class SamePlaces:
    """Knows the class at each position of the validations before.

    Loaders that are reloaded may give other samples, or the same ones in another order; so may a
    data set that is shuffled in place. Rows that are looked up by position are then about other
    samples. Classes tell; where there are none, nothing is seen.

    Args:
        options: What the user asked for.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._classes: tuple[Tensor, Tensor] | None = None  # positions in order, and their classes

    def check(self, samples: SampleTable) -> None:
        """Compare a validation with those before, where something is looked up by position.

        Args:
            samples: All samples of the validation.

        Raises:
            ValueError: If another class lies at a position than before.
        """
        by_place = next(_by_position(self._options), None)
        known = (samples.position >= 0) & (samples.target >= 0)
        if by_place is None or not bool(known.any()):
            return
        position, order = samples.position[known].sort()
        target = samples.target[known][order]
        if self._classes is not None:
            _compare(by_place, self._classes, position, target)
        if self._classes is None or len(position) > len(self._classes[0]):
            self._classes = position, target


def _compare(
    by_place: str, before: tuple[Tensor, Tensor], position: Tensor, target: Tensor
) -> None:
    """Raise if a class is another one than at the same position before."""
    places, classes = before
    row = torch.searchsorted(places, position).clamp_max(len(places) - 1)
    other = (places[row] == position) & (classes[row] != target)
    if bool(other.any()):
        first = int(other.int().argmax())
        raise ValueError(
            "Expected the samples of the validation set to keep their places, because "
            f"{by_place} is looked up by position, but got class {int(target[first])} at "
            f"position {int(position[first])}, where class {int(classes[row[first]])} was before. "
            "The data set has other samples, or another order. Look it up by an id that the data "
            "set returns with every sample."
        )


def _by_position(options: Options) -> Iterator[str]:
    """What is looked up by position, in words."""
    for answerer in options.answerers:
        for part in parts_of(answerer):
            if getattr(part, "needs_positions", False):
                yield describe(part)
    if _needs_positions(options.metadata):
        yield "`metadata`"


def _needs_positions(source: Any) -> bool:
    parts = getattr(source, "sources", ())
    return getattr(source, "needs_positions", False) or any(map(_needs_positions, parts))
