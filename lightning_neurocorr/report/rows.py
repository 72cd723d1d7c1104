"""The rows of a report, made on access."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import overload

import numpy as np

from lightning_neurocorr.report import verdict
from lightning_neurocorr.report.layout import Layout
from lightning_neurocorr.report.neuron import COLUMNS, NeuronRow

_BLOCK = 4096  # rows made at once when one goes through all


class Rows(Sequence[NeuronRow]):
    """The rows of a report, made on access."""

    def __init__(self, layout: Layout, columns: Mapping[str, np.ndarray]) -> None:
        self._layout, self._columns = layout, columns

    def __len__(self) -> int:
        return len(self._layout)

    @overload
    def __getitem__(self, index: int) -> NeuronRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[NeuronRow]: ...
    def __getitem__(self, index: int | slice) -> NeuronRow | list[NeuronRow]:
        if isinstance(index, slice):
            wanted = range(*index.indices(len(self)))
            if wanted.step == 1:
                return list(self._made(wanted.start, wanted.stop))
            return [self[i] for i in wanted]
        i = range(len(self))[index]
        return next(self._made(i, i + 1))

    def __iter__(self) -> Iterator[NeuronRow]:
        for start in range(0, len(self), _BLOCK):
            yield from self._made(start, min(start + _BLOCK, len(self)))

    def _made(self, start: int, stop: int) -> Iterator[NeuronRow]:
        """The rows from ``start`` to before ``stop``, their verdicts put in words together."""
        at = np.arange(start, stop)
        columns = {name: column[start:stop] for name, column in self._columns.items()}
        columns = dict.fromkeys(COLUMNS, np.full(len(at), np.nan)) | columns
        dead = is_dead(columns["mean"], columns["std"])
        sentences = verdict.neurons(columns, dead)
        which, units = self._layout.neurons(at)
        numbers = zip(*(_numbers(columns[name]) for name in COLUMNS), strict=True)
        for i, values in enumerate(numbers):
            yield NeuronRow(
                layer=self._layout.layers[int(which[i])],
                unit=int(units[i]),
                dead=bool(dead[i]),
                verdict=sentences[i],
                **dict(zip(COLUMNS, values, strict=True)),
            )


def _numbers(column: np.ndarray) -> list[float]:
    """Python's numbers; NaN is one object, so that rows with the same NaN are equal."""
    found = column.astype(np.float64).tolist()
    return [math.nan if value != value else value for value in found]


def is_dead(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Whether each neuron was the same on every sample, ``(D,)`` bool."""
    return ~(std > 0) & np.isfinite(mean)
