"""Which samples of a data set a loader draws, told without drawing for it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

_PASSES = 10  # of a sampler that draws others each time; none brings more new ones than the first


def samples_drawn(loader: DataLoader[Any]) -> Sequence[int] | None:
    """Positions of the samples that a loader over a map-style data set draws, each once.

    A copy of a sampler of the user's own is gone through, until it draws no others.

    Returns:
        None where it draws from the whole data set.
    """
    batches: Any = loader.batch_sampler
    if batches is None or type(batches) is BatchSampler:
        return _drawn_by(loader.sampler if batches is None else batches.sampler, loader.dataset)
    return _tried(batches, loader.dataset, chain.from_iterable)


def _drawn_by(sampler: Any, dataset: Any) -> Sequence[int] | None:
    if isinstance(sampler, DistributedSampler):
        source: Any = sampler.dataset
        if source is dataset:
            return None
        wraps = hasattr(source, "reset")  # Lightning's, around a sampler: a list of what it draws
        return _tried(source, dataset, _listed) if wraps else range(len(source))
    if type(sampler) in (SequentialSampler, RandomSampler) and sampler.data_source is dataset:
        return None
    if type(sampler) is SubsetRandomSampler:
        return [int(i) for i in sampler.indices]
    if type(sampler) is WeightedRandomSampler:
        return torch.as_tensor(sampler.weights).nonzero()[:, 0].tolist()
    return _tried(sampler, dataset, iter)


def _listed(source: Any) -> Iterable[int]:
    source.reset()
    return [source[i] for i in range(len(source))]


def _tried(source: Any, dataset: Any, drawn: Callable[[Any], Iterable[Any]]) -> Sequence[int]:
    """What comes out of a copy, in a bounded number of draws: some samplers never end."""
    try:
        own = copy.deepcopy(source, {id(dataset): dataset})  # with its random generator
    except Exception:  # noqa: BLE001 -- an open file, say
        own = copy.copy(source)
    found: set[int] = set()
    for _ in range(_PASSES):
        before = len(found)
        found |= {int(i) for i in islice(drawn(own), _PASSES * len(dataset))}
        if len(found) in (before, len(dataset)):
            break
    return sorted(found)
