"""Numbers that are no class, no id, or no longer the one they were: refused, never counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import NeuronAdvantage, NeuronReport, TableBaseline, compare
from lightning_neurocorr.functional.exactness import check_exact
from lightning_neurocorr.validation.answers import Answers
from tests.helpers import pearson
from tests.paper_model import paper_trainer

N = 40
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(3))
Y = torch.arange(N) % 3


class Answering(LightningModule):
    """Returns class ids, so that nothing says how many classes there are."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return {"preds": self(batch[0]).argmax(1), "target": batch[1]}


def validated(y: Tensor, baseline: Any, **options: Any) -> NeuronReport:
    callback = NeuronAdvantage(baseline, visualizer=None, **options)
    paper_trainer(callback).validate(
        Answering(), DataLoader(TensorDataset(X, y), 16), verbose=False
    )
    assert callback.report is not None
    return callback.report


@pytest.mark.parametrize("missing", [-1, -100])
def test_a_baseline_without_an_answer_is_not_wrong(missing: int) -> None:
    answers = Y.clone()
    answers[20] = missing
    with pytest.raises(ValueError, match=rf"class ids from 0, but got {missing} for sample 4 .*"):
        validated(Y, TableBaseline(answers))


def test_an_answer_beyond_the_classes_that_were_said_is_refused() -> None:
    with pytest.raises(ValueError, match="class ids from 0 to 2, but got 7 for sample 4"):
        validated(Y, TableBaseline(Y.where(torch.arange(N) != 20, 7)), num_classes=3)


def test_a_sample_without_a_label_is_not_wrong() -> None:
    with pytest.raises(ValueError, match="targets to be class ids from 0, but got -100 for 1 sam"):
        validated(Y.where(torch.arange(N) != 20, -100), TableBaseline(Y))


def test_answers_that_no_batch_waited_for_are_looked_at_in_the_end(monkeypatch: Any) -> None:
    from lightning_neurocorr.baselines import prediction

    monkeypatch.setattr(prediction, "_refuse", lambda *_: None)  # as on an accelerator
    with pytest.raises(ValueError, match="`baseline` to return class ids from 0, but got -1 for 1"):
        validated(Y, TableBaseline(Y.where(torch.arange(N) != 20, -1)))


# --- one number per sample, whole by accident -----------------------------------------------------


def test_a_logit_that_is_whole_is_no_class_id() -> None:
    x = torch.randn(41, 1, generator=torch.Generator().manual_seed(1))
    x[40] = 3.0  # alone in its batch
    y, answers = (x[:, 0] > 0.3).long(), (torch.arange(41) % 2)
    first, last = nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)
    first.weight.data = torch.tensor([[1.0], [2.0]])
    last.weight.data = torch.tensor([[1.0, 0.0]])
    model = nn.Sequential(first, last, nn.Flatten(0))
    batches = list(zip(x.split(10), y.split(10), answers.split(10), strict=True))
    report = compare(model, batches, lambda b: b[2], target=1)
    right = (x[:, 0] > 0) == y.bool()
    gain = right.double() - (answers == y).double()
    assert report.outcomes.both + report.outcomes.only_model == int(right.sum())
    expected = pearson(x[:, 0].numpy(), gain.numpy())
    assert report.row("0", 0).r == pytest.approx(expected, abs=1e-5)


def test_ids_that_become_logits_are_refused() -> None:
    answers = Answers("correctness")
    answers.judged(torch.tensor([1.0, 0.0]), torch.tensor([1, 0]))
    with pytest.raises(ValueError, match=r"model to be class ids, .* but got 0.25. If it is the"):
        answers.judged(torch.tensor([0.25, 0.0]), torch.tensor([1, 0]))


# --- whole numbers in floats ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "end"),
    [
        (torch.tensor([255.0, -3.0], dtype=torch.bfloat16), 256),
        (torch.tensor([2047.0], dtype=torch.float16), 2048),
        (torch.tensor([2.0**24 - 1, torch.inf]), 1 << 24),
        (np.array([2.0**53 - 1]), 1 << 53),
    ],
)
def test_what_a_float_can_tell_apart_passes(values: Any, end: int) -> None:
    check_exact(values, "ids")
    values[0] = end
    with pytest.raises(ValueError, match=f"ids to be exact, but got {end} in .* from {end} on"):
        check_exact(values, "ids")


@pytest.mark.parametrize("way", ["table", "sample_id", "target"])
def test_ids_and_labels_that_half_precision_has_rounded_are_refused(way: str) -> None:
    numbers = torch.arange(N) + 300
    data = TensorDataset(X, numbers.float() if way == "target" else Y, numbers.float())
    known = dict.fromkeys([*range(300, 300 + N), 300 + N], 0)
    said: dict[str, Any] = {
        "table": {"baseline": TableBaseline(known, id=2), "target": 1},
        "sample_id": {"baseline": lambda b: 0 * b[1].long(), "target": 1, "sample_id": 2},
        "target": {"baseline": lambda b: b[1].long(), "target": 1},
    }
    callback = NeuronAdvantage(visualizer=None, **said[way])
    module = Answering()
    module.validation_step = lambda batch, batch_idx: {"preds": module(batch[0]).argmax(1)}
    trainer = paper_trainer(callback, precision="bf16-true")
    with pytest.raises(ValueError, match=r"exact, but got 3\d\d in torch.bfloat16"):
        trainer.validate(module, DataLoader(data, 16), verbose=False)
