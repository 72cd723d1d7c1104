"""The training batches as a baseline sees them: all, in order, the same everywhere."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, Subset

from lightning_neurocorr.samples import borrowed, samples_drawn
from lightning_neurocorr.validation.processes import gather_objects


def training_batches(
    loader: Any, move: Callable[[Any], Any] = lambda batch: batch
) -> Iterator[Any]:
    """Every training batch once, unshuffled and not split over processes.

    Args:
        loader: The training loader. A loader over a map-style dataset is read through a plain
            sequential one of the samples that it draws, so that all processes see the same, and
            none that its sampler holds out; anything else is iterated itself. Data sets are copied
            (not what they hold), so that reading them changes nothing.
        move: Takes a batch to where validation batches are.

    Raises:
        ValueError: If there are several training loaders, or one that can be read only once.
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
    if isinstance(loader, Iterator):
        raise ValueError(
            "Expected a training loader that can be gone through again, to fit the baseline on, "
            f"but got a {type(loader).__name__}, which would leave no batch to train on. Fit the "
            "baseline beforehand, or pass a DataLoader."
        )
    if not isinstance(loader, DataLoader):
        return loader
    if isinstance(loader.dataset, IterableDataset):
        return _streamed(loader)
    drawn = gather_objects(samples_drawn(loader))  # a sampler of the user's may be of one process
    dataset = borrowed(loader.dataset)
    if None not in drawn:
        dataset = Subset(dataset, sorted({i for part in drawn for i in part}))
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 64
    return DataLoader(dataset, batch_size=size, collate_fn=loader.collate_fn)


def _streamed(loader: DataLoader[Any]) -> Iterable[Any]:
    """A stream read from a copy, where workers do not copy it: some know how far they were read."""
    if loader.num_workers or type(loader) is not DataLoader:
        return loader
    try:
        dataset = copy.deepcopy(loader.dataset)
    except Exception:  # noqa: BLE001 -- it holds an open file, say
        dataset = copy.copy(loader.dataset)
    return DataLoader(
        dataset, loader.batch_size, collate_fn=loader.collate_fn, drop_last=loader.drop_last
    )
