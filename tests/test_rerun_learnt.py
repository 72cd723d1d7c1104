"""What the first validation of a fit learns of running samples again serves the later ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import BatchBaseline, NeuronAdvantage
from lightning_neurocorr.activations import first_tensor
from lightning_neurocorr.validation.rerun import Learnt, Rerun
from tests.helpers import seeded
from tests.paper_model import paper_trainer

N, C, D, BATCH = 64, 4, 6, 16


class Module(pl.LightningModule):
    """Counts the samples of its calls in each validation, and of backwards."""

    def __init__(self, change: Callable[[Any], None]) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body, self.head = nn.Linear(5, D), nn.Linear(D, C)
        self.body.requires_grad_(False)
        self.change = change
        self.factor, self.calls = 1.0, [[]]

    def forward(self, x: Tensor, factor: float) -> Tensor:
        if not self.training:
            self.calls[-1].append(len(x))
        return self.head(self.body(x[..., :5]).tanh() * factor)

    def on_validation_start(self) -> None:
        self.calls.append([])
        if len(self.calls) == 4:  # sanity check, first epoch, and this is the second
            self.change(self)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0], self.factor), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0], self.factor)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def data() -> TensorDataset:
    x = torch.randn(N, 5, generator=seeded())
    y = torch.randint(0, C, (N,), generator=seeded(1))
    return TensorDataset(x, y, torch.randint(0, C, (N,), generator=seeded(2)))


def fitted(change: Callable[[Any], None] = lambda _: None) -> tuple[Module, NeuronAdvantage]:
    module = Module(change)
    callback = NeuronAdvantage(BatchBaseline(2), "body", target=1, visualizer=None, inspector=None)
    loader = DataLoader(data(), BATCH)
    paper_trainer(callback, max_epochs=3, num_sanity_val_steps=2).fit(module, loader, loader)
    return module, callback


def tried(calls: list[int]) -> list[int]:
    """The calls that are neither a batch nor a pass of attribution, which is the last."""
    return [size for size in calls[:-1] if size != BATCH]


def test_samples_are_tried_out_once_in_a_fit() -> None:
    module, callback = fitted()
    assert [tried(calls) for calls in module.calls[1:]] == [[3], [], [], []]
    assert [calls[:4] for calls in module.calls[2:]] == [[BATCH] * 4] * 3
    assert callback.report is not None
    assert np.isfinite(callback.report.column("attribution")).all()


def unfreeze(module: Any) -> None:
    module.body.requires_grad_(True)


def rescale(module: Any) -> None:
    module.factor = 1.5


@pytest.mark.parametrize("change", [unfreeze, rescale])
def test_they_are_tried_out_again_where_weights_or_arguments_are_others(change: Any) -> None:
    module, callback = fitted(change)
    assert [tried(calls) for calls in module.calls[1:]] == [[3], [], [2], []]
    assert callback.report is not None
    assert np.isfinite(callback.report.column("attribution")).all()


def prepared(arguments: Any, learnt: Learnt | None, model: nn.Module) -> tuple[Rerun, list[int]]:
    """A module that was got ready for samples of a call, and how many it was tried on."""
    weighed: list[int] = []

    def weigh(forward: Callable[[], Any]) -> int:
        forward()
        return 100

    def call(module: nn.Module, args: Any, output: Any) -> None:
        weighed.append(len(output))

    prediction = model(*arguments[0], **arguments[1])
    handle = model.register_forward_hook(call)
    rerun = Rerun(model, first_tensor, learnt=learnt)
    assert rerun.prepare(arguments, arguments[0], prediction, weigh)
    handle.remove()
    return rerun, weighed


def test_arguments_of_another_kind_are_tried_out_again() -> None:
    model = Module(unfreeze).eval()
    x, wide = torch.randn(8, 5, generator=seeded()), torch.randn(8, 7, generator=seeded())
    first, tried_on = prepared(((x, 1.0), {}), None, model)
    assert tried_on == [2]
    for arguments, again in (
        (((x[:7], 1.0), {}), []),  # fewer samples
        (((wide, 1.0), {}), [2]),
        (((x, 2.0), {}), [2]),
        (((x,), {"factor": 1.0}), [2]),
    ):
        rerun, tried_on = prepared(arguments, first.learnt, model)
        assert tried_on == again
        assert rerun.layout == first.layout
        assert rerun.sample_bytes == 50
        assert rerun.learnt is not None


def test_nothing_is_learnt_from_one_sample() -> None:
    rerun, tried_on = prepared(((torch.randn(1, 5), 1.0), {}), None, Module(unfreeze).eval())
    assert tried_on == []
    assert rerun.learnt is None
