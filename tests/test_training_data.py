"""The training batches as a baseline sees them."""

from collections.abc import Iterator
from itertools import cycle

import pytest
import torch
from lightning_fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_neurocorr.callback.training_data import training_batches

DATA = TensorDataset(torch.arange(10))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(4))


class Batches:
    def __iter__(self) -> Iterator[int]:
        return iter([1, 2])


def numbers(loader: object) -> list[list[int]]:
    return [batch[0].tolist() for batch in training_batches(loader)]


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(DATA, batch_size=4, shuffle=True),
        DataLoader(DATA, batch_size=4, sampler=DistributedSampler(DATA, 3, 1)),
        DataLoader(DATA, batch_size=4, drop_last=True),
        [DataLoader(DATA, batch_size=4)],
        {"train": DataLoader(DATA, batch_size=4, shuffle=True)},
    ],
)
def test_all_batches_in_order_in_every_process(loader: object) -> None:
    assert numbers(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_loaders_with_batches_of_their_own() -> None:
    shuffled = torch.utils.data.BatchSampler(torch.utils.data.RandomSampler(DATA), 5, False)
    assert numbers(DataLoader(DATA, batch_sampler=shuffled)) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert numbers(DataLoader(DATA, batch_sampler=[[3, 4], [0]])) == [[0, 3, 4]]
    reverse = DataLoader(DATA, batch_size=10, collate_fn=lambda samples: [samples[-1][0]])
    assert numbers(reverse) == [9]


def test_what_is_no_map_is_iterated_itself() -> None:
    assert [int(batch) for batch in training_batches(DataLoader(Stream()))] == [0, 1, 2, 3]
    assert list(training_batches(Batches())) == [1, 2]


def test_batches_are_moved() -> None:
    assert list(training_batches(Batches(), lambda batch: -batch)) == [-1, -2]


def test_a_generator_would_leave_nothing_to_train_on() -> None:
    with pytest.raises(ValueError, match=r"can be gone through again.*got a generator"):
        list(training_batches(batch for batch in [1, 2]))


class EveryThird(Sampler):
    def __iter__(self):
        return iter(range(0, 10, 3))


class Endless(Sampler):
    def __iter__(self):
        return cycle([2, 5])


class HalfEachTime(Sampler):
    """The one half of the data first, then the other."""

    def __init__(self) -> None:
        self.start = 0

    def __iter__(self):
        self.start = 5 - self.start
        return iter(range(self.start, self.start + 5))


def lightnings(sampler: Sampler, rank: int) -> Sampler:
    return DistributedSamplerWrapper(sampler, num_replicas=2, rank=rank)


@pytest.mark.parametrize(
    ("sampler", "drawn"),
    [
        (SubsetRandomSampler([7, 1, 4]), [1, 4, 7]),
        (WeightedRandomSampler([0, 0, 1, 0, 2, 0, 0, 0, 0, 3], 200), [2, 4, 9]),
        ([8, 8, 3], [3, 8]),
        (SequentialSampler(range(4)), [0, 1, 2, 3]),
        (RandomSampler(range(4)), [0, 1, 2, 3]),
        (EveryThird(), [0, 3, 6, 9]),
        (Endless(), [2, 5]),
        (HalfEachTime(), list(range(10))),
        (DistributedSampler(TensorDataset(torch.arange(4)), 2, 1), [0, 1, 2, 3]),
        (lightnings(SubsetRandomSampler([7, 1, 4]), 1), [1, 4, 7]),
    ],
)
def test_no_sample_that_the_sampler_holds_out(sampler: Sampler, drawn: list[int]) -> None:
    whole = not isinstance(sampler, DistributedSampler)  # else a process has a share of them
    own = (OwnBatches if whole else BatchSampler)(sampler, 20, False)
    for loader in (
        DataLoader(DATA, batch_size=20, sampler=sampler),
        DataLoader(DATA, batch_sampler=BatchSampler(sampler, 20, False)),
        DataLoader(DATA, batch_sampler=own),
    ):
        assert [i for batch in numbers(loader) for i in batch] == drawn


class OwnBatches(BatchSampler):
    """A class that is not known."""


def test_a_sampler_draws_afterwards_what_it_would_have_drawn() -> None:
    generator = torch.Generator().manual_seed(3)
    untouched = torch.Generator().manual_seed(3)

    class Own(RandomSampler):
        pass

    loader = DataLoader(DATA, batch_size=5, sampler=Own(DATA, generator=generator))
    assert numbers(loader) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    half = HalfEachTime()
    numbers(DataLoader(DATA, batch_size=5, sampler=half))
    assert half.start == 0
    assert torch.equal(generator.get_state(), untouched.get_state())


class CountedStream(IterableDataset):
    """Goes on where it stopped, as a queue does."""

    def __init__(self, held: object = None) -> None:
        self.at, self.held = 0, held

    def __iter__(self):
        while self.at < 6:
            self.at += 1
            yield torch.tensor(self.at)


class CountedAccess(Dataset):
    asked = 0

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[torch.Tensor]:
        self.asked += 1
        return (torch.tensor(index),)


@pytest.mark.parametrize("held", [None, (x for x in [])], ids=["copied", "holds a generator"])
def test_reading_takes_nothing_away_from_training(held: object) -> None:
    stream = DataLoader(CountedStream(held), batch_size=4)
    assert [batch.tolist() for batch in training_batches(stream)] == [[1, 2, 3, 4], [5, 6]]
    assert sum(len(batch) for batch in stream) == 6
    data = CountedAccess()
    assert numbers(DataLoader(data, batch_size=4)) == [[0, 1, 2, 3]]
    assert data.asked == 0


@pytest.mark.parametrize("loader", [[], [1, 2], {"a": [], "b": []}])
def test_several_training_loaders(loader: object) -> None:
    with pytest.raises(ValueError, match=r"Expected one training loader .* Fit it beforehand"):
        list(training_batches(loader))
