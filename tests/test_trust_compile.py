"""Compiled models: hooks fire on every batch, and the compiler's stance is handed back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neurocorr import NeuronAdvantage
from tests.many_modules import Trained, answer, cnn, loaders, pictures
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


FORMS = [inner, in_place, whole, whole_in_place, full_graph]


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
    callback = NeuronAdvantage(answer, visualizer=None, every_n_validations=every)
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
    assert not report.notes
    assert len(callback.history) == (3 if every == 1 else 2)
    assert seen.count("force_eager") == 4 * len(callback.history) + 2  # and two of the rehearsal
    assert stance() == "default"


def test_r_of_a_compiled_model_is_that_of_the_plain_one() -> None:
    found = []
    for compiled in (False, True):
        torch.manual_seed(2)
        net = cnn()
        module = Trained(torch.compile(net, backend="eager") if compiled else net)  # type: ignore[arg-type]
        callback = NeuronAdvantage(answer, visualizer=None)
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
        paper_trainer(NeuronAdvantage(answer, visualizer=None)).fit(module, *loaders(pictures()))
    assert stance() == "default"
    assert not any(part._forward_hooks for part in module.modules() if isinstance(part, nn.Conv2d))


def test_a_stance_of_the_users_own_comes_back() -> None:
    torch.compiler.set_stance("eager_on_recompile")
    try:
        callback = NeuronAdvantage(answer, visualizer=None)
        paper_trainer(callback).validate(inner(), loaders(pictures())[1], verbose=False)
        assert stance() == "eager_on_recompile"
    finally:
        torch.compiler.set_stance("default")
