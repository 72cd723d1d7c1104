"""Only what validation_step itself calls is read, whatever other callbacks do with the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule
from torch import Tensor, nn
from torch.nn import functional as T
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import NeuronAdvantage, NeuronReport
from lightning_neurocorr.isolation.asides import depth
from tests.paper_model import paper_trainer

N = 60
G = torch.Generator().manual_seed(8)
X, Y = torch.randn(N, 5, generator=G), torch.randint(0, 3, (N,), generator=G)


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.body, self.act, self.head = nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.body(x)))

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return T.cross_entropy(self(batch[0]), batch[1])


Use = Callable[[Module, Any], Any]


class Before(Callback):
    """Does something with the model before its step."""

    def __init__(self, use: Use) -> None:
        self.use = use

    def on_validation_batch_start(self, _: Any, module: Any, batch: Any, *__: Any) -> None:
        self.use(module, batch)


class Behind(Before):
    """And behind its step."""

    on_validation_batch_start = Callback.on_validation_batch_start

    def on_validation_batch_end(self, _: Any, module: Any, __: Any, batch: Any, *___: Any) -> None:
        self.use(module, batch)


def ours(**options: Any) -> NeuronAdvantage:
    options = {"visualizer": None, "inspector": None, **options}
    return NeuronAdvantage(lambda b: (b[0][:, 0] > 0).long(), **options)


def read(*callbacks: Callback, module: Module | None = None) -> None:
    loader = DataLoader(TensorDataset(X, Y), 16)
    paper_trainer(*callbacks).validate(module or Module(), loader, verbose=False)


def reported(callback: NeuronAdvantage) -> NeuronReport:
    assert callback.report is not None
    return callback.report


USES: dict[str, Use] = {
    "the same batch": lambda m, b: m(b[0]),
    "other inputs": lambda m, b: m(2 * b[0][:4] + 1),
    "another order": lambda m, b: m(b[0].flip(0)),
    "a layer": lambda m, b: m.body(b[0]),
    "a layer and a loss": lambda m, b: T.cross_entropy(m.head(m.body(b[0]).tanh()), 2 - b[1]),
    "another class": lambda m, b: (m(b[0]).argmin(1) == 2 - b[1]).sum(),
}


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("when", [Before, Behind])
@pytest.mark.parametrize("use", USES)
def test_other_callbacks_may_call_the_model(use: str, when: type[Before], place: str) -> None:
    alone, callback, other = ours(), ours(), when(USES[use])
    read(alone)
    read(*((other, callback) if place == "first" else (callback, other)))
    report, expected = reported(callback), reported(alone)
    assert report.provenance == expected.provenance
    assert report.to_dataframe().equals(expected.to_dataframe())
    assert report.notes == expected.notes


def test_two_of_ours_hear_the_same_beside_another() -> None:
    alone, first, second = ours(), ours(name="first"), ours(name="second", layers="body")
    read(alone)
    uses = USES["a layer"], USES["another order"]
    read(first, Before(uses[0]), second, Behind(uses[1]), Before(uses[1]))
    for callback in (first, second):
        for row in reported(callback).rows:
            twin = next(
                r for r in reported(alone).rows if (r.layer, r.unit) == (row.layer, row.unit)
            )
            assert (row.r, row.attribution) == pytest.approx(
                (twin.r, twin.attribution), nan_ok=True
            )


def test_a_module_that_begins_in_its_own_hook_is_read_there() -> None:
    class Early(Module):
        def on_validation_batch_start(self, batch: Any, *_: Any) -> None:
            self.scores = self(batch[0])

        def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
            return T.cross_entropy(self.scores, batch[1])

    alone, callback = ours(), ours()
    read(alone)
    read(callback, module=Early())
    assert reported(callback).to_dataframe().equals(reported(alone).to_dataframe())


def test_a_module_that_calls_itself_in_both_is_asked() -> None:
    class Both(Module):
        def on_validation_batch_start(self, batch: Any, *_: Any) -> None:
            self(batch[0].flip(0))

    with pytest.raises(ValueError, match=r"2 calls, .* own on_validation_batch_start counts"):
        read(ours(), module=Both())


@pytest.mark.parametrize("where", ["hook", "step", "end"])
def test_nothing_is_left_where_a_batch_fails(where: str) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("the user's")

    class Failing(Module):
        def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
            return fail() if where == "step" else super().validation_step(batch, batch_idx)

    others = {"hook": [Before(fail)], "end": [Behind(fail)]}.get(where, [])
    first, second = ours(name="first"), ours(name="second")
    trainer = paper_trainer(first, *others, second)
    with pytest.raises(RuntimeError, match="the user's"):
        trainer.validate(Failing(), DataLoader(TensorDataset(X, Y), 16), verbose=False)
    assert "validation_step" not in vars(trainer.strategy)
    assert depth() == 0
