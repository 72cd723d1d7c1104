"""What the first validation learns of running samples again serves the later ones."""

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
        self.act = nn.Tanh()
        self.body.requires_grad_(False)
        self.change = change
        self.factor, self.calls = 1.0, [[]]

    def forward(self, x: Tensor, factor: float) -> Tensor:
        if not self.training:
            self.calls[-1].append(len(x))
        return self.head(self.act(self.body(x[..., :5])) * factor)

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


def replace_act(module: Any) -> None:
    module.act = nn.Sigmoid()


def write_in_front(module: Any) -> None:
    module.head = nn.Sequential(nn.ReLU(inplace=True), module.head)


def other_step(module: Any) -> None:
    def step(batch: Any, batch_idx: int) -> None:
        module.log("loss", nn.functional.cross_entropy(module(batch[0], 1.0), (batch[1] + 1) % C))

    module.validation_step = step


def watching() -> NeuronAdvantage:
    return NeuronAdvantage(BatchBaseline(2), "body", target=1, visualizer=None, inspector=None)


def validated(
    callback: NeuronAdvantage, module: Module, change: Callable[[Any], None], times: int = 3
) -> None:
    """Validations of their own; a change comes before the last one."""
    for number in range(times):
        if number == times - 1:
            change(module)
        loader = DataLoader(data(), BATCH)
        paper_trainer(callback).validate(module, loader, verbose=False)


@pytest.mark.parametrize(
    ("change", "again"),
    [(lambda _: None, []), (unfreeze, [2]), (replace_act, [3]), (write_in_front, [3])],
)
def test_validations_of_their_own_try_the_same_places_out_once(
    change: Callable[[Any], None], again: list[int]
) -> None:
    module, callback = Module(lambda _: None), watching()
    validated(callback, module, change)
    assert [tried(calls) for calls in module.calls[1:]] == [[3], [], again]
    fresh = watching()
    validated(fresh, module, lambda _: None, 1)
    assert callback.report is not None
    assert fresh.report is not None
    np.testing.assert_array_equal(callback.report.column("r"), fresh.report.column("r"))
    assert np.isfinite(callback.report.column("attribution")).all()


def test_what_was_learnt_of_another_forward_does_not_count() -> None:
    module, callback = Module(lambda _: None), watching()

    def depend_on_the_batch(module: Any) -> None:
        module.act = nn.BatchNorm1d(D, affine=False, track_running_stats=False)

    validated(callback, module, depend_on_the_batch)
    assert callback.report is not None
    assert not np.isfinite(callback.report.column("attribution")).any()
    assert "samples that are run again do not get" in " ".join(callback.report.notes)


def test_another_module_of_the_same_kind_is_tried_out() -> None:
    callback = watching()
    for _ in range(2):
        module = Module(lambda _: None)
        validated(callback, module, lambda _: None, 1)
        assert tried(module.calls[1]) == [3]


def test_what_the_step_judges_by_is_looked_at_in_every_run() -> None:
    module = Module(lambda _: None)
    loader = DataLoader(TensorDataset(*data().tensors[:2]), BATCH)
    callback = NeuronAdvantage(lambda b: b[1], "body", visualizer=None, inspector=None)
    paper_trainer(callback).validate(module, loader, verbose=False)
    other_step(module)
    with pytest.raises(ValueError, match="other labels"):
        paper_trainer(callback).validate(module, loader, verbose=False)


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
