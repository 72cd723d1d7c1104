"""Chosen samples wait within their budget, and nothing waits for their device meanwhile."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_neurocorr.activations import first_tensor as logits_of
from lightning_neurocorr.attribution import Attribution, SampleChoice
from lightning_neurocorr.functional import BOTH, ONLY_MODEL
from lightning_neurocorr.validation.rerun import Rerun
from lightning_neurocorr.validation.rerun.arguments import Axis
from lightning_neurocorr.validation.waiting import Piece, Waiting
from tests.helpers import seeded


@pytest.mark.parametrize("size", [1, 30, 1000])
def test_a_group_far_larger_than_expected_is_thinned_as_if_from_the_beginning(
    size: int,
) -> None:
    """The kept ones have the lowest draws, whatever the batches; and no group outgrows its room."""
    target, draw = torch.ones(1000, dtype=torch.long), torch.rand(1000, generator=seeded()) * 0.02
    outcome = torch.where(torch.arange(1000) % 3 > 0, ONLY_MODEL, BOTH)
    few = torch.tensor([[0, 0, 5, 5], [100, 5, 0, 0]])
    choice = SampleChoice(Attribution(max_samples=100), 1000, few)
    waiting = Waiting(choice, 10**9, Rerun(nn.Identity(), logits_of))
    waiting.rerun.layout = (Axis(0),)
    for part in torch.arange(1000).split(size):
        rows, group, score = choice(target[part], outcome[part], draw[part])
        integers = torch.stack([part[rows], *[group] * 4], 1)
        waiting.add(Piece(((part[rows],), {}), part[rows], integers, score))
    kept = waiting.integers()[:, 0]
    scores = torch.where(outcome == ONLY_MODEL, draw / choice.rate, draw / choice.shared_rates[1])
    assert max(choice.scale) < 1
    below = scores < torch.tensor(choice.scale).double()[(outcome == BOTH).long()]
    assert set(kept.tolist()) == set(below.nonzero().flatten().tolist())
    assert torch.equal(torch.cat([piece.prediction for piece in waiting.pieces]), kept)
    for group in (ONLY_MODEL, BOTH):
        assert 0.7 * 200 < int((outcome[kept] == group).sum()) <= 200


@pytest.mark.parametrize("size", [1, 7, 64])
def test_inputs_stay_within_their_budget_whatever_the_batches(size: int) -> None:
    draw, ones = torch.rand(300, generator=seeded()), torch.ones(300, dtype=torch.long)
    choice = SampleChoice(Attribution(), 300)
    module = nn.Identity()
    waiting = Waiting(choice, 2 * 40 * 60, Rerun(module, logits_of))
    waiting.rerun.layout = (Axis(0), None)
    module.table = whole = nn.Parameter(torch.zeros(10**4))  # a weight does not count
    for part in torch.arange(300).split(size):
        rows, group, score = choice(ones[part], ONLY_MODEL * ones[part], draw[part])
        inputs = torch.zeros(len(rows), 8)  # 32 bytes and 8 of a prediction
        integers = torch.stack([part[rows], *[group] * 4], 1)
        waiting.add(Piece(((inputs, whole), {}), part[rows], integers, score))
    assert 0.7 * 60 < len(waiting.integers()) <= 60
    below = (draw < choice.scale[0]).nonzero().flatten()
    assert set(waiting.integers()[:, 0].tolist()) == set(below.tolist())


class Copies(TorchDispatchMode):
    """Tells which copies to another device the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and kwargs.get("device") == torch.device("meta"):
            self.found.append(not kwargs.get("non_blocking"))
        return func(*args, **kwargs)


def test_dropping_samples_does_not_wait_for_their_device() -> None:
    choice = SampleChoice(Attribution(max_samples=30))
    waiting = Waiting(choice, 10**9, Rerun(nn.Identity(), logits_of))
    waiting.rerun.layout = (Axis(0),)
    ones = torch.ones(100, dtype=torch.long)
    rows, group, score = choice(ones, ONLY_MODEL * ones, torch.rand(100, generator=seeded()))
    x = torch.zeros(100, 8, device="meta")  # stands in for a GPU
    with Copies() as copies:
        waiting.add(Piece(((x,), {}), x, torch.stack([rows, *[group] * 4], 1), score))
    assert len(waiting.integers()) == len(waiting.pieces[0].prediction) <= 60
    assert copies.found
    assert not any(copies.found)
