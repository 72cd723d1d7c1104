"""The module is run again on the right samples and for the right logits, or not at all."""

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
from lightning_neurocorr.activations import first_tensor as logits_of
from lightning_neurocorr.report import NeuronReport
from lightning_neurocorr.validation.rerun import learn, too_many
from tests.helpers import seeded
from tests.launches import Launches
from tests.paper_model import paper_trainer

N, C, D = 400, 6, 8
ORDER = [4, 0, 5, 2]


# --- whose logits --------------------------------------------------------------------------------


def masked(logits: Tensor) -> Tensor:
    return logits.masked_fill(torch.tensor([False] * 5 + [True]), -torch.inf)


KNOWN: dict[str, tuple[Callable[[Tensor], Tensor], list[int], bool]] = {
    "as they are": (lambda x: x, [*range(C)], False),
    "log_softmax": (lambda x: x.log_softmax(1), [*range(C)], False),
    "softmax": (lambda x: x.softmax(1), [*range(C)], True),
    "a temperature": (lambda x: x / 2.5, [*range(C)], False),
    "softmax at a temperature": (lambda x: (x / 2.5).softmax(1), [*range(C)], True),
    "some columns": (lambda x: x[:, ORDER], ORDER, False),
    "all in another order": (lambda x: x.flip(1), [*range(C)][::-1], False),
    "log_softmax of some": (lambda x: x[:, ORDER].log_softmax(1), ORDER, False),
    "softmax of some at a temperature": (lambda x: (x[:, ORDER] / 3).softmax(1), ORDER, True),
    "two columns": (lambda x: x[:, 3:5], [3, 4], False),
    "bfloat16": (lambda x: x.bfloat16(), [*range(C)], False),
    "masked classes": (masked, [*range(5)], False),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_logits_of_the_prediction_are_learnt(kind: str) -> None:
    change, columns, probable = KNOWN[kind]
    logits = 3 * torch.randn(64, C, generator=seeded())
    prediction = change(logits)
    found = learn(logits, prediction, logits_of)
    assert found is not None
    more = 3 * torch.randn(50, C, generator=seeded(1))
    given = change(more).double()
    given = (given.log() if probable else given)[:, : len(columns)]
    got = found.logits(more).double()[:, : len(columns)]
    assert not found.differs(found.logits(more), change(more)).any()
    for c in range(1, len(columns)):  # margins are those of the prediction
        torch.testing.assert_close(
            got[:, c] - got[:, 0], given[:, c] - given[:, 0], atol=0.1, rtol=0.02
        )
    other = torch.randn(50, C, generator=seeded(2))
    assert too_many(found.differs(found.logits(other), change(more)))


def test_where_the_models_own_output_is_judged_nothing_is_computed() -> None:
    logits = torch.randn(8, C, generator=seeded())
    found = learn(logits, logits, logits_of)
    assert found is not None
    with Launches() as launches:
        assert found.differs(found.logits(logits), logits.detach()).shape == (8,)
    assert sum(launches.found.values()) <= 2  # zeros; and detach, which makes a view
    assert not found.differs(logits, logits).any()


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x**3, lambda x: x.cumsum(1), lambda x: -x, lambda x: x[:, :3] + x[:, 3:],
        lambda x: x[:, [0, 0, 1]] + torch.tensor([0.0, 1, 0]), lambda x: x[:, ORDER].argmax(1),
        lambda x: x + torch.linspace(0, 5, C), lambda x: torch.randn(x.shape, generator=seeded(9)),
        lambda x: x[:-1],
        lambda x: x.mean(1), lambda x: x.sigmoid(),
    ],
)  # fmt: skip
def test_what_does_not_follow_is_refused(change: Callable[[Tensor], Tensor]) -> None:
    logits = 3 * torch.randn(64, C, generator=seeded())
    assert learn(logits, change(logits), logits_of) is None


def test_class_ids_and_one_logit() -> None:
    logits = torch.randn(64, C, generator=seeded())
    found = learn(logits, logits.argmax(1), logits_of)
    assert found is not None
    assert torch.equal(found.logits(logits), logits)
    one = logits[:, :1]
    predictions = {
        "logit": one, "flat": one[:, 0], "probability": one.sigmoid(),
        "ids": (one[:, 0] > 0).long(),
        "two": torch.cat([1 - one.sigmoid(), one.sigmoid()], 1),
        "two logits": torch.cat([torch.zeros_like(one), one], 1),
    }  # fmt: skip
    for name, prediction in predictions.items():
        found = learn(one, prediction, logits_of)
        assert found is not None, name
        torch.testing.assert_close(found.logits(one), one)
    assert learn(one, (one[:, 0] > 0.7).long(), logits_of) is None
    assert learn(one, one.square(), logits_of) is None


def test_the_tensor_of_the_prediction_is_found_in_what_the_module_returned() -> None:
    logits, features = torch.randn(64, C), torch.randn(64, C)
    for output in (
        (features, logits),
        {"features": features, "z": {"deep": logits}},
        [features, 3, logits],
    ):
        found = learn(output, logits, logits_of)
        assert found is not None
        assert torch.equal(found.logits(output), logits)


class Judging(pl.LightningModule):
    """A head of six, of which the prediction is something else."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.hidden, self.head, self.change = nn.Linear(5, D), nn.Linear(D, C), change

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x).relu())

    def validation_step(self, batch: list[Tensor]) -> dict[str, Tensor]:
        return {"preds": self.change(self(batch[0])), "target": batch[1]}


def samples(model: Judging) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, classes that the model gets right mostly, and answers that are often wrong."""
    x = torch.randn(N, 5, generator=seeded())
    prediction = model.change(model(x)).detach()
    right = prediction.argmax(1) if prediction.ndim == 2 else prediction
    k = int(right.max()) + 1
    noise = torch.rand(2, N, generator=seeded(1))
    y = torch.where(noise[0] < 0.85, right, (right + 1) % k)
    return x, y, torch.where(noise[1] < 0.5, y, (y + 2) % k)


def slow_attribution(model: Judging, x: Tensor, y: Tensor, answer: Tensor) -> np.ndarray:
    """One sample at a time, of the judged prediction itself."""
    hidden = model.hidden(x).detach()
    mean, found = hidden.mean(0), []
    for i in range(len(x)):
        a = hidden[i : i + 1].clone().requires_grad_()
        given = model.change(model.head(a.relu()))[0]
        if given.argmax() == y[i] and answer[i] != y[i]:
            (g,) = torch.autograd.grad(given[y[i]] - given[answer[i]], a)
            found.append(((hidden[i] - mean) * g[0]).double())
    return torch.stack(found).mean(0).numpy()


def watched(model: pl.LightningModule, tensors: tuple[Tensor, ...], **options: Any) -> NeuronReport:
    callback = NeuronAdvantage(BatchBaseline(2), "hidden", at="raw", visualizer=None, **options)
    loader = DataLoader(TensorDataset(*tensors), batch_size=50)
    paper_trainer(callback).validate(model, loader, verbose=False)
    assert callback.report is not None
    return callback.report


@pytest.mark.parametrize("kind", ["some columns", "all in another order", "a temperature"])
def test_attribution_is_that_of_the_judged_prediction(kind: str) -> None:
    model = Judging(KNOWN[kind][0])
    tensors = samples(model)
    found = watched(model, tensors).column("attribution")
    np.testing.assert_allclose(found, slow_attribution(model, *tensors), rtol=1e-4, atol=1e-6)


def test_without_the_prediction_nothing_is_run_again_and_the_report_says_so() -> None:
    model = Judging(lambda logits: logits[:, ORDER].argmax(1))
    tensors = samples(model)
    with pytest.warns(UserWarning, match="No sample is run again"):
        report = watched(model, tensors, num_classes=4, ablation=nc_ablation())
    assert np.isnan(report.column("attribution")).all()
    assert np.isnan(report.column("ablation")).all()
    assert np.isfinite(report.column("r")).all()
    assert any("No attribution: the prediction that was judged does not" in n for n in report.notes)


def nc_ablation() -> Any:
    from lightning_neurocorr.ablation import Ablation

    return Ablation(by="r", sizes=(1,), singles=2, random_sets=2)


def test_a_prediction_that_is_another_one_later_is_refused() -> None:
    """The first batch fits; the step turns to something else."""
    seen = []

    def change(logits: Tensor) -> Tensor:
        seen.append(1)
        return logits if len(seen) == 1 else logits.flip(1)

    model = Judging(lambda logits: logits)
    tensors = samples(model)
    model.change = change
    report = watched(model, tensors)
    assert np.isnan(report.column("attribution")).all()


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
