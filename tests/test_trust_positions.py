"""Positions are known, not counted: the right row of a table, or a refusal; never a wrong number.

The truth is a plain loop over the data set, one sample at a time, by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from lightning_neurocorr import CachedBaseline, NeuronAdvantage, TableBaseline, compare
from lightning_neurocorr.report import NeuronReport
from tests.helpers import pearson
from tests.paper_model import paper_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*shuffling enabled"),
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),
]

N = 100
UNREADABLE = {3, 17, 18, 40, 41, 42, 63, 77, 80, 95, 99}


class Scans(Dataset[Any]):
    """``(x, y, id)``; ids are permuted, and far from positions."""

    def __init__(self, n: int = N) -> None:
        draw = torch.Generator().manual_seed(5)
        self.y = torch.randint(0, 3, (n,), generator=draw)
        self.x = torch.randn(n, 4, generator=draw) + self.y[:, None]
        self.ids = 10_000 + 7 * torch.randperm(n, generator=draw)
        wrong = torch.rand(n, generator=draw) < 0.3
        self.readings = torch.where(wrong, (self.y + 1) % 3, self.y)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> Any:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.x[i], self.y[i], self.ids[i]


SCANS = Scans()
BY_POSITION = SCANS.readings.numpy()
INDEX = {value: i for i, value in enumerate(SCANS.ids.tolist())}
BY_ID = dict(zip(SCANS.ids.tolist(), SCANS.readings.tolist(), strict=True))


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def loop(indices: list[int]) -> tuple[float, list[float]]:
    """The baseline's accuracy, and r of each hidden neuron, one sample at a time."""
    model, right, advantage, hidden = network(), [], [], []
    for i in indices:
        x, y = SCANS.x[i : i + 1], int(SCANS.y[i])
        with torch.no_grad():
            answer, activation = int(model(x).argmax()), model[:2](x)[0]
        right.append(int(SCANS.readings[i]) == y)
        advantage.append((answer == y) - right[-1])
        hidden.append(activation.double().numpy())
    columns = np.stack(hidden).T
    return float(np.mean(right)), [pearson(column, np.array(advantage)) for column in columns]


def assert_is_the_loop(report: NeuronReport, indices: list[int]) -> None:
    accuracy, r = loop(indices)
    assert report.n == len(indices)
    assert report.outcomes.baseline_accuracy == pytest.approx(accuracy)
    np.testing.assert_allclose(report.column("r")[:6], r, atol=1e-6)


def readable(samples: list[Any]) -> Any:
    """Leaves unreadable samples out."""
    bad = {int(SCANS.ids[i]) for i in UNREADABLE}
    return default_collate([sample for sample in samples if int(sample[2]) not in bad])


class Backwards(SequentialSampler):
    def __iter__(self) -> Iterator[int]:
        return reversed(range(len(self.data_source)))


class BackwardBatches(BatchSampler):
    def __iter__(self) -> Iterator[list[int]]:
        return reversed(list(super().__iter__()))


class OwnLoader(DataLoader[Any]):
    def __iter__(self) -> Any:
        return reversed(list(super().__iter__()))


class Renamed(DataLoader[Any]):
    """As libraries have them: nothing about drawing is changed."""


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return (SCANS[i] for i in reversed(range(N)))


class StreamWithLength(Stream):
    def __len__(self) -> int:
        return N


class Whole(Dataset[Any]):
    """A sample is a batch."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> Any:
        return default_collate([SCANS[j] for j in range(N - 10 * (i + 1), N - 10 * i)])


def listed(loader: DataLoader[Any]) -> list[Any]:
    return list(loader)


ALL = list(range(N))
KNOWN: dict[str, tuple[Callable[[], Any], list[int]]] = {
    "sequential": (lambda: DataLoader(SCANS, batch_size=16), ALL),
    "drop last": (lambda: DataLoader(SCANS, batch_size=16, drop_last=True), list(range(96))),
    "explicit": (
        lambda: DataLoader(SCANS, batch_sampler=BatchSampler(SequentialSampler(SCANS), 7, False)),
        ALL,
    ),
    "own collate": (lambda: DataLoader(SCANS, batch_size=16, collate_fn=default_collate), ALL),
    "concatenated": (
        lambda: DataLoader(
            ConcatDataset([Subset(SCANS, range(30)), Subset(SCANS, range(30, N))]), batch_size=16
        ),
        ALL,
    ),
    "a subclass that changes nothing": (lambda: Renamed(SCANS, batch_size=16), ALL),
}
SHORT = [i for i in ALL if i not in UNREADABLE]
UNKNOWN: dict[str, tuple[Callable[[], Any], list[int]]] = {
    "collate drops": (lambda: DataLoader(SCANS, batch_size=16, collate_fn=readable), SHORT),
    "backwards": (lambda: DataLoader(SCANS, batch_size=16, sampler=Backwards(SCANS)), ALL),
    "batches backwards": (
        lambda: DataLoader(
            SCANS, batch_sampler=BackwardBatches(SequentialSampler(SCANS), 16, False)
        ),
        ALL,
    ),
    "shuffled": (lambda: DataLoader(SCANS, batch_size=16, shuffle=True), ALL),
    "random subset": (
        lambda: DataLoader(SCANS, batch_size=16, sampler=SubsetRandomSampler(SHORT)),
        SHORT,
    ),
    "batch_size=None": (lambda: DataLoader(Whole(), batch_size=None), ALL),
    "own __iter__": (lambda: OwnLoader(SCANS, batch_size=16), ALL),
    "iterable": (lambda: DataLoader(Stream(), batch_size=16), ALL),
    "iterable with length": (lambda: DataLoader(StreamWithLength(), batch_size=16), ALL),
    "a list of batches": (lambda: listed(DataLoader(SCANS, batch_size=16, shuffle=True)), ALL),
    "a generator": (lambda: iter(listed(DataLoader(SCANS, batch_size=16))), ALL),
    "a list as batch sampler": (
        lambda: DataLoader(SCANS, batch_sampler=[[i, i + 1] for i in range(0, N, 2)]),
        ALL,
    ),
    "as workers finish": (
        lambda: DataLoader(SCANS, batch_size=16, num_workers=1, in_order=False),
        ALL,
    ),
}


@pytest.mark.parametrize("name", [*KNOWN, *UNKNOWN])
def test_a_table_by_position_is_right_or_refused(name: str) -> None:
    make, indices = (KNOWN | UNKNOWN)[name]
    if name in UNKNOWN:
        with pytest.raises(ValueError, match=r"looked up by position, but .* give the table `id=`"):
            compare(network(), make(), TableBaseline(BY_POSITION), target=1, attribution=False)
    else:
        report = compare(network(), make(), TableBaseline(BY_POSITION), target=1, attribution=False)
        assert_is_the_loop(report, indices)


@pytest.mark.parametrize("name", [*KNOWN, *UNKNOWN])
def test_a_table_by_id_is_right_everywhere(name: str) -> None:
    make, indices = (KNOWN | UNKNOWN)[name]
    report = compare(network(), make(), TableBaseline(BY_ID, id=2), target=1, attribution=False)
    assert_is_the_loop(report, indices)


def test_samples_drawn_with_replacement_are_right_by_id() -> None:
    loader = DataLoader(SCANS, batch_size=16, sampler=WeightedRandomSampler(torch.rand(N), 70))
    seen: list[int] = []

    def remembers(samples: list[Any]) -> Any:
        seen.extend(INDEX[int(sample[2])] for sample in samples)
        return default_collate(samples)

    loader.collate_fn = remembers
    report = compare(network(), loader, TableBaseline(BY_ID, id=2), target=1, attribution=False)
    assert len(set(seen)) < len(seen) == 70
    assert_is_the_loop(report, seen)
    with pytest.raises(ValueError, match="draws its samples by a WeightedRandomSampler, whose ord"):
        compare(network(), loader, TableBaseline(BY_POSITION), target=1, attribution=False)


# --- in a training run ----------------------------------------------------------------------------


class Module(pl.LightningModule):
    """``step`` says what validation_step does with a batch."""

    def __init__(self, step: Callable[[Any, Any], Any] = lambda self, batch: self(batch[0])):
        super().__init__()
        self.net, self.step = network(), step

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self.step(self, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def validated(
    loader: Any, baseline: Any, module: pl.LightningModule | None = None, **more: Any
) -> NeuronReport:
    trainer = {name: more.pop(name) for name in ("limit_val_batches",) if name in more}
    said = {} if module is not None or "predictions" in more else {"target": 1}
    callback = NeuronAdvantage(baseline, visualizer=None, attribution=False, **said, **more)
    paper_trainer(callback, **trainer).validate(module or Module(), loader, verbose=False)
    assert callback.report is not None
    return callback.report


def test_a_pass_that_ends_early_has_positions() -> None:
    loader = DataLoader(SCANS, batch_size=16)
    report = validated(loader, TableBaseline(BY_POSITION), limit_val_batches=3)
    assert_is_the_loop(report, list(range(48)))


def test_several_loaders_count_as_one() -> None:
    loaders = [
        DataLoader(Subset(SCANS, range(30)), batch_size=16),
        DataLoader(Subset(SCANS, range(30, N)), batch_size=7),
    ]
    assert_is_the_loop(validated(loaders, TableBaseline(BY_POSITION)), ALL)
    short = Subset(SCANS, range(30, N))
    loaders[1] = DataLoader(short, batch_size=7, collate_fn=readable)
    with pytest.raises(ValueError, match="batch 1 has 4 rows, where 7 samples were drawn"):
        validated(loaders, TableBaseline(BY_POSITION))


def test_a_cache_forgets_positions_where_they_are_lost() -> None:
    loader = DataLoader(SCANS, batch_size=16, collate_fn=readable)
    asked: list[int] = []

    def answers(batch: Any) -> Tensor:
        asked.append(len(batch[0]))
        return torch.tensor([BY_ID[int(i)] for i in batch[2]])

    baseline = CachedBaseline(answers)
    with pytest.warns(UserWarning, match="cannot keep answers"):
        assert_is_the_loop(validated(loader, baseline), SHORT)
    assert_is_the_loop(validated(loader, baseline), SHORT)
    assert sum(asked) == 2 * len(SHORT)  # whole batches before the first that lost rows, too


def test_positions_that_are_lost_later_are_a_warning() -> None:
    class Fading(Scans):
        broken = False

        def collate(self, samples: list[Any]) -> Any:
            return readable(samples) if self.broken else default_collate(samples)

    data = Fading()
    loader = DataLoader(data, batch_size=16, collate_fn=data.collate)

    class Breaks(pl.Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            data.broken = not trainer.sanity_checking

    callback = NeuronAdvantage(
        TableBaseline(BY_POSITION), visualizer=None, target=1, attribution=False
    )
    trainer = paper_trainer(callback, Breaks(), max_epochs=2)
    with pytest.warns(UserWarning, match="batch 0 has 15 rows, where 16 samples were drawn"):
        trainer.fit(Module(), DataLoader(SCANS, batch_size=50), loader)
    assert trainer.current_epoch == 2
    assert len(callback.history) == 1
    assert_is_the_loop(callback.report, ALL)


# --- all pieces of a batch have the same N --------------------------------------------------------


LABELLED = [i for i in ALL if i % 5]


def rows_of(batch: Any, wanted: list[int]) -> Tensor:
    """Which rows of a batch are wanted."""
    return torch.tensor([INDEX[int(value)] in wanted for value in batch[2]])


def labelled_only(module: Any, batch: Any) -> Any:
    """Forwards and returns the labelled rows."""
    rows = rows_of(batch, LABELLED)
    return {"preds": module(batch[0][rows]), "target": batch[1][rows]}


def two_views(module: Any, batch: Any) -> Any:
    """Every sample twice, one view after the other."""
    return {"logits": module(torch.cat([batch[0], batch[0]])), "target": batch[1].repeat(2)}


def tokens(module: Any, batch: Any) -> Any:
    """Logits of three tokens per sample, flattened."""
    return {"logits": module(batch[0].repeat_interleave(3, 0)), "target": batch[1].repeat(3)}


STEPS = {"labelled rows": labelled_only, "views": two_views, "tokens": tokens}
LOADERS = {
    "sequential": lambda: DataLoader(SCANS, batch_size=20),
    "shuffled": lambda: DataLoader(SCANS, batch_size=20, shuffle=True),
    "own": lambda: OwnLoader(SCANS, batch_size=20),
    "iterable": lambda: DataLoader(Stream(), batch_size=20),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("by", ["position", "id", "batch", "own"])
def test_other_rows_than_those_of_the_batch_are_refused(step: str, kind: str, by: str) -> None:
    forward = STEPS[step]

    def answers(batch: Any) -> Tensor:  # as many as were predicted: nothing disagrees
        return torch.zeros(len(forward(lambda x: x, batch)["target"]), dtype=torch.long)

    baseline = {
        "position": TableBaseline(BY_POSITION),
        "id": TableBaseline(BY_ID, id=2),
        "batch": lambda batch: batch[1],
        "own": answers,
    }[by]
    match = r"the prediction to have one row for each sample of the batch.*give `sample_id`"
    with pytest.raises(ValueError, match=match):
        validated(LOADERS[kind](), baseline, Module(forward))


def test_an_id_for_each_predicted_row_says_what_it_is() -> None:
    def ids(batch: Any) -> Tensor:
        return batch[2][rows_of(batch, LABELLED)]

    loader = LOADERS["shuffled"]()
    table = TableBaseline(BY_ID, id=ids)
    assert_is_the_loop(validated(loader, table, Module(labelled_only), sample_id=ids), LABELLED)
    match = "an id for each of the .* samples that were predicted, but got 20"
    with pytest.raises(ValueError, match=match):
        validated(loader, table, Module(labelled_only), sample_id=2)


def test_predictions_of_some_rows_are_refused() -> None:
    def some(outputs: Any, batch: Any) -> Any:
        return outputs[1:], batch[1][1:]

    for kind in LOADERS:
        with pytest.raises(ValueError, match="one row for each sample of the batch"):
            validated(LOADERS[kind](), lambda batch: batch[1][1:], predictions=some)


def test_rows_that_are_lost_later_are_a_warning() -> None:
    epochs: list[int] = []

    def later(module: Any, batch: Any) -> Any:
        whole = module.trainer.current_epoch == 0
        epochs.append(module.trainer.current_epoch)
        if whole:
            return {"preds": module(batch[0]), "target": batch[1]}
        return labelled_only(module, batch)

    callback = NeuronAdvantage(lambda batch: batch[1], visualizer=None, attribution=False)
    trainer = paper_trainer(callback, max_epochs=2)
    with pytest.warns(UserWarning, match="which has 20, but got 16 rows"):
        trainer.fit(Module(later), DataLoader(SCANS, batch_size=50), LOADERS["sequential"]())
    assert len(callback.history) == 1
    assert max(epochs) == 1
