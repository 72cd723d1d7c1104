"""A frozen baseline is asked once; whatever may have changed is asked anew."""

import copy
import pickle
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_neurocorr import (
    CachedBaseline,
    EstimatorBaseline,
    MajorityBaseline,
    ModuleBaseline,
    NeuronAdvantage,
    SnapshotBaseline,
    TableBaseline,
)
from lightning_neurocorr import baselines as B
from lightning_neurocorr.samples import LoaderPositions
from tests.baseline_nets import Counting, Net, batch, trained
from tests.paper_model import PaperModule, PaperSet, paper_loader, paper_trainer


class Asked:
    """Answers with the third part of the batch, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, batch: Any) -> torch.Tensor:
        self.calls += 1
        return batch[2]


def validations(baseline: Any, loader: DataLoader, epochs: int = 3, **more: Any) -> NeuronAdvantage:
    """A fit with a validation per epoch, after a sanity check of two batches."""
    callback = NeuronAdvantage(baseline, target=1, visualizer=None, **more)
    paper_trainer(callback, max_epochs=epochs).fit(PaperModule(), paper_loader(), loader)
    return callback


def sequence(loader: DataLoader, baseline: CachedBaseline) -> list[torch.Tensor]:
    """The answers of one validation, as the collector asks for them."""
    positions, answers = LoaderPositions(loader), []
    for part in loader:
        baseline.watch(loader.dataset)
        places, _ = positions.advance(len(part[0]))
        answers.append(baseline.predict_at(part, places if positions.known else None))
    return answers


# --- in the callback --------------------------------------------------------------------------


def test_the_baseline_is_asked_once_per_batch_and_never_again():
    plain, inner = Asked(), Asked()
    expected = validations(plain, paper_loader())
    found = validations(CachedBaseline(inner), paper_loader())
    assert plain.calls == 3 * 5  # five batches in three epochs; the sanity check asks a copy
    assert inner.calls == 5  # the sanity check's batches are the first two of them
    for name, column in expected.report.columns.items():
        assert np.array_equal(column, found.report.columns[name], equal_nan=True), name
    assert expected.report.outcomes == found.report.outcomes
    assert found.report.baseline == "CachedBaseline(Asked)"


def test_a_sanity_check_of_other_batches_is_of_no_harm():
    inner = Asked()
    found = validations(CachedBaseline(inner), paper_loader(batch_size=7), epochs=1)
    assert inner.calls == 7
    assert found.report.n == 48


@pytest.mark.filterwarnings("ignore:.*shuffling enabled")
def test_a_shuffled_set_is_asked_again_and_told_once():
    inner = Asked()
    loader = DataLoader(PaperSet(), batch_size=10, shuffle=True)
    with pytest.warns(UserWarning, match=r"cannot keep answers.*shuffle=False") as caught:
        validations(CachedBaseline(inner), loader)
    assert inner.calls == 2 + 3 * 5
    assert sum("cannot keep answers" in str(warning.message) for warning in caught) == 1


def test_a_second_run_on_the_same_data_asks_nothing_and_on_other_data_everything():
    inner, loader = Asked(), paper_loader()
    baseline = CachedBaseline(inner)
    for data, calls in ((loader, 5), (loader, 5), (paper_loader(), 10), (paper_loader(30), 13)):
        paper_trainer(NeuronAdvantage(baseline, target=1, visualizer=None)).validate(
            PaperModule(), data, verbose=False
        )
        assert inner.calls == calls


def test_two_loaders_keep_apart():
    first, second = paper_loader(), paper_loader(30)
    second.dataset.answer = 1 - second.dataset.answer
    plain, inner = Asked(), Asked()
    expected = validations(plain, [first, second])
    found = validations(CachedBaseline(inner), [first, second])
    assert inner.calls == 5 + 3
    assert expected.report.outcomes == found.report.outcomes


def test_a_snapshot_is_asked_anew_where_it_was_taken_anew():
    baseline, net, loader = CachedBaseline(SnapshotBaseline(1)), Net(), _data()
    baseline.observe(net, 0)
    assert not baseline.ready
    baseline.observe(net, 1)
    assert baseline.ready
    first = sequence(loader, baseline)
    trained(net)
    baseline.observe(net, 2)
    assert all(map(torch.equal, first, sequence(loader, baseline)))
    other = CachedBaseline(SnapshotBaseline(1))
    other.observe(net, 1)
    baseline.load_state_dict(other.state_dict())
    baseline.observe(net, 3)
    assert not torch.equal(first[0], sequence(loader, baseline)[0])


def test_a_baseline_that_follows_the_model_without_saying_so_is_asked_each_time():
    class Follower(Asked):
        ready = True

        def observe(self, module: nn.Module, epoch: int) -> None:
            pass

    inner = Follower()
    validations(CachedBaseline(inner), paper_loader())
    assert inner.calls == 2 + 3 * 5


# --- what makes it ask anew -------------------------------------------------------------------


def _data(n: int = 12, size: int = 5, **more: Any) -> DataLoader:
    x, y = batch(n)
    return DataLoader(TensorDataset(x, y, y), batch_size=size, **more)


@pytest.mark.parametrize(
    ("change", "calls"),
    [
        (lambda loader: loader, 3),
        (lambda loader: DataLoader(loader.dataset, batch_size=5), 3),  # the same data set
        (lambda loader: DataLoader(loader.dataset, batch_size=4), 6),
        (lambda loader: _data(), 6),  # equal, but another object: who knows
        (lambda loader: _data(7), 5),
        (lambda loader: DataLoader(list(loader.dataset), batch_size=5), 6),
    ],
)
def test_another_data_set_or_batch_size_is_asked_anew(change, calls):
    inner, loader = Asked(), _data()
    baseline = CachedBaseline(inner)
    sequence(loader, baseline)
    loader = change(loader)
    want = [part[2] for part in loader]
    assert all(map(torch.equal, sequence(loader, baseline), want))
    assert inner.calls == calls
    assert sum(len(kept.answer) for kept in baseline._kept.values()) == len(loader.dataset)


def test_a_module_that_is_trained_on_is_asked_anew():
    net, loader = Net(), _data()
    baseline = CachedBaseline(ModuleBaseline(net))
    first = sequence(loader, baseline)
    assert all(map(torch.equal, first, sequence(loader, baseline)))
    trained(net)
    found = sequence(loader, baseline)
    plain = ModuleBaseline(net)
    assert all(torch.equal(answer, plain(part)) for answer, part in zip(found, loader, strict=True))


def test_a_module_that_counts_its_calls_is_never_kept():
    baseline, plain = CachedBaseline(ModuleBaseline(Counting())), ModuleBaseline(Counting())
    for _ in range(2):
        found = sequence(_data(), baseline)
        assert all(map(torch.equal, found, [plain(part) for part in _data()]))


def test_a_fit_is_asked_anew():
    inner, loader = MajorityBaseline(), _data()
    baseline = CachedBaseline(inner)
    assert baseline.needs_fit
    for labels in ([1, 1, 0], [0, 0, 1]):
        baseline.fit([(torch.rand(3, 2), torch.tensor(labels))])
        assert not baseline.needs_fit
        assert sequence(loader, baseline)[0].tolist() == [labels[0]] * 5
    inner.class_id = 7  # nobody can notice this
    assert sequence(loader, baseline)[0].tolist() == [0] * 5
    baseline.forget()
    assert sequence(loader, baseline)[0].tolist() == [7] * 5


# --- distributed, modes, copies ---------------------------------------------------------------


@pytest.mark.parametrize(("n", "size"), [(12, 2), (13, 1), (13, 3), (2, 4)])
@pytest.mark.parametrize("world", [2, 3])
def test_each_process_keeps_its_own_padding_included(n, size, world):
    dataset = _data(n).dataset
    for rank in range(world):
        sampler = DistributedSampler(dataset, world, rank, shuffle=False)
        loader, inner = DataLoader(dataset, batch_size=size, sampler=sampler), Asked()
        baseline = CachedBaseline(inner)
        want = [part[2] for part in loader]
        for _ in range(3):
            assert all(map(torch.equal, sequence(loader, baseline), want))
        assert inner.calls == len(loader)


@pytest.mark.keeps_rng
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_answers_are_of_their_own_in_every_mode(mode):
    baseline = CachedBaseline(Asked())
    part = (None, None, torch.zeros(3, requires_grad=mode is torch.enable_grad))
    with mode():
        baseline.predict_at(part, torch.arange(3))
    answer = baseline.predict_at(None, torch.arange(3))
    assert not answer.is_inference()
    assert not answer.requires_grad
    answer += 1
    assert baseline.predict_at(None, torch.arange(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))])
def test_copies_start_empty(twin_of):
    baseline, loader = CachedBaseline(TableBaseline(list(range(12)))), _data()
    first = sequence(loader, baseline)
    twin = twin_of(baseline)
    assert not twin._kept
    assert all(map(torch.equal, first, sequence(loader, twin)))


def test_a_data_set_is_not_kept_alive():
    baseline, loader = CachedBaseline(Asked()), _data()
    sequence(loader, baseline)
    gone = weakref.ref(loader.dataset)
    del loader
    assert gone() is None


# --- what the baseline can do besides ---------------------------------------------------------


def test_capabilities_are_those_of_the_baseline():
    for inner in (
        Asked(),
        MajorityBaseline(),
        TableBaseline([0, 1]),
        TableBaseline({"a": 1}, id=0),
    ):
        baseline = CachedBaseline(inner)
        for protocol in (B.Baseline, B.Positional, B.Fittable, B.Snapshotting, B.Movable):
            assert isinstance(baseline, protocol)
        assert baseline.needs_positions == getattr(inner, "needs_positions", False)
        assert baseline.needs_fit == getattr(inner, "needs_fit", False)
        assert baseline.ready
        assert baseline.to("cpu") is baseline
        assert baseline.state_dict() == getattr(inner, "state_dict", dict)()
        baseline.load_state_dict({})
    with pytest.raises(ValueError, match="2 rows for 3 samples"):
        CachedBaseline(TableBaseline([0, 1])).check(3)
    assert CachedBaseline(ModuleBaseline(Net().double())).to("cpu").baseline.module.scale == 1


def test_what_is_no_baseline_is_refused():
    with pytest.raises(TypeError, match=r"Wrap it: ModuleBaseline\(module\)"):
        CachedBaseline(Net())


def test_without_positions_the_baseline_is_asked():
    inner = Asked()
    baseline = CachedBaseline(inner)
    for _ in range(2):
        assert baseline((0, 0, [1, 2])).tolist() == [1, 2]
    assert inner.calls == 2


def test_an_estimator_may_be_cached():
    sklearn = pytest.importorskip("sklearn.dummy")
    estimator = sklearn.DummyClassifier(strategy="uniform")  # answers at random
    baseline = CachedBaseline(EstimatorBaseline(estimator, fit=True))
    baseline.fit([batch(30)])
    loader = _data()
    assert all(map(torch.equal, sequence(loader, baseline), sequence(loader, baseline)))
