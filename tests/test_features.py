"""A forward that returns features is no prediction: the model goes on with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchmetrics
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as T
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import NeuronAdvantage, NeuronReport
from tests.paper_model import paper_trainer

N = 40
X = torch.randn(N, 5, generator=torch.Generator().manual_seed(3))
Y = torch.arange(N) % 4


class Module(LightningModule):
    """Its forward gives four numbers: features, or the scores of four classes."""

    def __init__(self, goes_on: Callable[[Module, Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.body = nn.Linear(5, 4)
        self.head, self.temperature = nn.Linear(4, 4), nn.Parameter(torch.ones(4))
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=4)
        self.kappa = torchmetrics.CohenKappa("multiclass", num_classes=4)
        self.calibration = torchmetrics.CalibrationError("multiclass", num_classes=4)
        self.area = torchmetrics.AUROC("multiclass", num_classes=4, thresholds=5)
        self.weighted = nn.CrossEntropyLoss(torch.ones(4), label_smoothing=0.1)
        self.goes_on = goes_on

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self.goes_on(self, self(batch[0]), batch[1])


def validated(goes_on: Callable[..., Any], **options: Any) -> NeuronReport:
    callback = NeuronAdvantage(lambda b: b[1] * 0, visualizer=None, **options)
    loader = DataLoader(TensorDataset(X, Y), 10)
    paper_trainer(callback).validate(Module(goes_on), loader, verbose=False)
    assert callback.report is not None
    return callback.report


def logged(module: Module, scores: Tensor, y: Tensor) -> None:
    module.log("accuracy", (scores.argmax(1) == y).float().mean())


INTO_HEAD = {
    "its head": lambda m, z, y: logged(m, m.head(z), y),
    "a function and its head": lambda m, z, y: logged(m, m.head(T.dropout(z.relu(), 0.1)), y),
    "its head, kept": lambda m, z, y: m.head(z.flatten(1)).sum(),
}
INTO_NO_MODULE = {
    "normalised weights": lambda m, z, y: logged(
        m, T.linear(T.normalize(z), T.normalize(m.head.weight)), y
    ),
    "prototypes": lambda m, z, y: logged(m, -torch.cdist(z, m.head.weight), y),
    "each other": lambda m, z, y: logged(m, z @ z.T, y),
    "a matrix of groups": lambda m, z, y: logged(m, z.softmax(1) @ torch.eye(4)[:, :2], y // 2),
}


@pytest.mark.parametrize("goes_on", INTO_HEAD)
def test_what_a_head_goes_on_with_is_refused(goes_on: str) -> None:
    with pytest.raises(ValueError, match=r"output of `forward` .* in 'head', .*\(output='head'\)"):
        validated(INTO_HEAD[goes_on])


@pytest.mark.parametrize("goes_on", INTO_NO_MODULE)
def test_what_weights_go_on_with_is_refused(goes_on: str) -> None:
    with pytest.raises(ValueError, match="but validation_step goes on with it, as with features"):
        validated(INTO_NO_MODULE[goes_on])


def masked(module: Module, scores: Tensor, y: Tensor) -> None:
    scores = scores.clone()
    scores[:, :3] = -torch.inf
    logged(module, scores, y)


OTHER_CLASSES = {
    "the smallest": lambda m, z, y: m.log("accuracy", (z.argmin(1) == y).float().mean()),
    "classes that are masked": masked,
    "a prior": lambda m, z, y: m.log("loss", (z + 9 * torch.eye(4)[1]).max(1)[1].float().mean()),
    "a prior, in a metric": lambda m, z, y: m.log(
        "accuracy", m.accuracy(z + 9 * torch.eye(4)[1], y)
    ),
    "the first of several": lambda m, z, y: (z * torch.tensor([-1.0, 1, 1, 1])).topk(2)[1][:, 0],
}


@pytest.mark.parametrize("goes_on", OTHER_CLASSES)
def test_a_class_that_is_chosen_by_other_numbers_is_refused(goes_on: str) -> None:
    with pytest.raises(ValueError, match="chooses the class by other numbers"):
        validated(OTHER_CLASSES[goes_on])


STILL_SCORES = {
    "the second best": lambda m, z, y: (z.argmax(1), z.scatter(1, z.argmax(1)[:, None], -9).max(1)),
    "a margin": lambda m, z, y: m.log("margin", z.topk(2)[0].diff(dim=1).mean()),
    "probabilities": lambda m, z, y: logged(m, z.softmax(1), y),
    "a temperature": lambda m, z, y: logged(m, z / m.temperature, y),
    "a loss": lambda m, z, y: m.log("loss", m.weighted(z, y)),
    "metrics": lambda m, z, y: [
        m.log(name, getattr(m, name)(z.softmax(1), y), on_step=True)
        for name in ("accuracy", "kappa", "calibration", "area")
    ],
    "covariance": lambda m, z, y: m.log("covariance", (z.T @ z).square().mean()),
    "another call of the head": lambda m, z, y: m.head(torch.ones(10, 4)),
}


@pytest.mark.parametrize("goes_on", STILL_SCORES)
def test_what_is_done_with_scores_is_fine(goes_on: str) -> None:
    report = validated(STILL_SCORES[goes_on], layers="body")
    with torch.no_grad():
        right = Module(logged)(X).argmax(1) == Y
    assert report.outcomes.both + report.outcomes.only_model == int(right.sum())


@pytest.mark.parametrize(
    "options",
    [
        {"output": "head"},
        {"output": "body"},
        {"predictions": lambda outputs, batch: (outputs, batch[1])},
    ],
)
def test_what_the_user_names_is_taken(options: dict[str, Any]) -> None:
    report = validated(lambda m, z, y: m.head(z), layers="body", **options)
    module = Module(logged)
    with torch.no_grad():
        scores = module(X) if options.get("output") == "body" else module.head(module(X))
    right = int((scores.argmax(1) == Y).sum())
    assert report.outcomes.both + report.outcomes.only_model == right


def test_what_is_written_into_the_output_itself_is_the_prediction() -> None:
    def step(module: Module, scores: Tensor, y: Tensor) -> None:
        scores[:, :2] = -torch.inf
        logged(module, scores, y)

    report = validated(step, layers="body")
    with torch.no_grad():
        right = 2 + Module(logged)(X)[:, 2:].argmax(1) == Y
    assert report.outcomes.both + report.outcomes.only_model == int(right.sum())


def test_an_advantage_of_ones_own_gets_what_forward_returns() -> None:
    report = validated(
        INTO_HEAD["its head"], layers="body", advantage=lambda p, b, t: p[:, 0] - b.float()
    )
    assert report.layers == ("body",)


def test_a_returned_prediction_is_taken() -> None:
    report = validated(lambda m, z, y: {"logits": m.head(z)}, layers="body")
    module = Module(logged)
    with torch.no_grad():
        right = int((module.head(module(X)).argmax(1) == Y).sum())
    assert report.outcomes.both + report.outcomes.only_model == right
