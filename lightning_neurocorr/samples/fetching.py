"""Samples of a data set by their positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import default_collate

from lightning_neurocorr.samples.loaders import LoaderPositions


def fetch(
    loaders: Sequence[LoaderPositions], positions: Sequence[int], size: int = 64
) -> Iterator[Any]:
    """Batches of the samples at these dataset positions, collated as the loader would.

    Only for map-style datasets; in order, and a batch never mixes loaders. Yields
    ``(loader index, batch)``.
    """
    pending: list[Any] = []
    current = -1
    for position in positions:
        which = _owner(loaders, position)
        if pending and (which != current or len(pending) == size):
            yield current, _collate(loaders[current], pending)
            pending = []
        current = which
        pending.append(loaders[which].loader.dataset[position - loaders[which].offset])
    if pending:
        yield current, _collate(loaders[current], pending)


def _owner(loaders: Sequence[LoaderPositions], position: int) -> int:
    return max(i for i, loader in enumerate(loaders) if loader.offset <= position)


def _collate(positions: LoaderPositions, samples: list[Any]) -> Any:
    collate = getattr(positions.loader, "collate_fn", None) or default_collate
    return collate(samples)
