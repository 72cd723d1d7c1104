"""A new fit starts anew and a resumed one goes on: history, counts, class tables and baselines."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from lightning_neurocorr import (
    CachedBaseline,
    EstimatorBaseline,
    MajorityBaseline,
    NeuronAdvantage,
    SnapshotBaseline,
)
from tests.paper_model import PaperModule, paper_data, paper_loader, paper_trainer, watch

Folds = list[tuple[DataLoader[Any], DataLoader[Any]]]


class Labelled(Dataset[Any]):
    """Samples of the paper model whose label is a rule of its own in each third."""

    def __init__(self) -> None:
        self.x, self.y, _ = paper_data(60)
        self.y[:20] = 0
        self.y[20:40] = 1

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return self.x[i], self.y[i]


def folds() -> Folds:
    data, parts = Labelled(), torch.arange(60).split(20)
    found = []
    for k in range(3):
        rest = torch.cat([part for i, part in enumerate(parts) if i != k])
        loaders = (DataLoader(Subset(data, part.tolist()), 10) for part in (rest, parts[k]))
        found.append(tuple(loaders))
    return found  # type: ignore[return-value]


def arrays(loader: DataLoader[Any]) -> tuple[np.ndarray, np.ndarray]:
    x, y = zip(*loader.dataset, strict=True)  # type: ignore[arg-type]
    return torch.stack(x).numpy(), torch.stack(y).numpy()


def accuracy_of_fold(kind: str, train: DataLoader[Any], held_out: DataLoader[Any]) -> float:
    (x, y), (x_new, y_new) = arrays(train), arrays(held_out)
    if kind == "majority":
        return float((y_new == np.bincount(y).argmax()).mean())
    return float((LogisticRegression().fit(x, y).predict(x_new) == y_new).mean())


class Custom:
    """A baseline of the user's own that learns, and knows nothing of runs."""

    def __init__(self) -> None:
        self.needs_fit, self.fits = True, 0

    def fit(self, batches: Any) -> None:
        labels = torch.cat([y for _, y in batches])
        self.answer, self.needs_fit, self.fits = (
            int(labels.bincount().argmax()),
            False,
            self.fits + 1,
        )

    def __call__(self, batch: Any) -> Tensor:
        return torch.full((len(batch[1]),), self.answer)


BASELINES: dict[str, Any] = {
    "estimator": lambda: EstimatorBaseline(LogisticRegression(), fit=True),
    "majority": MajorityBaseline,
    "custom": Custom,
}


@pytest.mark.parametrize("cached", [False, True], ids=["plain", "cached"])
@pytest.mark.parametrize("kind", BASELINES)
@pytest.mark.parametrize("shared", ["callback", "baseline"])
def test_each_fold_is_compared_with_its_own_fit(kind: str, cached: bool, shared: str) -> None:
    baseline = BASELINES[kind]()
    baseline = CachedBaseline(baseline) if cached else baseline
    callback, reports = watch(baseline=baseline), []
    for train, held_out in folds():
        if shared == "baseline":
            callback = watch(baseline=baseline)
        paper_trainer(callback).fit(PaperModule(), train, held_out)
        assert callback.report is not None
        reports.append(callback.report)
        found = callback.report.outcomes.baseline_accuracy
        assert found == accuracy_of_fold("majority" if kind == "custom" else kind, train, held_out)
        assert [entry.validation for entry in callback.history] == [0, 1]
        assert [entry.epoch for entry in callback.history] == [0, 1]
    assert len({report.outcomes.baseline_accuracy for report in reports}) > 1


def test_each_fold_has_its_own_snapshot() -> None:
    baseline = SnapshotBaseline()
    callback = watch(baseline=baseline)
    for train, held_out in folds():
        module = Moving()
        paper_trainer(callback).fit(module, train, held_out)
        first = callback.history[0].outcomes
        assert (first.only_model, first.only_baseline, baseline.taken_at) == (0, 0, 0)
        assert torch.equal(baseline._parameters["model.head.weight"], module.first)


class Moving(PaperModule):
    """Remembers the weights of its first validation, and changes them."""

    def __init__(self) -> None:
        super().__init__()
        self.first: Any = None
        with torch.no_grad():
            self.model.head.weight += torch.rand(1)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        if self.first is None and not self.trainer.sanity_checking:
            self.first = self.model.head.weight.detach().clone()
        return super().validation_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_fold_is_as_with_a_callback_of_its_own() -> None:
    """Class tables, random draws and what was said before belong to the fold."""
    shared = watch(baseline=EstimatorBaseline(LogisticRegression(), fit=True))
    for train, held_out in folds():
        alone = watch(baseline=EstimatorBaseline(LogisticRegression(), fit=True))
        for callback in (shared, alone):
            paper_trainer(callback).fit(PaperModule(), train, held_out)
        ours, theirs = shared.report, alone.report
        assert ours is not None
        assert theirs is not None
        assert (ours.validation, ours.step, ours.outcomes) == (
            theirs.validation, theirs.step, theirs.outcomes,
        )  # fmt: skip
        for name, column in theirs.columns.items():
            np.testing.assert_array_equal(ours.columns[name], column, err_msg=name)


# --- what is not a new run ------------------------------------------------------------------------


def test_a_fit_that_goes_on_keeps_everything() -> None:
    baseline = Counting()
    callback, (train, held_out) = watch(baseline=baseline), folds()[0]
    trainer, module = paper_trainer(callback), PaperModule()
    trainer.fit(module, train, held_out)
    trainer.fit_loop.max_epochs = 4
    # New loaders of the same data sets.
    trainer.fit(module, DataLoader(train.dataset, 20), DataLoader(held_out.dataset, 20))
    assert [entry.epoch for entry in callback.history] == [0, 1, 2, 3]
    assert [entry.validation for entry in callback.history] == [0, 1, 2, 3]
    assert baseline.fits == 1


class Counting(EstimatorBaseline):
    """Counts its fits."""

    def __init__(self) -> None:
        super().__init__(LogisticRegression(), fit=True)
        self.fits = 0

    def fit(self, batches: Any) -> None:
        self.fits += 1
        super().fit(batches)


@pytest.mark.parametrize("same_callback", [True, False])
def test_a_resumed_fit_goes_on(tmp_path: Any, same_callback: bool) -> None:
    baseline = SnapshotBaseline()
    callback, (train, held_out) = watch(baseline=baseline), folds()[0]
    trainer, module = paper_trainer(callback), Moving()
    trainer.fit(module, train, held_out)
    snapshot = baseline._parameters["model.head.weight"].clone()
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    if not same_callback:
        baseline = SnapshotBaseline()
        callback = watch(baseline=baseline)
    resumed = paper_trainer(callback, max_epochs=4)
    resumed.fit(Moving(), train, held_out, ckpt_path=tmp_path / "two.ckpt")
    assert [entry.epoch for entry in callback.history] == [0, 1, 2, 3]
    assert baseline.taken_at == 0
    assert torch.equal(baseline._parameters["model.head.weight"], snapshot)
    # And the next fit starts anew, although a checkpoint had been loaded.
    module = Moving()
    paper_trainer(callback).fit(module, train, held_out)
    assert [entry.epoch for entry in callback.history] == [0, 1]
    assert torch.equal(baseline._parameters["model.head.weight"], module.first)


def test_validate_after_a_fit_goes_on_and_does_not_fit_again() -> None:
    baseline = Counting()
    callback, (train, held_out) = watch(baseline=baseline), folds()[0]
    trainer = paper_trainer(callback)
    trainer.fit(PaperModule(), train, held_out)
    trainer.validate(PaperModule(), held_out, verbose=False)  # another model, such as the best one
    assert len(callback.history) == 3
    assert baseline.fits == 1


@pytest.mark.parametrize("other", ["model", "training data", "validation data", "trainer"])
def test_what_makes_a_fit_a_new_one(other: str) -> None:
    baseline = Counting()
    callback, (train, held_out), (train_2, held_out_2) = watch(baseline=baseline), *folds()[:2]
    trainer, module = paper_trainer(callback), PaperModule()
    trainer.fit(module, train, held_out)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(
        module if other != "model" else PaperModule(),
        train if other != "training data" else train_2,
        held_out if other != "validation data" else held_out_2,
    ) if other != "trainer" else paper_trainer(callback).fit(module, train, held_out)
    assert len(callback.history) == 2
    assert callback.history[0].validation == 0
    assert baseline.fits == 2


# --- whose fit it is ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["estimator", "fit", "majority", "snapshot"])
def test_what_the_user_fitted_is_never_fitted_again(how: str) -> None:
    (train, _), *_ = folds()
    x, y = arrays(train)
    if how == "estimator":
        baseline: Any = EstimatorBaseline(LogisticRegression().fit(x, y))
    elif how == "snapshot":
        baseline, module = SnapshotBaseline(), PaperModule()
        baseline.observe(module, 0)
    else:
        baseline = Counting() if how == "fit" else MajorityBaseline()
        baseline.fit(train)
    before = pickle.dumps((getattr(baseline, "estimator", 0), getattr(baseline, "_parameters", 0)))
    callback = watch(baseline=baseline)
    for train, held_out in folds():
        paper_trainer(callback).fit(PaperModule(), train, held_out)
    after = pickle.dumps((getattr(baseline, "estimator", 0), getattr(baseline, "_parameters", 0)))
    assert before == after
    assert getattr(baseline, "fits", 1) == 1


@pytest.mark.parametrize("kind", [Counting, Custom])
def test_two_callbacks_share_a_baseline_that_is_fitted_once_a_fold(kind: Any) -> None:
    baseline = kind()
    first, second = watch(baseline=baseline, name="one"), watch(baseline=baseline, name="two")
    for k, (train, held_out) in enumerate(folds(), 1):
        trainer = paper_trainer(first, second)
        trainer.fit(PaperModule(), train, held_out)
        trainer.validate(PaperModule(), held_out, verbose=False)
        assert baseline.fits == k
        assert first.report is not None
        assert second.report is not None
        assert first.report.outcomes == second.report.outcomes


def test_a_copy_of_a_callback_is_free_of_runs() -> None:
    callback, (train, held_out) = watch(baseline=Counting()), folds()[0]
    paper_trainer(callback).fit(PaperModule(), train, held_out)
    for twin in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        assert isinstance(twin, NeuronAdvantage)
        assert len(twin.history) == 2
        paper_trainer(twin).fit(PaperModule(), train, held_out)
        assert [entry.epoch for entry in twin.history] == [0, 1]


class Batches:
    """A loader without a data set, which cannot be referred to weakly."""

    __slots__ = ("batches",)

    def __init__(self) -> None:
        self.batches = list(paper_loader())

    def __iter__(self) -> Any:
        return iter(self.batches)


def test_a_loader_that_cannot_be_referred_to_is_known_by_itself() -> None:
    callback, train, held_out = watch(), paper_loader(), Batches()
    trainer, module = paper_trainer(callback, max_epochs=1), PaperModule()
    for epochs, loader, length in ((1, held_out, 1), (2, held_out, 2), (3, Batches(), 1)):
        trainer.fit_loop.max_epochs = epochs
        trainer.fit(module, train, loader)
        assert len(callback.history) == length
