"""Chosen samples go through the model in full passes, whatever the batches of the loader."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import Attribution, BatchBaseline, compare
from lightning_neurocorr.attribution import graph_bytes
from lightning_neurocorr.report import NeuronReport
from lightning_neurocorr.validation.rerun import Rerun
from tests.neurons import seeded

N, D, C = 2560, 6, 4


class Net(nn.Module):
    """Notes how many samples each call has that is differentiated, and its backwards."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.head = nn.Linear(5, D), nn.Linear(D, C)
        self.room = 10**9
        self.passes: list[int] = []
        self.backwards: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        said = self.head(self.hidden(x).tanh()) + 4 * x[:, :C]
        if said.requires_grad:
            if len(x) > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            self.passes.append(len(x))
            said.register_hook(lambda grad: self.backwards.append(len(grad)))
        return said


def data() -> TensorDataset:
    target = torch.randint(0, C, (N,), generator=seeded())
    x = torch.randn(N, 5, generator=seeded(1)) + 2 * torch.eye(C, 5)[target]
    wrong = torch.rand(N, generator=seeded(2)) < 0.3
    return TensorDataset(x, target, torch.where(wrong, (target + 1) % C, target))


def attributed(size: int, net: Net | None = None, **settings: Any) -> tuple[Net, NeuronReport]:
    net = net or Net()
    report = compare(
        net.eval(),
        DataLoader(data(), size),
        BatchBaseline(2),
        "hidden",
        target=1,
        at="raw",
        attribution=Attribution(max_samples=225, **settings),
    )
    assert not [note for note in report.notes if "ttribution" in note]
    return net, report


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("size", [16, 64, 256, 640])
def test_450_samples_take_as_few_passes_whatever_the_batches(
    size: int, gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if gpu:  # as if this were one
        monkeypatch.setattr("lightning_neurocorr.validation.full_passes._FULL", {"cpu": 256})
    net, report = attributed(size)
    full = max(256 if gpu else 64, size)
    # Each is a forward and a backward. The forward that shows where samples lie weighs three.
    assert net.backwards == list(map(len, torch.arange(450).split(full)))
    assert net.passes == [3, *net.backwards]
    _, expected = attributed(N, samples_per_pass=N)
    for column in ("attribution", "attribution_contrast", "attribution_low"):
        np.testing.assert_allclose(
            report.column(column), expected.column(column), rtol=1e-5, atol=1e-6
        )


def test_one_forward_of_three_samples_shows_whose_rows_are_and_what_a_pass_takes() -> None:
    calls: dict[bool, list[int]] = {}
    for attribution in (False, True):
        net, calls[attribution] = Net().eval(), []
        net.register_forward_pre_hook(
            lambda _, args, to=attribution: calls[to].append(len(args[0]))
        )
        loader = DataLoader(data(), 640)
        compare(net, loader, BatchBaseline(2), "hidden", target=1, attribution=attribution)
    assert calls[False] == [640, 3, 640, 640, 640]
    assert calls[True][:5] == calls[False]
    assert sum(calls[True][5:]) == sum(net.backwards)


def test_weights_are_looked_through_as_often_whatever_the_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held, walks = Rerun.held, []
    monkeypatch.setattr(Rerun, "held", lambda rerun: walks.append(1) or held(rerun))
    net, short = Net(), 4 * (C + 5) * 100  # bytes: samples are thinned out
    attributed(640, net, input_bytes=short)
    few = len(walks)
    attributed(16, net, input_bytes=short)
    assert len(walks) == 2 * few


def test_passes_are_bounded_by_their_number_and_by_their_bytes() -> None:
    net, _ = attributed(16, samples_per_pass=100)
    assert net.backwards == [100, 100, 100, 100, 50]
    x = data()[:2][0].clone()
    taken = graph_bytes(lambda: net(x), {"hidden": net.hidden}, x.device, net.parameters())
    each = taken / 2 + 16 * D
    net, _ = attributed(64, pass_bytes=int(40.5 * each))
    assert net.backwards == [40] * 11 + [10]
    net, _ = attributed(64, pass_bytes=1)
    assert net.backwards == [1] * 450


def test_bytes_of_a_graph_are_those_that_its_backward_needs() -> None:
    net, x = (
        nn.Sequential(nn.Linear(4, 50), nn.Tanh(), nn.Linear(50, 30), nn.ReLU()),
        torch.randn(9, 4),
    )
    net.requires_grad_(False)
    # From the first watched layer on: tanh and relu keep what they put out. Of each watched layer
    # output and gradient are there, and of the larger one the product twice.
    layers: dict[str, Any] = {"0": net[0], "2": net[2]}
    expected = 4 * 9 * (50 + 30 + 2 * (50 + 30) + 2 * 50)
    assert graph_bytes(lambda: net(x), layers, x.device, net.parameters()) == expected
    # A weight that can be trained needs the input of its layer; the weight itself is there anyway.
    net[2].requires_grad_(True)
    assert graph_bytes(lambda: net(x), layers, x.device, net.parameters()) == expected
    net[0].requires_grad_(True)
    larger = graph_bytes(lambda: net(x), layers, x.device, net.parameters())
    assert larger == expected + x.nbytes


def test_weights_that_autocast_copies_do_not_count_for_every_sample() -> None:
    net, x = nn.Sequential(nn.Linear(40, 50), nn.Linear(50, 30)), torch.randn(2, 40)

    def forward() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return net(x)

    taken = graph_bytes(forward, {"0": net[0]}, x.device, net.parameters())
    assert taken == 2 * 2 * (50 + 2 * 50 + 40) + 8 * 2 * 50


def test_the_graph_that_is_weighed_is_let_go() -> None:
    net, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.ReLU(), nn.Softmax(1)), torch.randn(9, 4)
    seen: list[weakref.ref[Tensor]] = []

    def forward() -> None:
        hidden = net(x)
        seen.append(weakref.ref(hidden))

    graph_bytes(forward, {"0": net[0]}, x.device)
    assert seen[0]() is None


def test_where_memory_is_short_fewer_samples_go_through_at_once() -> None:
    _, expected = attributed(64)
    net = Net()
    net.room = 40
    net, report = attributed(64, net)
    assert net.backwards == [32] * 14 + [2]
    for column in ("attribution", "attribution_contrast"):
        np.testing.assert_allclose(
            report.column(column), expected.column(column), rtol=1e-5, atol=1e-6
        )


def test_where_not_even_one_sample_fits_a_note_says_so() -> None:
    net = Net()
    net.room = 0
    report = compare(net.eval(), DataLoader(data(), 64), BatchBaseline(2), "hidden", target=1)
    assert np.isnan(report.column("attribution")).all()
    assert any("OutOfMemoryError" in note for note in report.notes)


def test_a_model_in_which_nothing_can_be_counted_keeps_to_batches_of_the_loader() -> None:
    class Functional(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.func.vmap(torch.func.grad(lambda v: (v**2).sum() / 2))(x))

    net, _ = attributed(64, Functional())
    assert set(net.backwards[:-1]) == {64}
