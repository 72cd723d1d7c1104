"""Positions of samples, against what the samplers really draw."""

import itertools
from collections import UserDict
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning_fabric.utilities.distributed import DistributedSamplerWrapper
from pytorch_lightning.overrides.distributed import (
    UnrepeatedDistributedSampler,
    UnrepeatedDistributedSamplerWrapper,
)
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

from lightning_neurocorr.functional.hashing import folds, hashed
from lightning_neurocorr.samples import (
    LoaderPositions,
    check_rows,
    fetch,
    number_ids,
    read_ids,
    row_counts,
)


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
        assert positions.shared_out
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


class Backwards(SequentialSampler):
    def __iter__(self):
        return reversed(range(len(self.data_source)))


class BackwardsForMany(DistributedSampler):
    def __iter__(self):
        return reversed(list(super().__iter__()))


def test_a_sampler_that_only_looks_as_if_its_order_were_known() -> None:
    data = Numbers(7)
    positions = LoaderPositions(DataLoader(data, sampler=Backwards(data)))
    assert positions.unknown == (
        "the validation loader draws its samples by a Backwards, whose order is not known"
    )
    for rank in (0, 1):
        sampler = BackwardsForMany(data, 2, rank, shuffle=False)
        loader = DataLoader(data, batch_size=3, sampler=sampler)
        positions = LoaderPositions(loader, rank=rank, world_size=2)
        assert not positions.known
        assert positions.uncertain_padding
        seen = walk(loader, positions)
        assert len(seen) == 4
        assert all(kept for *_, kept in seen)  # which one is padding cannot be told
        assert [said for _, said, _ in seen] == [rank, rank + 2, rank + 4, rank + 6]


LIGHTNINGS = {
    "Unrepeated": (UnrepeatedDistributedSampler, Numbers),
    "wrapper": (DistributedSamplerWrapper, lambda n: Backwards(Numbers(n))),
    "UnrepeatedWrapper": (UnrepeatedDistributedSamplerWrapper, lambda n: Backwards(Numbers(n))),
}


@pytest.mark.parametrize("name", LIGHTNINGS)
def test_lightnings_own_samplers(name: str) -> None:
    kind, wrapped = LIGHTNINGS[name]
    data, inner, kept = Numbers(7), wrapped(7), []
    data = inner if isinstance(inner, Numbers) else data
    for rank in range(3):
        sampler = kind(inner, num_replicas=3, rank=rank, shuffle=False)
        loader = DataLoader(data, batch_size=2, sampler=sampler)
        positions = LoaderPositions(loader, rank=rank, world_size=3)
        assert positions.known == (name == "Unrepeated")
        assert not positions.uncertain_padding
        seen = walk(loader, positions)
        if positions.known:
            assert all(drawn == said for drawn, said, _ in seen)
        kept += [drawn for drawn, _, keep in seen if keep]
    assert sorted(kept) == list(range(7))


def test_a_batch_with_other_rows_than_drawn_ends_what_is_known() -> None:
    data = Numbers(10)
    positions = LoaderPositions(DataLoader(data, batch_size=4))
    found = [positions.advance(n)[0].tolist() for n in (4, 3, 2)]
    assert found == [[0, 1, 2, 3], [4, 5, 6], [7, 8]]  # numbers of their own, nothing more
    assert "batch 1 has 3 rows, where 4 samples were drawn for it" in positions.unknown
    positions.restart()
    assert positions.known


def test_a_data_set_that_has_more_samples_than_it_said() -> None:
    data = Numbers(6)
    loader = DataLoader(data, batch_size=4)
    positions = LoaderPositions(loader)
    data.n = 10
    walk(loader, positions)
    assert not positions.known
    positions.restart()  # the next validation asks again
    assert all(drawn == said for drawn, said, _ in walk(loader, positions))
    assert positions.known


def test_padding_is_dropped_where_samples_are_lost_before_it() -> None:
    data = Numbers(7)
    sampler = DistributedSampler(data, 2, 1, shuffle=False)
    positions = LoaderPositions(DataLoader(data, batch_size=2, sampler=sampler), rank=1)
    assert positions.advance(1)[1] is None  # 1, while 3 was left out
    numbers, keep = positions.advance(2)  # 5 and padding
    assert keep is not None
    assert keep.tolist() == [True, False]
    assert not positions.known
    assert len({1, *numbers.tolist()}) == 3


@dataclass
class Parts:
    x: torch.Tensor
    names: list[str]


def test_what_may_hold_a_row_per_sample() -> None:
    x, y = torch.zeros(4, 3), torch.zeros(4)
    assert row_counts([x, y]) == {4}
    assert row_counts((x, {"y": y, "more": (torch.zeros(7, 2), torch.tensor(1))})) == {4, 7, 2}
    assert row_counts({"x": x, "names": ["a", "b", "c", "d"]}) == {4}
    assert row_counts(Parts(torch.zeros(5), list("abcde"))) == {5}
    assert row_counts(SimpleNamespace(x=x, nested=UserDict(y=np.zeros((6, 2))))) == {4, 6}
    assert row_counts([[{"box": torch.zeros(9, 4)}] * 3, x]) == {3, 9, 4}
    assert row_counts(x) == {4}
    assert row_counts(["a", "b"]) == {2}
    assert row_counts(object()) == set()
    circle: dict = {"x": x}
    circle["again"] = circle
    assert row_counts(circle) == {4}


@pytest.mark.parametrize(
    ("n", "counts", "drawn", "fine"),
    [
        (4, {4}, 4, True),
        (4, {4, 7}, 4, True),
        (4, {4}, None, True),
        (4, {4, 7}, None, True),  # nobody says which of the two counts samples
        (3, {3}, 4, True),  # left out by collate_fn
        (3, set(), 4, True),
        (3, set(), None, True),
        (3, {4}, 4, False),  # by validation_step
        (3, {4}, None, False),
        (3, {4, 3}, 4, False),  # it may be either
        (2, {3}, 4, False),  # by both
        (8, {4}, 4, False),
        (8, {8}, 4, False),  # collate_fn makes two rows of a sample
        (8, {4}, None, False),
        (8, set(), 4, False),
    ],
)
def test_rows_are_samples_or_refused(n: int, counts: set, drawn: int | None, fine: bool) -> None:
    if fine:
        check_rows(n, counts, drawn)
    else:
        with pytest.raises(ValueError, match=r"one row for each sample.*give `sample_id`"):
            check_rows(n, counts, drawn)
    check_rows(n, counts, drawn, identified=True)


def test_ids_are_whole_numbers_and_text() -> None:
    ids = [torch.tensor(7), np.int64(7), 7.0, b"a", "a", np.str_("a"), [5], 2**80, 0.5, True]
    expected = [7, 7, 7, "a", "a", "a", 5, 2**80, "0.5", "True"]
    assert read_ids(ids, 10) == expected
    assert [type(value) for value in read_ids(ids, 10)] == [type(value) for value in expected]
    assert read_ids(torch.tensor([[5], [7]]), 2) == [5, 7]
    assert read_ids(np.array(["a", "b"]), 2) == ["a", "b"]
    assert read_ids(torch.tensor(3), 1) == [3]
    assert read_ids("3", 1) == ["3"]
    for wrong in (None, float("nan")):
        with pytest.raises(ValueError, match=r"an id for every sample, but got .* for sample 1"):
            read_ids([1, wrong], 2)
    with pytest.raises(ValueError, match="each of the 2 samples that were predicted, but got 3"):
        read_ids([1, 2, 3], 2)


def test_ids_become_numbers_that_do_not_change() -> None:
    assert number_ids([5, -7, 2**63 - 1]).tolist() == [5, -7, 2**63 - 1]
    words = number_ids(["scan-1", "scan-2", "scan-1", 2**63])
    assert (words >= 0).all()
    assert words[0] == words[2]
    assert len(set(words.tolist())) == 3
    assert words[0] == 3446703378339880155


def test_nobody_shares_an_iterable_out() -> None:
    for loader in (DataLoader(Stream()), [1, 2]):
        positions = LoaderPositions(loader, rank=1, world_size=2)
        assert not positions.shared_out
        assert positions.length is None


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
