"""Where the neurons of each layer lie in a column over all neurons: layer after layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np


def spans(sizes: Sequence[int]) -> list[slice]:
    """Where parts of these sizes lie when one follows the other.

    Examples:
        >>> spans([2, 0, 3])
        [slice(0, 2, None), slice(2, 2, None), slice(2, 5, None)]
    """
    return [slice(*ends) for ends in pairwise(np.cumsum((0, *sizes)).tolist())]


def by_size(sizes: Sequence[int]) -> list[np.ndarray]:
    """Where the neurons of parts lie, an array ``(parts, size)`` for all parts of one size.

    Examples:
        >>> [places.tolist() for places in by_size([2, 3, 2])]
        [[[0, 1], [5, 6]], [[2, 3, 4]]]
    """
    first: dict[int, list[int]] = {}
    for span in spans(sizes):
        first.setdefault(span.stop - span.start, []).append(span.start)
    return [np.array(starts)[:, None] + np.arange(size) for size, starts in first.items()]


@dataclass(frozen=True)
class Layout:
    """Layers and their sizes; a *position* is a neuron's place among the neurons of all layers.

    Attributes:
        layers: Names of the layers, in order.
        sizes: Number of neurons of each.

    Raises:
        ValueError: If names repeat or there is not one size for each.
    """

    layers: tuple[str, ...]
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.layers) != len(self.sizes) or len(set(self.layers)) != len(self.layers):
            raise ValueError(
                f"Expected `layers` to be different names with one entry of `sizes` each, but got "
                f"{self.layers} and {self.sizes}."
            )

    @classmethod
    def of(cls, sizes: Mapping[str, int]) -> Layout:
        """The layout of sizes by layer."""
        return cls(tuple(sizes), tuple(sizes.values()))

    def __len__(self) -> int:
        """Number of neurons."""
        return sum(self.sizes)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """The positions of each layer's neurons."""
        return dict(zip(self.layers, spans(self.sizes), strict=True))

    @cached_property
    def ends(self) -> np.ndarray:
        """The position behind the last neuron of each layer, ``(layers,)``."""
        return np.array([span.stop for span in self.slices.values()], dtype=np.int64)

    @property
    def units(self) -> np.ndarray:
        """The index of each neuron in its layer, ``(neurons,)``."""
        return np.concatenate([np.arange(0), *map(np.arange, self.sizes)])

    def span(self, layer: str) -> slice:
        """The positions of one layer's neurons.

        Raises:
            ValueError: If there is no such layer.
        """
        if layer not in self.slices:
            close = get_close_matches(str(layer), self.layers, n=3, cutoff=0.4)
            known = ", ".join(map(repr, close or self.layers[:12]))
            raise ValueError(
                f"Expected `layer` to be one of the {len(self.layers)} layers of this report, but "
                f"got {layer!r}. {'Close ones are' if close else 'There are'} {known or 'none'}."
            )
        return self.slices[layer]

    def position(self, layer: str, unit: int) -> int:
        """The position of one neuron.

        Raises:
            ValueError: If there is no such layer or unit.
        """
        span = self.span(layer)
        size = span.stop - span.start
        if not isinstance(unit, (int, np.integer)) or not 0 <= unit < size:
            raise ValueError(
                f"Expected `unit` of {layer!r} to be a whole number in [0, {size}), but got "
                f"{unit!r}."
            )
        return span.start + int(unit)

    def neurons(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which layer each position is in, an index, and which unit it is there."""
        layer = np.searchsorted(self.ends, positions, side="right")
        return layer, positions - np.append(0, self.ends)[layer]

    def split(self, column: np.ndarray) -> dict[str, np.ndarray]:
        """A column ``(neurons,)`` by layer, without a copy."""
        return {layer: column[span] for layer, span in self.slices.items()}

    def joined(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        """One column of the parts of layers, ``(neurons,)``; NaN where a layer has none."""
        column = self.unknown()
        for layer, values in parts.items():
            column[self.slices[layer]] = values
        return column

    def repeated(self, values: Sequence[Any]) -> np.ndarray:
        """What is said of layers, said of each of their neurons, ``(neurons,)`` of objects."""
        return np.repeat(np.array(values, dtype=object), self.sizes)

    def unknown(self) -> np.ndarray:
        """A column without a value, ``(neurons,)`` of NaN."""
        return np.full(len(self), np.nan)
