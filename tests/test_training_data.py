"""The training batches as a baseline sees them."""

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

from lightning_neurocorr.callback.training_data import training_batches

DATA = TensorDataset(torch.arange(10))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(4))


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
    assert numbers(DataLoader(DATA, batch_sampler=[[3, 4], [0]])) == [list(range(10))]
    reverse = DataLoader(DATA, batch_size=10, collate_fn=lambda samples: [samples[-1][0]])
    assert numbers(reverse) == [9]


def test_what_is_no_map_is_iterated_itself() -> None:
    assert [int(batch) for batch in training_batches(DataLoader(Stream()))] == [0, 1, 2, 3]
    assert list(training_batches(iter([1, 2]))) == [1, 2]


def test_batches_are_moved() -> None:
    assert list(training_batches(iter([1, 2]), lambda batch: -batch)) == [-1, -2]


@pytest.mark.parametrize("loader", [[], [1, 2], {"a": [], "b": []}])
def test_several_training_loaders(loader: object) -> None:
    with pytest.raises(ValueError, match=r"Expected one training loader .* Fit it beforehand"):
        list(training_batches(loader))
