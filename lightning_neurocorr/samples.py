"""Which samples a batch holds: dataset positions, padding of distributed samplers, folds, fetching.

Lightning pads the last round of a distributed sampler with duplicates. A process keeps its local
sample ``p`` if and only if ``p * processes + rank`` is a real sample; that needs no indices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
    default_collate,
)


class LoaderPositions:
    """Counts through one validation of one loader and says where each sample lies.

    Args:
        loader: What Lightning iterates.
        offset: Positions of this loader start here: several loaders count as one concatenation.
        rank: This process, for loaders that are not sharded by a sampler.
        world_size: Number of processes.

    Attributes:
        known: Whether positions are those of the dataset (sequential and unshuffled distributed
            samplers). Otherwise they only number the samples in the order seen.
        repeated: Whether every process sees every sample (an iterable that nobody shards).
    """

    def __init__(self, loader: Any, offset: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.loader, self.offset = loader, offset
        dataset = getattr(loader, "dataset", None)
        batches = getattr(loader, "batch_sampler", None)
        # Another batch sampler draws in an order of its own, and without one a sample is a batch.
        sampler = batches.sampler if type(batches) is BatchSampler else None
        self._start, self._stride, self._limit = 0, 1, None
        iterable = isinstance(dataset, IterableDataset) or not isinstance(loader, DataLoader)
        self.repeated = iterable and world_size > 1
        if isinstance(sampler, DistributedSampler):
            self._start, self._stride = sampler.rank, sampler.num_replicas
            self._limit = len(sampler.dataset) if isinstance(sampler.dataset, Sized) else None
            # Lightning wraps custom samplers: then the "dataset" is a list of drawn indices.
            self.known = not sampler.shuffle and sampler.dataset is dataset
        elif world_size > 1:
            self._start, self._stride = rank, world_size
            self.known = False
        else:
            self.known = isinstance(sampler, SequentialSampler) and not iterable
        self._seen = 0

    @property
    def length(self) -> int | None:
        """Number of samples in the dataset, if it says so."""
        dataset = getattr(self.loader, "dataset", None)
        try:
            return len(dataset) if isinstance(dataset, Sized) else None
        except TypeError:
            return None

    def restart(self) -> None:
        """Begin a new validation."""
        self._seen = 0

    def advance(self, num_samples: int) -> tuple[Tensor, Tensor | None]:
        """Positions ``(N,)`` of the next samples, and which to keep where some are padding."""
        local = torch.arange(self._seen, self._seen + num_samples)
        self._seen += num_samples
        positions = local * self._stride + self._start
        keep = None
        if self._limit is not None and num_samples and int(positions[-1]) >= self._limit:
            keep = positions < self._limit
            positions = positions % self._limit  # padding repeats the first samples
        return positions + self.offset, keep


def hashed(positions: Tensor, seed: int = 0) -> Tensor:
    """A fixed pseudo-random non-negative integer per position (SplitMix64's finaliser)."""
    start = ((seed + 1) * -7046029254386353131 + 2**63) % 2**64 - 2**63  # as int64 wraps
    x = positions.long() + start
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return (x ^ ((x >> 31) & 0x1FFFFFFFF)) & 0x7FFFFFFFFFFFFFFF


def folds(positions: Tensor) -> Tensor:
    """0 or 1 per sample: halves that no order of the data set can bias."""
    return hashed(positions) >> 62


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
