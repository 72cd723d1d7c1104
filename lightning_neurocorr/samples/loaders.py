"""Where the samples of a loader's batches lie in its data set.

Lightning pads the last round of a distributed sampler with duplicates. A process keeps its local
sample ``p`` if and only if ``p * processes + rank`` is a real sample; that needs no indices.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from lightning_neurocorr.samples.order import collates_in_order
from lightning_neurocorr.samples.rows import check_rows, row_counts

# Samplers that say truly how many they draw.
_COUNTED = (SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler)

# Lightning's own, by name, because no room imports it.
_LIGHTNING = ("lightning", "lightning_fabric", "pytorch_lightning")
_DISTRIBUTED = (
    "DistributedSamplerWrapper",
    "UnrepeatedDistributedSampler",
    "UnrepeatedDistributedSamplerWrapper",
)

_COLLATED = "its `collate_fn` puts the samples of a batch in another order"

# What a subclass of DataLoader must not have changed for batches to be those of the batch sampler.
_DRAWING = ("__iter__", "_get_iterator", "_index_sampler", "_auto_collation")


def check_loader(loader: Any) -> None:
    """Raise unless it can give batches.

    Raises:
        TypeError: If it is a data set, which gives samples, or nothing to go through.
    """
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        raise TypeError(
            f"Expected `loader` to give batches, but got the data set {type(loader).__name__}, "
            "which gives single samples. Pass DataLoader(dataset, batch_size=...); batch_size=None "
            "where its items are batches."
        )
    if isinstance(loader, (Tensor, str, bytes)) or not hasattr(loader, "__iter__"):
        raise TypeError(
            "Expected `loader` to be a DataLoader, or a list or another iterable of batches, but "
            f"got {type(loader).__name__}."
        )


class LoaderPositions:
    """Follows one validation of one loader and says where each sample lies.

    Positions are known where the loader goes through a map-style data set by a sampler that is
    exactly ``SequentialSampler`` or an unshuffled ``DistributedSampler``, in batches of exactly
    ``BatchSampler``, and where each batch has had the rows that were drawn for it. A ``collate_fn``
    of the user's is tried on a few samples: it has to keep their number and their order.

    Args:
        loader: What Lightning iterates.
        offset: Positions of this loader start here: several loaders count as one concatenation.
        rank: This process, for loaders that are not sharded by a sampler.
        world_size: Number of processes.

    Attributes:
        unknown: Why positions are not those of the data set; empty while they are known.
        shared_out: Whether a sampler gives every process samples of its own.
        uncertain_padding: Whether a sampler of the user's may have padded with duplicates.
    """

    def __init__(self, loader: Any, offset: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.loader, self.offset = loader, offset
        dataset = getattr(loader, "dataset", None)
        iterable = isinstance(dataset, IterableDataset) or not isinstance(loader, DataLoader)
        sampler = None if iterable else _sampler_of(loader)
        self._start, self._stride, self._limit = 0, 1, None
        distributed = self.shared_out = isinstance(sampler, DistributedSampler)
        self.uncertain_padding = distributed and not _is_plain_distributed(sampler)
        if distributed:
            self._start, self._stride = sampler.rank, sampler.num_replicas
            if not self.uncertain_padding and isinstance(sampler.dataset, Sized):
                self._limit = len(sampler.dataset)
        elif world_size > 1:
            self._start, self._stride = rank, world_size
        self._sampler = sampler if _is_counted(sampler) else None
        self._order_unknown = _why_unknown(loader, sampler, sharded=world_size == 1 or distributed)
        self.restart()

    @property
    def known(self) -> bool:
        """Whether the numbers given so far are positions in the data set."""
        return not self.unknown

    @property
    def length(self) -> int | None:
        """Number of samples in the dataset, if it says so; without a batch size it has batches."""
        if isinstance(self.loader, DataLoader) and self.loader.batch_sampler is None:
            return None
        return _length(getattr(self.loader, "dataset", None))

    def restart(self) -> None:
        """Begin a new validation."""
        self.unknown = self._order_unknown
        self._seen = self._batches = 0
        self._num_drawn = _length(self._sampler)

    def drawn(self) -> int | None:
        """Samples that are drawn for the next batch, None where that is not known."""
        if self._num_drawn is None:
            return None
        size, drop_last = self.loader.batch_sampler.batch_size, self.loader.batch_sampler.drop_last
        left = self._num_drawn - self._batches * size
        if left < (size if drop_last else 1):  # the pass should be over
            return None
        return min(size, left)

    def advance_over(
        self, batch: Any, num_rows: int, *, identified: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """As :meth:`advance`, after a look at the batch that ``num_rows`` were predicted for.

        Args:
            batch: What the loader gave.
            num_rows: Rows of the prediction.
            identified: Whether the user gives an id for each row.

        Raises:
            ValueError: If the prediction does not have one row for each sample of the batch.
        """
        check_rows(num_rows, row_counts(batch), self.drawn(), identified=identified)
        return self.advance(num_rows)

    def advance(self, num_samples: int) -> tuple[Tensor, Tensor | None]:
        """Numbers ``(N,)`` of the next samples, and which to keep where some are padding.

        Numbers are positions in the data set where these are ``known``, and otherwise in the order
        seen; no two samples of a validation have the same.
        """
        drawn = self.drawn()
        if self.known and num_samples != (drawn or 0):
            self.unknown = (
                f"batch {self._batches} has {num_samples} rows, where {drawn or 0} samples were "
                "drawn for it: its `collate_fn` leaves some out, or adds some"
            )
        numbers = self._places(self._seen, num_samples)
        self._seen += num_samples
        self._batches += 1
        keep = None
        if self._limit is not None and num_samples == drawn and num_samples:
            drawn_before = (self._batches - 1) * self.loader.batch_sampler.batch_size
            places = self._places(drawn_before, num_samples)
            if int(places[-1]) >= self._limit:
                keep = places < self._limit
                # Padding repeats the first samples; where rows were lost numbers only count.
                numbers = numbers % self._limit if self.known else numbers
        return numbers + self.offset, keep

    def pass_over(self) -> None:
        """A batch came for which nothing was predicted."""
        drawn = self.drawn()
        self._seen += drawn or 0
        self._batches += 1

    def _places(self, before: int, n: int) -> Tensor:
        """Where the next ``n`` samples of this process lie, after so many of them."""
        first = self._start + before * self._stride
        return torch.arange(first, first + n * self._stride, self._stride, device="cpu")


def _sampler_of(loader: DataLoader[Any]) -> Any:
    """What the loader's batches are drawn by; None where they come in a way of their own."""
    kind, batches = type(loader), loader.batch_sampler
    plain = all(getattr(kind, name) is getattr(DataLoader, name) for name in _DRAWING)
    # Another batch sampler draws in an order of its own, and without one a sample is a batch.
    return batches.sampler if plain and type(batches) is BatchSampler else None


def _is_plain_distributed(sampler: Any) -> bool:
    kind = type(sampler)
    own = kind.__module__.partition(".")[0] in _LIGHTNING and kind.__name__ in _DISTRIBUTED
    return kind is DistributedSampler or own


def _is_counted(sampler: Any) -> bool:
    return type(sampler) in _COUNTED or _is_plain_distributed(sampler)


def _why_unknown(loader: Any, sampler: Any, *, sharded: bool) -> str:
    """Why a loader's order says nothing about positions; empty where it does."""
    if not isinstance(loader, DataLoader):
        return f"the validation loader is a {type(loader).__name__}, not a DataLoader"
    if isinstance(loader.dataset, IterableDataset):
        return "the validation set is an IterableDataset, whose samples have no position"
    if sampler is None:
        return (
            f"the validation loader ({type(loader).__name__}, "
            f"{type(loader.batch_sampler).__name__}) makes its batches in a way of its own"
        )
    if loader.num_workers and not getattr(loader, "in_order", True):
        return "the validation loader gives batches as workers finish them (in_order=False)"
    if not sharded:
        return f"its {type(sampler).__name__} does not say which process gets which sample"
    why = _why_no_order(loader, sampler)
    # Tried only where nothing else speaks against it.
    return why or ("" if collates_in_order(loader) else _COLLATED)


def _why_no_order(loader: DataLoader[Any], sampler: Any) -> str:
    """Why it is not known in which order a sampler draws; empty where it is."""
    kind = type(sampler).__name__
    if type(sampler) is SequentialSampler:
        return ""
    if not _is_plain_distributed(sampler):
        return f"the validation loader draws its samples by a {kind}, whose order is not known"
    if sampler.shuffle:
        return f"the validation loader shuffles ({kind})"
    if sampler.dataset is not loader.dataset:  # Lightning wraps samplers as lists of indices
        return f"the validation loader draws its samples by another sampler inside of {kind}"
    return ""


def _length(sized: Any) -> int | None:
    try:
        return len(sized) if isinstance(sized, Sized) else None
    except TypeError:
        return None
