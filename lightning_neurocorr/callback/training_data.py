"""The training batches as a baseline sees them: all, in order, the same everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, IterableDataset


def training_batches(
    loader: Any, move: Callable[[Any], Any] = lambda batch: batch
) -> Iterator[Any]:
    """Every training batch once, unshuffled and not split over processes.

    Args:
        loader: The training loader. A loader over a map-style dataset is read through a plain
            sequential one, so that all processes see the same; anything else is iterated itself.
        move: Takes a batch to where validation batches are.

    Raises:
        ValueError: If there are several training loaders.
    """
    if isinstance(loader, (Mapping, list, tuple)):
        parts = list(loader.values() if isinstance(loader, Mapping) else loader)
        if len(parts) != 1:
            raise ValueError(
                f"Expected one training loader to fit the baseline on, but got {len(parts)}. "
                "Fit it beforehand and pass the fitted one."
            )
        loader = parts[0]
    for batch in _sequential(loader):
        yield move(batch)


def _sequential(loader: Any) -> Iterable[Any]:
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return loader
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 64
    return DataLoader(loader.dataset, batch_size=size, collate_fn=loader.collate_fn)
