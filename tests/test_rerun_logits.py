"""Whose logits are differentiated: those of the prediction that was judged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import BatchBaseline, NeuronAdvantage, compare
from lightning_neurocorr.activations import first_tensor as logits_of
from lightning_neurocorr.report import NeuronReport
from lightning_neurocorr.validation.rerun import learn, too_many
from tests.helpers import seeded
from tests.launches import Launches
from tests.paper_model import paper_trainer

N, C, D = 400, 6, 8
ORDER = [4, 0, 5, 2]


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
    with Launches() as launches:
        found = learn(logits, logits, logits_of)
    assert found is not None
    assert launches.found.total() <= 12
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


@pytest.mark.parametrize("judged", ["itself", "copy", "logarithms", "columns", "ids"])
def test_probabilities_that_the_module_returns_are_read_as_logits(judged: str) -> None:
    logits = 3 * torch.randn(64, C, generator=seeded())
    p = logits.softmax(1)
    given = {
        "itself": p, "copy": p.clone(), "logarithms": p.log(), "columns": p[:, ORDER].log(),
        "ids": p.argmax(1),
    }[judged]  # fmt: skip
    found = learn(p, given, logits_of)
    assert found is not None
    read = found.logits(p)
    expected = logits[:, ORDER] if judged == "columns" else logits
    torch.testing.assert_close(read.diff(dim=1), expected.diff(dim=1), atol=1e-3, rtol=1e-3)
    assert not found.differs(read, given).any()


@pytest.mark.parametrize("judged", ["itself", "flat", "of two classes", "ids"])
def test_the_probability_that_the_module_returns_is_read_as_a_logit(judged: str) -> None:
    logit = 3 * torch.randn(64, 1, generator=seeded())
    p = logit.sigmoid()
    given = {
        "itself": p, "flat": p[:, 0], "of two classes": torch.cat([1 - p, p], 1),
        "ids": (p[:, 0] > 0.5).long(),
    }[judged]  # fmt: skip
    found = learn(p, given, logits_of)
    assert found is not None
    torch.testing.assert_close(found.logits(p), logit, atol=1e-3, rtol=1e-3)
    sure = (20 * logit).sigmoid()  # many are 1, and have no gradient
    assert learn(sure, sure, logits_of) is None
    few = logit.sigmoid() / 2  # logits from 0 to 1 stay logits where they were judged as such
    found = learn(few, torch.cat([torch.zeros_like(few), few], 1), logits_of)
    assert found is not None
    assert torch.equal(found.logits(few), few)


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


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_attribution_is_that_of_the_logits(classes: int) -> None:
    x = torch.randn(80, 5, generator=seeded(4))
    y = torch.randint(0, max(classes, 2), (80,), generator=seeded(5))
    torch.manual_seed(0)
    logits = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, classes))
    end = nn.Softmax(1) if classes > 1 else nn.Sigmoid()
    loader = DataLoader(TensorDataset(x, y), 16)
    one, other = (
        compare(model, loader, lambda b: b[1] * 0)
        for model in (logits, nn.Sequential(*logits, end))
    )
    assert one.outcomes == other.outcomes
    # The neuron before a sigmoid is read behind it: that is another number.
    found = [[r.attribution for r in report.rows if r.layer == "0"] for report in (one, other)]
    assert found[1] == pytest.approx(found[0], abs=1e-6)
