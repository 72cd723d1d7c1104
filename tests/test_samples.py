"""Positions of samples, against what the samplers really draw."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)

from lightning_neurocorr.samples import LoaderPositions, fetch, folds, hashed


class Numbers(Dataset):
    """Sample ``i`` is ``(i, 10 * i)``."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[int, int]:
        if not 0 <= i < self.n:
            raise IndexError(i)
        return i, 10 * i


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(5))


def walk(loader: DataLoader, positions: LoaderPositions) -> list[tuple[int, int, bool]]:
    """(index drawn, position said, kept) of every sample of a pass."""
    found = []
    for batch in loader:
        drawn = batch[0].tolist()
        places, keep = positions.advance(len(drawn))
        kept = [True] * len(drawn) if keep is None else keep.tolist()
        found += zip(drawn, places.tolist(), kept, strict=True)
    return found


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    ("n", "world", "drop_last"),
    [
        (n, world, drop_last)
        for n, world in itertools.product([1, 2, 3, 5, 8, 13], [1, 2, 3, 5])
        for drop_last in (False, True)
        if n >= world or not drop_last
    ],
)
def test_padding_of_distributed_samplers_is_dropped(
    n: int, world: int, drop_last: bool, shuffle: bool
) -> None:
    data, kept, padded = Numbers(n), [], 0
    for rank in range(world):
        sampler = DistributedSampler(data, world, rank, shuffle=shuffle, drop_last=drop_last)
        loader = DataLoader(data, batch_size=2, sampler=sampler)
        positions = LoaderPositions(loader, rank=rank, world_size=world)
        assert positions.known == (not shuffle)
        assert not positions.repeated
        seen = walk(loader, positions)
        if not shuffle:
            assert all(drawn == said for drawn, said, _ in seen)  # padding, too
        kept += [drawn for drawn, _, keep in seen if keep]
        padded += sum(not keep for *_, keep in seen)
        positions.restart()
        assert walk(loader, positions) == seen
    real = n if not drop_last else n // world * world
    assert len(kept) == len(set(kept)) == real
    assert padded == -(-real // world) * world - real


@pytest.mark.parametrize("offset", [0, 100])
def test_plain_loaders(offset: int) -> None:
    data = Numbers(7)
    loader = DataLoader(data, batch_size=3)
    positions = LoaderPositions(loader, offset)
    assert positions.known
    assert positions.length == 7
    expected = [(i, i + offset, True) for i in range(7)]
    assert walk(loader, positions) == expected
    positions.restart()
    assert walk(loader, positions) == expected
    places, keep = positions.advance(0)
    assert places.shape == (0,)
    assert keep is None


class Reversed(BatchSampler):
    def __iter__(self):
        return reversed(list(super().__iter__()))


def test_orders_that_are_not_those_of_the_dataset_are_unknown() -> None:
    data = Numbers(6)
    pairs = BatchSampler(SequentialSampler(data), 2, False)
    known = {
        "sequential": (DataLoader(data, batch_size=2), True),
        "explicit": (DataLoader(data, batch_sampler=pairs), True),
        "shuffled": (DataLoader(data, batch_size=2, shuffle=True), False),
        "drawn": (DataLoader(data, sampler=RandomSampler(data, num_samples=3)), False),
        "other batches": (DataLoader(data, batch_sampler=[[4, 5], [0, 1]]), False),
        "reversed": (DataLoader(data, batch_sampler=Reversed(pairs.sampler, 2, False)), False),
        "batches as samples": (DataLoader(data, batch_size=None), False),
        "iterable": (DataLoader(Stream()), False),
        "no loader": ([(torch.zeros(2), 0)], False),
    }
    for name, (loader, expected) in known.items():
        assert LoaderPositions(loader).known == expected, name
    for loader, _ in known.values():
        assert not LoaderPositions(loader, rank=1, world_size=2).known


def test_a_sampler_wrapped_for_several_processes_is_unknown() -> None:
    data = Numbers(6)
    wrapped = DistributedSampler(list(RandomSampler(data)), 2, 1, shuffle=False)
    positions = LoaderPositions(DataLoader(data, sampler=wrapped), rank=1, world_size=2)
    assert not positions.known
    assert positions.advance(3)[0].tolist() == [1, 3, 5]


def test_iterables_are_repeated_by_every_process() -> None:
    for loader in (DataLoader(Stream()), [1, 2]):
        positions = LoaderPositions(loader, rank=1, world_size=2)
        assert positions.repeated
        assert positions.length is None
        assert not LoaderPositions(loader).repeated


def splitmix(position: int, seed: int) -> int:
    """SplitMix64's finaliser in Python's own integers, as published by Steele, Lea & Flood 2014."""
    x = (position + (seed + 1) * 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return (x ^ (x >> 31)) & (2**63 - 1)


def test_the_hash_is_splitmix() -> None:
    positions = [0, 1, 2, 63, 10**6, 2**62, -1, -5, 2**63 - 1, -(2**63)]
    for seed in (0, 1, 12345):
        found = hashed(torch.tensor(positions), seed).tolist()
        assert found == [splitmix(position, seed) for position in positions]


ORDERS = {
    "all": torch.arange(10_000),
    "sorted classes": torch.arange(1000, 2000),
    "every second": torch.arange(0, 20_000, 2),
    "every 64th": torch.arange(0, 64 * 5000, 64),
    "every 1000th": torch.arange(0, 1000 * 3000, 1000),
    "powers": torch.arange(3000) << 20,
    "far away": torch.arange(2**40, 2**40 + 5000),
}


@pytest.mark.parametrize("order", ORDERS)
def test_folds_are_balanced_in_every_order(order: str) -> None:
    half = folds(ORDERS[order])
    n = len(half)
    assert set(half.tolist()) == {0, 1}
    assert abs(int(half.sum()) - n / 2) < 4 * np.sqrt(n / 4)
    runs = int((half[1:] != half[:-1]).sum())
    assert abs(runs - (n - 1) / 2) < 4 * np.sqrt(n / 4)  # and neighbours are independent


def test_batches_of_chosen_positions() -> None:
    first, second = Numbers(10), TensorDataset(torch.arange(5), 7 * torch.arange(5))
    loaders = [
        LoaderPositions(DataLoader(first, collate_fn=lambda samples: samples)),
        LoaderPositions(DataLoader(second, batch_size=3), offset=10),
    ]
    found = list(fetch(loaders, [3, 1, 9, 12, 14, 0], size=2))
    assert [which for which, _ in found] == [0, 0, 1, 0]
    assert [batch for which, batch in found if which == 0] == [
        [(3, 30), (1, 10)],
        [(9, 90)],
        [(0, 0)],
    ]
    assert [part.tolist() for part in found[2][1]] == [[2, 4], [14, 28]]
    assert list(fetch(loaders, [])) == []
    sizes = [len(batch) for _, batch in fetch(loaders, range(10), 4)]
    assert sizes == [4, 4, 2]
