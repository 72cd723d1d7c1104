"""What studies are given: a store, samples run again, another network, an untrained copy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import CachedBaseline, ModuleBaseline, compare
from lightning_neurocorr.functional.hashing import folds, hashed
from lightning_neurocorr.isolation.untrained import untrained_weights
from lightning_neurocorr.studies import (
    Beside,
    Finding,
    Heard,
    Listener,
    Look,
    RefusedError,
    Start,
    Study,
)
from lightning_neurocorr.studies.kept import KeptActivations
from lightning_neurocorr.studies.store import Store

N = 60


class Net(nn.Module):
    """Two layers; counts its forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        self.forwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        return self.head(self.hidden(x).relu())


def data() -> TensorDataset:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(N, 4, generator=draw)
    return TensorDataset(x, torch.randint(0, 3, (N,), generator=draw))


def hidden(net: Net) -> Tensor:
    return net.hidden(data().tensors[0]).relu().detach()


def looked(study: Study, net: Net | None = None, baseline: Any = None) -> Look:
    """What a study is given."""
    seen: list[Look] = []

    @dataclass(frozen=True)
    class Spy(type(study)):
        def find(self, look: Look) -> Finding:
            seen.append(look)
            return super().find(look)

    spy = Spy(**vars(study))
    torch.manual_seed(3)
    compare(
        net or Net(), DataLoader(data(), 16), baseline or ModuleBaseline(Net()), studies=[spy],
        attribution=False,
    )  # fmt: skip
    return seen[0]


@dataclass(frozen=True)
class Nothing(Study):
    """Finds nothing by itself."""

    stores: int = 0

    def find(self, look: Look) -> Finding:
        return Finding("nothing")


def test_the_store_has_the_samples_with_the_smallest_hashes() -> None:
    net = Net()
    look = looked(Nothing(stores=20), net)
    stored = look.stored(20)
    first = hashed(torch.arange(N), seed=5).argsort()[:20]
    assert sorted(look.samples.position[stored.rows].tolist()) == sorted(first.tolist())
    expected = hidden(net)[look.samples.position[stored.rows]]
    torch.testing.assert_close(stored.activations["hidden"], expected)
    with pytest.raises(RefusedError, match="at least 21 samples, but 20 were kept"):
        look.stored(21)


def heard_of(rows: Tensor, values: Tensor) -> Heard:
    none = torch.zeros(len(rows))
    return Heard({"a": values[rows]}, none, none, none, None, rows, rows, True, None, None)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_any_number_of_processes_stores_the_same(processes: int) -> None:
    values = torch.randn(500, 3)
    stores = [Store(40) for _ in range(processes)]
    for i, rows in enumerate(torch.arange(500).split(7)):
        stores[i % processes].add(heard_of(rows, values))
    for other in [*stores[1:], Store(40)]:  # one has heard nothing
        stores[0].merge(other)
    stores[0].trim()
    assert stores[0].numbers.tolist() == hashed(torch.arange(500), seed=5).argsort()[:40].tolist()
    assert torch.equal(stores[0].parts["a"][0], values[stores[0].numbers])


def test_a_store_keeps_its_budget() -> None:
    store, values, most = Store(1000, budget=6000), torch.randn(2000, 10), 0
    for rows in torch.arange(2000).split(20):
        store.add(heard_of(rows, values))
        most = max(most, sum(part.nbytes for part in store.parts["a"]))
    assert store.most == 100
    assert most <= 6000 + 800


def test_samples_are_run_again_as_they_were_heard() -> None:
    net = Net()
    look = looked(Nothing(), net)
    rows = torch.tensor([40, 3, 17])
    (heard,) = look.again(rows)
    torch.testing.assert_close(heard.activations["hidden"], hidden(net)[rows])
    assert heard.numbers.tolist() == rows.tolist()
    assert torch.equal(heard.half, folds(rows))
    right = heard.prediction.argmax(1) == data().tensors[1][rows]
    baseline_right = heard.baseline == data().tensors[1][rows]
    assert torch.equal(heard.advantage, right.double() - baseline_right.double())


def test_each_sample_is_run_once_for_all_studies() -> None:
    net = Net()
    look = looked(Nothing(), net)
    before = net.forwards
    first = look.activations(torch.tensor([5, 2, 9]))
    second = look.activations(torch.tensor([9, 5]), ["hidden"])
    assert net.forwards == before + 1
    torch.testing.assert_close(first["hidden"], hidden(net)[[5, 2, 9]])
    torch.testing.assert_close(second["hidden"], hidden(net)[[9, 5]])
    look.activations(torch.tensor([9, 1]))
    assert net.forwards == before + 2


def test_what_is_kept_for_studies_is_bounded() -> None:
    values, asked = torch.randn(100, 5), []

    def run(rows: Tensor, layers: Any) -> Any:
        asked.append(len(rows))
        yield heard_of(rows, values)

    kept = KeptActivations(budget=400)  # 20 rows
    for rows in (torch.arange(15), torch.arange(10, 25), torch.arange(15)):
        assert torch.equal(kept.take(rows, {"a": 5}, run)["a"], values[rows])
    assert asked == [15, 15, 15]  # the second does not fit beside the first
    assert "take 0 MB" in kept.refusal(21, {"a": 5})


def test_the_network_of_the_baseline_is_heard_on_the_same_batch() -> None:
    other = Net()
    heard: list[Tensor] = []

    class Ear(Listener):
        def __init__(self, beside: Beside) -> None:
            self.beside = beside

        def add(self, heard_: Heard) -> None:
            heard.append(self.beside(heard_.batch)["hidden"])

        def merge(self, other: Any) -> None:
            raise NotImplementedError

    @dataclass(frozen=True)
    class Matching(Nothing):
        def listen(self, start: Start) -> Listener:
            beside = Beside.baseline(start.options)
            assert beside is not None
            return Ear(beside)

    looked(Matching(), baseline=CachedBaseline(ModuleBaseline(other)))
    torch.testing.assert_close(torch.cat(heard), hidden(other))


def test_an_untrained_copy_is_heard_and_leaves_the_model_alone() -> None:
    heard: list[Tensor] = []

    class Ear(Listener):
        def __init__(self, start: Start) -> None:
            self.beside = Beside.untrained(start, seed=4)

        def add(self, heard_: Heard) -> None:
            heard.append(self.beside(heard_.batch)["hidden"])

        def merge(self, other: Any) -> None:
            raise NotImplementedError

    @dataclass(frozen=True)
    class Control(Nothing):
        def listen(self, start: Start) -> Listener:
            return Ear(start)

    net = Net()
    before = {name: p.clone() for name, p in net.state_dict().items()}
    look = looked(Control(), net)
    weights = untrained_weights(net, seed=4)
    fresh = Net()
    fresh.load_state_dict(weights)
    torch.testing.assert_close(torch.cat(heard), hidden(fresh))
    (again,) = look.again(torch.arange(10), untrained=4)
    torch.testing.assert_close(again.activations["hidden"], hidden(fresh)[:10])
    assert all(torch.equal(p, before[name]) for name, p in net.state_dict().items())


def test_untrained_weights_are_drawn_as_parts_draw_them() -> None:
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.arange(100.0))
            self.norm, self.attention = nn.BatchNorm1d(2), nn.MultiheadAttention(4, 2)

    torch.manual_seed(0)
    model = Token()
    with torch.no_grad():
        model.norm.weight.copy_(torch.tensor([3.0, 5.0]))
        model.norm.running_mean.fill_(7)  # type: ignore[union-attr]
    kept = {name: t.clone() for name, t in model.state_dict().items()}
    found = untrained_weights(model, seed=1)
    assert found["norm.weight"].tolist() == [1, 1]
    assert found["norm.running_mean"].tolist() == [0, 0]
    assert not torch.equal(found["token"], model.token)
    assert torch.equal(found["token"].sort().values, model.token.detach())
    attention = "attention.in_proj_weight"
    assert not torch.equal(found[attention], kept[attention])
    assert all(torch.equal(t, kept[name]) for name, t in model.state_dict().items())
    again = untrained_weights(model, seed=1)
    assert all(torch.equal(again[name], t) for name, t in found.items())


def test_the_page_on_studies_runs_as_it_stands() -> None:
    page = Path(__file__).parents[1] / "docs" / "studies.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    net = Net()
    names = {"model": net, "loader": DataLoader(data(), 16), "baseline": ModuleBaseline(Net())}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)
    frame = names["report"].studies["largest"].to_dataframe()
    won = (net(data().tensors[0]).argmax(1) == data().tensors[1]) & (
        names["baseline"](data()[:]).argmax(1) != data().tensors[1]
    )
    expected = torch.bincount(hidden(net)[won].argmax(1), minlength=5)
    units = frame[frame["layer"] == "hidden"].set_index("unit")["count"]
    assert [units.get(i, 0) for i in range(5)] == expected.tolist()
