"""The module is run again on the right samples, or not at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import Attribution, BatchBaseline, NeuronAdvantage, compare
from lightning_neurocorr.report import NeuronReport
from tests.helpers import seeded
from tests.paper_model import paper_trainer

N, C, D = 400, 6, 8


# --- which samples -------------------------------------------------------------------------------


class Taking(nn.Module):
    """Hidden neurons and a head; what it is called with besides the samples is for subclasses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.hidden, self.head = nn.Linear(5, D), nn.Linear(D, C)
        self.prototypes = nn.Parameter(torch.randn(20, 5))

    def forward(self, x: Tensor, *more: Any, **named: Any) -> Tensor:
        return self.head(self.hidden(x).relu())


class Prototypes(Taking):
    """Samples beside their similarity to twenty prototypes."""

    def forward(self, x: Tensor, prototypes: Tensor, scale: Tensor | None = None) -> Tensor:
        near = (x @ prototypes.T).softmax(1) @ prototypes
        return super().forward(x + near)


class SequenceFirst(Taking):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return super().forward((x * mask[..., None]).sum(0))


class Heads(Taking):
    """A mask for two heads of every sample, ``(2 N, T, T)``."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        t = x.shape[1]
        weight = mask.view(len(x), 2, t, t).mean(1)
        return super().forward((weight @ x).mean(1))


@dataclasses.dataclass
class Inputs:
    """What some models are called with."""

    x: Tensor
    shift: Tensor


class AsDataclass(Taking):
    def forward(self, given: Inputs) -> Tensor:
        return super().forward(given.x + given.shift)


def same(model: nn.Module, x: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (x, model.prototypes), {}


def computed(model: nn.Module, x: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (x, model.prototypes * 2), {"scale": torch.tensor(3.0)}


def of_the_batch(model: nn.Module, x: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (x * 2, x.detach().clone()), {}


def steps(model: nn.Module, x: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    whole = x[None] * torch.arange(1.0, 5)[:, None, None]
    return (whole,), {"mask": (whole.sum(2) > 0).float()}


def heads(model: nn.Module, x: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    whole = x[:, None] * torch.arange(1.0, 4)[None, :, None]
    mask = (x.sum(1)[:, None, None] * torch.arange(9.0).view(3, 3)).sigmoid()
    return (whole, mask.repeat_interleave(2, 0)), {}


def dataclass(model: nn.Module, x: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (Inputs(x, x.flip(1)),), {}


CALLS: dict[str, tuple[type[Taking], Callable[..., Any]]] = {
    "a parameter": (Prototypes, same),
    "made from a parameter": (Prototypes, computed),
    "a memory of the batch": (Prototypes, of_the_batch),
    "sequence first": (SequenceFirst, steps),
    "a mask for every head": (Heads, heads),
    "a dataclass": (AsDataclass, dataclass),
}


class Calling(pl.LightningModule):
    """Calls its model with more than the batch."""

    def __init__(self, model: Taking, call: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def logits(self, x: Tensor) -> Tensor:
        args, kwargs = self.call(self.model, x)
        return self.model(*args, **kwargs)

    def validation_step(self, batch: list[Tensor]) -> dict[str, Tensor]:
        return {"preds": self.logits(batch[0]), "target": batch[1]}


def called(kind: str, size: int) -> tuple[NeuronReport, np.ndarray]:
    """The report, and attribution by a loop over whole batches of which one sample is looked at."""
    made, call = CALLS[kind]
    model = Calling(made(), call).eval()
    x = torch.randn(N, 5, generator=seeded())
    said = torch.cat([model.logits(part) for part in x.split(size)]).detach().argmax(1)
    noise = torch.rand(2, N, generator=seeded(1))
    y = torch.where(noise[0] < 0.85, said, (said + 1) % C)
    answer = torch.where(noise[1] < 0.5, y, (y + 2) % C)
    callback = NeuronAdvantage(
        BatchBaseline(2), "model.hidden", output="model", at="raw", visualizer=None
    )
    loader = DataLoader(TensorDataset(x, y, answer), batch_size=size)
    paper_trainer(callback).validate(model, loader, verbose=False)
    kept: list[Tensor] = []

    def tap(_: Any, __: Any, output: Tensor) -> Tensor:
        kept[:] = [output.detach().requires_grad_()]
        return kept[0]

    handle = model.model.hidden.register_forward_hook(tap)
    activations, gradients = [], []
    for part, truth, rival in zip(*(t.split(size) for t in (x, y, answer)), strict=True):
        logits = model.logits(part)
        activations.append(kept[0].detach())
        for i in range(len(part)):
            wins = logits[i].argmax() == truth[i] != rival[i]
            margin = logits[i, truth[i]] - logits[i, rival[i]]
            (g,) = torch.autograd.grad(margin, kept[0], retain_graph=True)
            gradients.append(g[i] if wins else torch.full((D,), torch.nan))
    handle.remove()
    a, g = torch.cat(activations), torch.stack(gradients)
    k = ((a - a.mean(0)) * g).double().numpy()
    assert callback.report is not None
    return callback.report, np.nanmean(k, 0)


@pytest.mark.parametrize("size", [20, 4, 37])
@pytest.mark.parametrize("kind", CALLS)
def test_arguments_are_those_of_the_samples(kind: str, size: int) -> None:
    report, expected = called(kind, size)
    assert not [note for note in report.notes if "attribution" in note]
    np.testing.assert_allclose(report.column("attribution"), expected, rtol=1e-3, atol=1e-5)


class Averaging(Calling):
    """Has its weights elsewhere from batch to batch, as where an average is swapped in."""

    def validation_step(self, batch: list[Tensor]) -> dict[str, Tensor]:
        self.model.prototypes.data = self.model.prototypes.data.clone()
        return super().validation_step(batch)


def test_weights_that_are_put_elsewhere_stay_weights() -> None:
    """Else they would be copied, and take the room of samples."""
    x = torch.randn(N, 5, generator=seeded())
    y = Prototypes()(x, Prototypes().prototypes).argmax(1)
    answer = torch.where(torch.rand(N, generator=seeded(1)) < 0.5, y, (y + 2) % C)
    loader = DataLoader(TensorDataset(x, y, answer), batch_size=10)
    found = []
    for kind in (Calling, Averaging):
        few = Attribution(input_bytes=1500)
        callback = NeuronAdvantage(
            BatchBaseline(2), "model.hidden", output="model", attribution=few, visualizer=None
        )
        paper_trainer(callback).validate(kind(Prototypes(), same), loader, verbose=False)
        assert callback.report is not None
        found.append(callback.report.column("attribution"))
    np.testing.assert_array_equal(*found)


def test_a_model_that_normalises_over_the_batch_is_refused() -> None:
    class Normalising(Taking):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward((x - x.mean(0)) / x.std(0))

    model = Normalising()
    x = torch.randn(N, 5, generator=seeded())
    y = torch.randint(0, C, (N,), generator=seeded(1))
    answer = torch.randint(0, C, (N,), generator=seeded(2))
    loader = DataLoader(TensorDataset(x, y, answer), batch_size=40)
    report = compare(model, loader, BatchBaseline(2), "hidden", target=1, visualizer=None)
    assert np.isnan(report.column("attribution")).all()
    assert any("No attribution: samples that are run again" in note for note in report.notes)


# --- inference mode ------------------------------------------------------------------------------


class Caching(Taking):
    """Keeps what it made in inference mode: a table, a nest of tensors, a buffer, a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Tensor | None = None
        self.nest: dict[str, Any] = {}
        self.calls = SimpleNamespace(n=0)
        self.register_buffer("offset", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.linspace(1, 2, D)
            self.nest = {"scale": [torch.linspace(2, 1, D)]}
            self.offset = torch.linspace(0, 1, D)
        hidden = self.hidden(x) * self.table * self.nest["scale"][0] + self.offset
        return self.head(hidden.relu() * self.table)


def test_tensors_made_in_inference_mode() -> None:
    x = torch.randn(N, 5, generator=seeded())
    y = torch.randint(0, C, (N,), generator=seeded(1))
    answer = torch.randint(0, C, (N,), generator=seeded(2))
    reports = []
    for inference in (False, True):
        model = Caching().eval()
        if not inference:
            model(x[:2])
        else:
            with torch.inference_mode():
                model(x[:2])
                model.head.weight = nn.Parameter(model.head.weight.clone(), requires_grad=False)
        held = [model.table, model.nest["scale"][0], model.offset, model.head.weight]
        loader = DataLoader(TensorDataset(x, y, answer), batch_size=50)
        reports.append(
            compare(model, loader, BatchBaseline(2), "hidden", target=1, visualizer=None)
        )
        now = [model.table, model.nest["scale"][0], model.offset, model.head.weight]
        assert all(a is b for a, b in zip(held, now, strict=True))
        assert all(t.is_inference() == inference for t in now)
    for column in ("attribution", "attribution_contrast", "r"):
        np.testing.assert_allclose(reports[1].column(column), reports[0].column(column), rtol=1e-5)


def test_what_cannot_be_differentiated_is_a_note_and_the_run_goes_on() -> None:
    class Stubborn(Taking):
        def forward(self, x: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                raise RuntimeError("Inference tensors cannot be saved for backward.")
            return super().forward(x)

    class Plain(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Stubborn()

        def validation_step(self, batch: list[Tensor]) -> dict[str, Tensor]:
            return {"preds": self.model(batch[0]), "target": batch[1]}

    x = torch.randn(N, 5, generator=seeded())
    y, answer = torch.randint(0, C, (2, N), generator=seeded(1))
    callback = NeuronAdvantage(
        BatchBaseline(2), "model.hidden", output="model", at="raw", visualizer=None
    )
    loader = DataLoader(TensorDataset(x, y, answer), batch_size=50)
    paper_trainer(callback).validate(Plain(), loader, verbose=False)
    assert callback.report is not None
    assert np.isfinite(callback.report.column("r")).all()
    assert any("Inference tensors cannot be saved" in note for note in callback.report.notes)


class StepsFirst(nn.Module):
    """A network that takes its samples on the second axis, which no layer of it says."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.each, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.each(x).mean(0))


@pytest.mark.parametrize("layers", ["each", ["each", "head"]])
def test_as_many_steps_as_samples_are_not_taken_for_samples(layers: Any) -> None:
    x, y = torch.randn(10, 8, 8, 4), torch.arange(80).reshape(10, 8) % 3
    batches = list(zip(x, y, strict=True))
    if layers == "each":
        with pytest.raises(ValueError, match=r"each: its inputs have as many steps as samples"):
            compare(StepsFirst(), batches, lambda b: b[1] * 0, layers)
        return
    report = compare(StepsFirst(), batches, lambda b: b[1] * 0, layers)
    assert report.layers == ("head",)
    assert any("each was left out: its inputs have as many steps" in n for n in report.notes)
