"""Whether rows still have the order of the samples they were made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy, deepcopy
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader, Dataset, default_collate, default_convert

from lightning_neurocorr.isolation.randomness import preserved_randomness

_TRIED = 16  # samples: enough that labels hardly fall in the old order by chance
_FEWEST = 16  # ids that say anything

_known: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def reordered(given: Tensor, source: Tensor) -> bool:
    """Whether ``given`` has the rows of ``source`` in another order.

    Few ids have the same counts by chance. So those of one column have to agree as rarely as
    shuffled ones do, and ids that were renamed, such as labels 0 and 1 swapped, are no other order.
    """
    if given.shape != source.shape or len(given) < 2:
        return False
    a, b = (part.detach().cpu().reshape(len(part), -1).double() for part in (given, source))
    if torch.equal(a, b):
        return False
    rows, of_a, counts = a.unique(dim=0, return_inverse=True, return_counts=True)
    same, of_b, as_often = b.unique(dim=0, return_inverse=True, return_counts=True)
    if not (torch.equal(rows, same) and torch.equal(counts, as_often)):
        return False
    if a.shape[1] > 1:
        return True
    if len(a) < _FEWEST:
        return False
    renamed = len(torch.stack([of_a, of_b], 1).unique(dim=0)) == len(rows)
    share = counts.double() / len(a)
    chance = float((share**2).sum())
    most = chance + 3 * (chance * (1 - chance) / len(a)) ** 0.5
    return not renamed and float((of_a == of_b).double().mean()) <= most


def collates_in_order(loader: DataLoader[Any]) -> bool:
    """Whether ``collate_fn`` leaves the first samples of the data set in their order.

    One that sorts them by length, say, does not: given the samples backwards, it makes of them a
    batch whose rows are not backwards. And what the first becomes alone has to come first. Asked
    once of a loader; where it cannot be tried, it is believed.
    """
    if loader.collate_fn in (default_collate, default_convert):
        return True
    if loader not in _known:
        with preserved_randomness():
            try:
                _known[loader] = _tried(loader)
            except Exception:  # noqa: BLE001 -- what the user's code does with these is no fault
                _known[loader] = True
    return _known[loader]


def _tried(loader: DataLoader[Any]) -> bool:
    dataset: Any = borrowed(loader.dataset)
    samples = [dataset[i] for i in range(min(len(dataset), loader.batch_size or 1, _TRIED))]
    forwards = loader.collate_fn(deepcopy(samples))
    alone = loader.collate_fn(deepcopy(samples[:1]))
    if any(map(_is_elsewhere, _tensors(alone), _tensors(forwards))):
        return False
    backwards = loader.collate_fn(samples[::-1])
    votes = 0
    for one, other in zip(_tensors(forwards), _tensors(backwards), strict=True):
        if one.shape == other.shape and len(one) == len(samples):
            back = other.flip(0)
            kept = torch.equal(one, back) and not torch.equal(one, one.flip(0))
            votes += kept - (not torch.equal(one, back) and _same_rows(one, back))
    return votes >= 0


def _is_elsewhere(alone: Tensor, rows: Tensor) -> bool:
    """Whether numbers that are all different have the first sample's in another place."""
    if len(alone) != 1 or alone.shape[1:] != rows.shape[1:] or not rows.is_floating_point():
        return False
    flat = rows.reshape(len(rows), -1)
    same = (flat == alone.reshape(1, -1)).all(1)
    return len(flat.unique(dim=0)) == len(flat) and bool(same.any()) and not bool(same[0])


def _same_rows(one: Tensor, other: Tensor) -> bool:
    a, b = (part.reshape(len(part), -1).double().unique(dim=0) for part in (one, other))
    return torch.equal(a, b)


def borrowed(dataset: Any) -> Any:
    """A shallow copy: what it counts, or files that it opens, are not those of the user's."""
    inner, own = getattr(dataset, "dataset", None), copy(dataset)
    if isinstance(inner, Dataset):
        own.dataset = borrowed(inner)
    return own


def _tensors(batch: Any) -> Iterator[Tensor]:
    """Tensors with rows, in the order of the batch; packed ones have rows of their own."""
    if isinstance(batch, Tensor):
        if batch.ndim and not batch.is_nested:
            yield batch
    elif isinstance(batch, (Mapping, list, tuple)) and not isinstance(batch, PackedSequence):
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(part)
    elif hasattr(batch, "__dict__") and not isinstance(batch, type):
        yield from _tensors(vars(batch))
