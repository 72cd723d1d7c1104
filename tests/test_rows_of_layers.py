"""A row of what a layer says is the sample that it is taken for, or the layer is left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import NeuronAdvantage, NeuronReport, compare
from lightning_neurocorr.validation.rerun.arguments import Layout
from lightning_neurocorr.validation.rerun.learnt import Trial
from lightning_neurocorr.validation.rerun.rows import strange_rows
from tests.helpers import pearson
from tests.launches import Launches
from tests.paper_model import paper_trainer

N, BATCH = 40, 8
STRANGE = "its rows are not the samples of the batch in their order"


def data(features: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(N, features, generator=generator)
    y = torch.randint(0, 3, (N,), generator=generator)
    return x, y, torch.randint(0, 3, (N,), generator=generator)


class Net(nn.Module):
    """A layer that ``way`` calls as it likes, and one after it that gets the samples in order."""

    def __init__(self, way: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.inner, self.head = nn.Linear(5, BATCH), nn.Linear(BATCH, 3)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.way(self.inner, x).tanh())


def sorted_by_index(layer: nn.Module, x: Tensor) -> Tensor:
    order = x[:, 0].argsort()
    return layer(x[order])[order.argsort()]


def selected(layer: nn.Module, x: Tensor) -> Tensor:
    order = x[:, 0].argsort()
    said = layer(x.index_select(0, order))
    return torch.empty_like(said).index_copy(0, order, said)


def flipped(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x.flip(0)).flip(0)


def rolled(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x.roll(2, 0)).roll(-2, 0)


def multiplied(layer: nn.Module, x: Tensor) -> Tensor:
    """By a matrix of zeros and ones: an order that no operation tells."""
    order = nn.functional.one_hot(x[:, 0].argsort(), len(x)).float()
    return order.T @ layer(order @ x)


def one_by_one(layer: nn.Module, x: Tensor) -> Tensor:
    return torch.stack([layer(sample) for sample in x])


WAYS = [sorted_by_index, selected, flipped, rolled, multiplied, one_by_one]


def compared(model: nn.Module, batch: int = BATCH, **options: Any) -> NeuronReport:
    x, y, answers = data()
    batches = list(zip(x.split(batch), y.split(batch), answers.split(batch), strict=True))
    return compare(model, batches, lambda b: b[2], target=1, visualizer=None, **options)


@pytest.mark.parametrize("attribution", [False, True])
@pytest.mark.parametrize("batch", [3, BATCH])
@pytest.mark.parametrize("way", WAYS)
def test_samples_in_another_order(
    way: Callable[..., Tensor], batch: int, attribution: bool
) -> None:
    if (way, batch) == (one_by_one, 3):
        return  # it gives 8 rows for 3 samples, which is said elsewhere
    net = Net(way)
    report = compared(net, batch, attribution=attribution)
    assert report.layers == ("head",)
    assert any(note.startswith(f"Layer inner was left out: {STRANGE}") for note in report.notes)
    x, y, answers = data()
    with torch.no_grad():
        logits = net(x)
    gain = (logits.argmax(1) == y).double() - (answers == y).double()
    for unit in range(3):
        expected = pearson(logits[:, unit].numpy(), gain.numpy())
        assert report.row("head", unit).r == pytest.approx(expected, abs=1e-5)


class Prototypes(nn.Module):
    """As many prototypes as samples in a batch: a layer says something of each of these."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.project = nn.Linear(5, 4), nn.Linear(2, 4)
        self.tokens = nn.Parameter(torch.randn(BATCH, 2))

    def forward(self, x: Tensor) -> Tensor:
        return (self.encoder(x).relu() @ self.project(self.tokens).relu().T)[:, :3]


def test_prototypes_are_no_samples() -> None:
    report = compared(Prototypes(), layers=["encoder", "project"])
    assert report.layers == ("encoder",)
    assert any(note.startswith(f"Layer project was left out: {STRANGE}") for note in report.notes)


class Sorting(nn.Module):
    """Sorts by length before its recurrent layer, as old tutorials show it."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(1, 6, batch_first=True)
        self.middle, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        lengths, order = ((x[:, 0].abs() * 3).long() % 5 + 1).sort(descending=True)
        packed = pack_padded_sequence(x[order, :, None], lengths, batch_first=True)
        _, last = self.rnn(packed)
        return self.head(self.middle(last[-1])[order.argsort()].tanh())


def test_sequences_that_are_sorted_to_be_packed() -> None:
    report = compared(Sorting(), layers=["rnn", "middle", "head"])
    assert report.layers == ("head",)


# --- where nothing can be run again ---------------------------------------------------------------

MOVED = f"{STRANGE}: on the way they are put in another one"


class Direct(LightningModule):
    """Calls its parts in the step, past the forward: there is no call that could be tried again."""

    def __init__(self, way: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.inner, self.head = nn.Linear(5, 6), nn.Linear(6, 3)
        self.rnn = nn.GRU(1, 6, batch_first=True)
        self.way = way

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return {"logits": self.way(self, batch[0])}


def permuted(x: Tensor) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    return order, order.argsort()


def sorts(module: Any, x: Tensor) -> Tensor:
    order, back = permuted(x)
    return module.head(module.inner(x[order]).relu()[back])


def never_sorts_back(module: Any, x: Tensor) -> Tensor:
    order, back = permuted(x)
    return module.head(module.inner(x[order]).relu())[back]


def puts_back(module: Any, x: Tensor) -> Tensor:
    order, _ = permuted(x)
    said = module.inner(x.index_select(0, order)).relu()
    restored = torch.zeros_like(said)
    restored[order] = said
    return module.head(restored)


def turns(module: Any, x: Tensor) -> Tensor:
    return module.head(module.inner(x.flip(0).roll(1, 0)).relu().roll(-1, 0).flip(0))


def packs(module: Any, x: Tensor, enforce_sorted: bool = True) -> Tensor:
    lengths = (x[:, 0].abs() * 3).long() % 5 + 1
    back = torch.arange(len(x))
    if enforce_sorted:
        lengths, order = lengths.sort(descending=True)
        x, back = x[order], order.argsort()
    packed = pack_padded_sequence(
        x[..., None], lengths, batch_first=True, enforce_sorted=enforce_sorted
    )
    _, last = module.rnn(packed)
    return module.head(module.inner(torch.ones(len(x), 5)).relu() + last[-1][back])


def packs_as_they_are(module: Any, x: Tensor) -> Tensor:
    return packs(module, x, enforce_sorted=False)


def other_axes(module: Any, x: Tensor) -> Tensor:
    columns = torch.tensor([4, 2, 0, 1, 3])
    return module.head(module.inner(x[:, columns].flip(1).roll(2, 1)[torch.arange(len(x))]))


def experts(module: Any, x: Tensor) -> Tensor:
    """Each sample goes to two of three, which get theirs sorted; then all are put back."""
    h = module.inner(x)
    chosen = h[:, :3].topk(2).indices.flatten()
    expert, order = chosen.sort()
    said = h[order // 2] * (1 + expert[:, None])
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    return module.head(said[back].view(len(x), 2, 6).sum(1).relu())


def experts_by_index(module: Any, x: Tensor) -> Tensor:
    """The same, one expert after the other."""
    h = module.inner(x)
    chosen, found = h[:, :3].topk(2).indices, torch.zeros_like(h)
    for expert in range(3):
        rows, _ = torch.where(chosen == expert)
        found.index_add_(0, rows, h[rows] * (1 + expert))
    return module.head(found.relu())


DIRECT = [
    (sorts, ["inner"], ["head"]),
    (never_sorts_back, ["inner", "head"], []),
    (puts_back, ["inner"], ["head"]),
    (turns, ["inner"], ["head"]),
    (packs, ["rnn"], ["head"]),
    (packs_as_they_are, [], ["head", "rnn"]),
    (other_axes, [], ["inner", "head"]),
    (experts, [], ["inner", "head"]),
    (experts_by_index, [], ["inner", "head"]),
]


@pytest.mark.filterwarnings("ignore:Layer .* was left out")
@pytest.mark.parametrize(("way", "out", "kept"), DIRECT)
def test_an_order_is_followed_where_nothing_is_run_again(
    way: Callable[..., Tensor], out: list[str], kept: list[str]
) -> None:
    x, y, answers = data()
    callback = NeuronAdvantage(
        lambda batch: batch[2], [*out, *kept], target=1, visualizer=None, attribution=False
    )
    loader = DataLoader(TensorDataset(x, y, answers), BATCH)
    module, trainer = Direct(way), paper_trainer(callback)
    if not kept:
        with pytest.raises(ValueError, match=MOVED):
            trainer.validate(module, loader, verbose=False)
        return
    trainer.validate(module, loader, verbose=False)
    report = callback.report
    assert report is not None
    assert sorted(report.layers) == sorted(kept)
    for name in out:
        assert any(note.startswith(f"Layer {name} was left out: {MOVED}") for note in report.notes)
    with torch.no_grad():
        logits = torch.cat([way(module, part) for part in x.split(BATCH)])
    gain = (logits.argmax(1) == y).double() - (answers == y).double()
    for unit in range(3):
        expected = pearson(logits[:, unit].numpy(), gain.numpy())
        assert report.row("head", unit).r == pytest.approx(expected, abs=1e-5)


class Noisy(nn.Module):
    """Answers by more than the sample: nothing can be tried out, and nothing is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.randn_like(x)
        return self.head(self.inner(x).relu() - self.inner(x).mean(0))


def test_what_answers_by_more_than_its_samples_is_kept() -> None:
    assert compared(Noisy()).layers == ("inner", "head")


def test_a_transform_of_torch_func() -> None:
    with pytest.raises(ValueError, match=r"inner: it is called inside a transform of torch.func"):
        compared(Net(lambda layer, x: torch.func.vmap(layer)(x)), layers="inner")


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net(sorted_by_index)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0]).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.parametrize("sanity", [0, 2])
def test_it_stays_left_out_in_later_validations(sanity: int) -> None:
    x, y, answers = data()
    loader = DataLoader(TensorDataset(x, y, answers), BATCH)
    callback = NeuronAdvantage(lambda batch: batch[2], target=1, visualizer=None)
    trainer = paper_trainer(callback, max_epochs=2, num_sanity_val_steps=sanity)
    with pytest.warns(UserWarning, match=f"net.inner was left out: {STRANGE}"):
        trainer.fit(Module(), loader, loader)
    assert [entry.layers for entry in callback.history] == [("net.head",)] * 2
    assert callback.report is not None
    assert np.isfinite(callback.report.column("r")).all()


def by_length(layer: nn.Module, x: Tensor) -> Tensor:
    """As sequences are sorted to be packed; equal lengths stay where they are."""
    order = x[:, 0].round().argsort(descending=True, stable=True)
    return layer(x[order])[order.argsort()]


@pytest.mark.filterwarnings("ignore:Layer net.inner was left out")  # an alarm, in later batches
@pytest.mark.parametrize("ordered", [1, 3, N // BATCH])
@pytest.mark.parametrize("fit", [False, True])
def test_an_order_that_shows_in_a_later_batch(ordered: int, *, fit: bool) -> None:
    x, y, b = data()
    x[: ordered * BATCH, 0] = 1.0  # of one length: sorting leaves them as they are
    module = Module()
    module.net = Net(by_length)
    callback = NeuronAdvantage(lambda batch: batch[2], target=1, visualizer=None, inspector=None)
    loader = DataLoader(TensorDataset(x, y, b), BATCH)
    trainer = paper_trainer(callback, max_epochs=2, num_sanity_val_steps=1)
    trainer.fit(module, loader, loader) if fit else trainer.validate(module, loader, verbose=False)
    report = callback.report
    assert report is not None
    with torch.no_grad():
        values = {"net.inner": module.net.inner(x), "net.head": module.net(x)}
    right = values["net.head"].argmax(1) == y
    advantage = (right.double() - (b == y).double()).numpy()
    if ordered < N // BATCH:  # else every row is where it was
        assert report.layers == ("net.head",)
        assert any(
            note.startswith(f"Layer net.inner was left out: {STRANGE}") for note in report.notes
        )
    for name in report.layers:
        rows = [row.r for row in report.rows if row.layer == name]
        assert report.read_at == report.layers
        expected = [pearson(values[name][:, j].numpy(), advantage) for j in range(len(rows))]
        np.testing.assert_allclose(rows, expected, atol=1e-6)


def tried(layers: int) -> tuple[dict[str, str], int]:
    """What is strange about layers of all kinds of widths and types, and the operators it took."""
    rows, dtypes = torch.tensor([7, 1, 4]), (torch.float32, torch.bfloat16, torch.float64)
    said, again = {}, {}
    for i in range(layers):
        said[f"{i}"] = torch.randn(BATCH, 1 + i % 5).to(dtypes[i % 3])
        again[f"{i}"] = said[f"{i}"][rows] * (1.02 if i % 2 else 1)
    said["0"][:, 0] = torch.nan
    again["0"] = said["0"][rows]
    again["1"] = again["1"].flip(0)
    again["3"] = again["3"][:2]
    again["4"] = again["4"].clone()
    again["4"][1, 2] *= -1
    again["6"] = again["6"] + 3
    trial, rounding = Trial(Layout(()), rows, None, again), {"6": torch.ones(2), "2": None}
    with Launches() as launches:
        found = strange_rows(trial, said, rounding)
    each = launches.found["index_select"] + launches.found["new_zeros"]
    return found, launches.found.total() - each


def test_many_layers_are_compared_together() -> None:
    found, few = tried(7)
    more, many = tried(60)
    assert found.keys() == more.keys() == {"1", "3", "4"}
    assert "2 rows" in found["3"]
    assert few == many < 20
