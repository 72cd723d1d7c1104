"""Compiled models: hooks fire on every batch, and the compiler's stance is handed back."""

from __future__ import annotations

import os
import shutil
from typing import Any

import numpy as np
import pytest
import torch
import torch._inductor.config
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import NeuronAdvantage
from tests.one_module import COMPILES_WHOLE, Trained, answer, cnn, loaders, pictures
from tests.paper_model import paper_trainer


def inner() -> Any:
    return Trained(torch.compile(cnn(), backend="eager"))  # type: ignore[arg-type]


def in_place() -> Any:
    module = Trained(cnn())
    module.net.compile(backend="eager")
    return module


def whole() -> Any:
    return torch.compile(Trained(cnn()), backend="eager")


def whole_in_place() -> Any:
    module = Trained(cnn())
    module.compile(backend="eager")
    return module


def full_graph() -> Any:
    return Trained(torch.compile(cnn(dropout=0.0), backend="eager", fullgraph=True))  # type: ignore[arg-type]


FORMS = [inner, in_place, *[whole] * COMPILES_WHOLE, whole_in_place, full_graph]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def stance() -> str:
    from torch._dynamo import eval_frame

    return eval_frame._stance.stance


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("every", [2])
def test_hooks_fire_on_every_batch(form: Any, every: int) -> None:
    """Also where an unwatched validation compiled the graph without our hooks."""
    torch.manual_seed(2)
    module, seen = form(), []
    callback = NeuronAdvantage(answer, target=1, visualizer=None, every_n_validations=every)
    data = pictures()
    watched = NeuronAdvantage.on_validation_batch_end

    class Counting(NeuronAdvantage):
        def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
            seen.append(stance())
            watched(self, *args, **kwargs)

    callback.__class__ = Counting
    paper_trainer(callback, max_epochs=3).fit(module, *loaders(data))
    report = callback.report
    assert report.n == len(data)
    assert report.layers == ("net.0", "net.4", "net.7")
    assert not any("left out" in note for note in report.notes)
    assert len(callback.history) == (3 if every == 1 else 2)
    assert seen.count("force_eager") == 4 * len(callback.history) + 2  # and two of the rehearsal
    assert stance() == "default"


def test_r_of_a_compiled_model_is_that_of_the_plain_one() -> None:
    found = []
    for compiled in (False, True):
        torch.manual_seed(2)
        net = cnn()
        module = Trained(torch.compile(net, backend="eager") if compiled else net)  # type: ignore[arg-type]
        callback = NeuronAdvantage(answer, target=1, visualizer=None)
        paper_trainer(callback).validate(module, loaders(pictures())[1], verbose=False)
        found.append(callback.report.column("r"))
    np.testing.assert_allclose(*found, atol=1e-6)


class Interrupted(Trained):
    def __init__(self, error: BaseException) -> None:
        super().__init__(torch.compile(cnn(), backend="eager"))  # type: ignore[arg-type]
        self.error = error

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, batch_idx)
        if not self.trainer.sanity_checking and batch_idx == 1:
            raise self.error


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), SystemExit(3)])
def test_the_stance_is_handed_back_after_an_exception(error: BaseException) -> None:
    module = Interrupted(error)
    with pytest.raises((RuntimeError, KeyboardInterrupt, SystemExit)):
        paper_trainer(NeuronAdvantage(answer, target=1, visualizer=None)).fit(
            module, *loaders(pictures())
        )
    assert stance() == "default"
    assert not any(part._forward_hooks for part in module.modules() if isinstance(part, nn.Conv2d))


def test_a_stance_of_the_users_own_comes_back() -> None:
    torch.compiler.set_stance("eager_on_recompile")
    try:
        callback = NeuronAdvantage(answer, target=1, visualizer=None)
        paper_trainer(callback).validate(inner(), loaders(pictures())[1], verbose=False)
        assert stance() == "eager_on_recompile"
    finally:
        torch.compiler.set_stance("default")


# --- the backend that people use --------------------------------------------------------------

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))),
    reason="inductor needs a C++ compiler",
)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def inductor(form: str) -> Any:
    torch.manual_seed(2)
    if form == "inner net":
        return Trained(torch.compile(net()))  # type: ignore[arg-type]
    module = Trained(net())
    if form == "in place":
        module.compile()
        return module
    return torch.compile(module)


@needs_compiler
@pytest.mark.parametrize("form", ["inner net", "in place", *["whole module"] * COMPILES_WHOLE])
@torch._inductor.config.patch(compile_threads=1)  # no pool of processes for so little
def test_inductor_trains_the_same_and_calls_our_hooks(form: str) -> None:
    """Every second validation is watched, so that a graph without hooks is there before."""
    x, y = torch.randn(60, 6), torch.randint(0, 3, (60,))
    data = TensorDataset(x, y, torch.randint(0, 3, (60,)))
    results = []
    for watched in (False, True):
        torch.compiler.reset()
        module = inductor(form)
        callback = NeuronAdvantage(answer, target=1, visualizer=None, every_n_validations=2)
        trainer = paper_trainer(*([callback] if watched else []), max_epochs=3)
        trainer.fit(module, DataLoader(data, 20, shuffle=True), DataLoader(data, 20))
        results.append([p.detach().clone() for p in trainer.lightning_module.parameters()])
    assert all(map(torch.equal, *results))
    assert [entry.epoch for entry in callback.history] == [1, 2]
    report = callback.report
    assert report.layers == ("net.0", "net.2")
    assert not any("left out" in note for note in report.notes)
    with torch.no_grad():
        hidden = plain(trainer.lightning_module)(x)
    gain = (hidden.argmax(1) == y).float() - (data.tensors[2] == y).float()
    expected = [np.corrcoef(hidden[:, unit], gain)[0, 1] for unit in range(3)]
    np.testing.assert_allclose([report.row("net.2", i).r for i in range(3)], expected, atol=1e-5)


def plain(module: Any) -> nn.Sequential:
    """The same weights, never compiled."""
    copy = net()
    weights = [p.detach() for p in module.parameters()]
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(weights), copy.parameters())
    return copy


# --- and where hooks do not fire ----------------------------------------------------------------


class Sometimes(Trained):
    """Its second layer is left out of one batch in three, and its third is called twice there."""

    def __init__(self) -> None:
        super().__init__(nn.ModuleList([nn.Linear(6, 3), nn.Linear(6, 3), nn.Linear(6, 3)]))
        self.batches = 0

    def forward(self, x: Tensor) -> Tensor:
        self.batches += 1
        first, second, third = self.net  # type: ignore[misc]
        if self.batches % 3:
            return first(x) + second(x) + third(x)
        return first(x) + third(x) + third(x)


@pytest.mark.parametrize("rehearsed", [True, False])
def test_a_layer_that_misses_a_batch_is_never_reported(rehearsed: bool) -> None:
    data = TensorDataset(torch.randn(60, 6), torch.randint(0, 3, (60,)), torch.arange(60) % 3)
    callback = NeuronAdvantage(answer, target=1, visualizer=None)
    loaders = DataLoader(data, 20), DataLoader(data, 20)
    trainer = paper_trainer(callback, num_sanity_val_steps=2 if rehearsed else 0)
    with pytest.warns(UserWarning, match="Layer net.1 was left out: its forward was not called"):
        trainer.fit(Sometimes(), *loaders)
    assert callback.report.layers == ("net.0", "net.2")
    assert any("net.1 was left out" in note for note in callback.report.notes)
    assert np.isfinite(callback.report.column("r")).all()
