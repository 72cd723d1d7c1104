"""What was compared is said in words; what is no class or no call is not taken for one."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import BatchBaseline, NeuronAdvantage, NeuronReport, compare
from lightning_neurocorr.baselines.labels import OneHotCheck
from lightning_neurocorr.show.markdown import markdown
from lightning_neurocorr.validation import one_pass
from tests.helpers import make_report
from tests.paper_model import PaperModule, fit, paper_loader, paper_trainer, watch

# --- provenance -----------------------------------------------------------------------------------


def test_a_report_says_what_was_compared(tmp_path: Path) -> None:
    callback = watch(["model.detector", "model.head"], target=1)
    fit(callback)
    report = callback.report
    assert report is not None
    assert dict(report.provenance) == {
        "prediction": "output of `forward`, scores (N, 2)",
        "target": "`target` (1) of the batch",
        "baseline": "BatchBaseline(2), class ids",
        "positions": "sequential loader",
        "neurons": "read as returned by model.detector, model.head",
        "attribution": "18 of 18 samples that only the model gets right, 4 with a partner",
    }
    assert report.compared.startswith("prediction: output of `forward`, scores (N, 2); target:")
    assert report.compared in repr(report)
    assert "positions: sequential loader" in report._repr_html_()
    assert "Compared: prediction: output of &#96;forward&#96;, scores (N, 2); target" in markdown(
        report
    )
    loaded = NeuronReport.load(report.save(tmp_path / "report.npz"))
    assert dict(loaded.provenance) == dict(report.provenance)


@pytest.mark.filterwarnings("ignore:.*shuffling enabled.*")
def test_other_sources_are_said_too() -> None:
    loader = DataLoader(paper_loader().dataset, batch_size=10, shuffle=True)
    callback = NeuronAdvantage(
        BatchBaseline(2), "model.detector", output="model", target=lambda b: b[1], sample_id=2,
        visualizer=None, advantage="correctness",
    )  # fmt: skip
    paper_trainer(callback).validate(PaperModule(), loader, verbose=False)
    said = callback.report.provenance  # type: ignore[union-attr]
    assert said["prediction"] == "output of `model`, scores (N, 2)"
    assert said["target"] == "`target` (<lambda>) of the batch"
    assert said["id"] == "`sample_id` (2)"
    assert said["positions"].startswith("numbered as seen, as ")


def test_where_neurons_are_read_is_said() -> None:
    layers = [nn.Linear(3, 4), nn.ReLU(), *(nn.Linear(4, 4) for _ in range(4)), nn.Linear(4, 2)]
    batches = [(torch.randn(20, 3), torch.arange(20) % 2)]
    report = compare(nn.Sequential(*layers), batches, lambda batch: batch[1])
    assert report.provenance["neurons"] == (
        "read behind norm or activation function in 1 layer, as returned by 2, 3, 4 and 2 more"
    )
    assert report.read_at == ("1", "2", "3", "4", "5", "6")


def test_files_without_provenance_load(tmp_path: Path) -> None:
    path = make_report({"a": 3}, provenance={"target": "x"}).save(tmp_path / "new.npz")
    with np.load(path) as archive:
        arrays = dict(archive)
    meta = json.loads(arrays["meta"].tobytes())
    del meta["provenance"]

    def saved(changed: dict[str, Any]) -> Path:
        encoded = np.frombuffer(json.dumps(changed).encode(), dtype=np.uint8)
        np.savez(tmp_path / "other.npz", **{**arrays, "meta": encoded})
        return tmp_path / "other.npz"

    old = NeuronReport.load(saved(meta))
    assert dict(old.provenance) == {}
    assert old.compared == ""
    assert "Compared" not in markdown(old)
    for broken in (["a"], {"target": 3}, "text"):
        with pytest.raises(ValueError, match="provenance"):
            NeuronReport.load(saved({**meta, "provenance": broken}))


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "a|b\nc", "**x** [y](z)", "\x1b[2J"])
def test_hostile_names_stay_text(text: str) -> None:
    report = make_report({"a": 3}, provenance={"target": text, text: "x"})
    shown = markdown(report)
    assert "<script" not in shown
    assert "\x1b" not in shown + repr(report) + report._repr_html_()
    line = next(line for line in shown.splitlines() if line.startswith("Compared:"))
    assert not set(line.removeprefix("Compared:")) & set("<>|*[]\n\x1b")
    assert "<script" not in report._repr_html_()


def test_processes_that_read_from_different_places_are_refused(monkeypatch: Any) -> None:
    there = {"prediction": "[0] of output of `forward`", "target": "`batch[1]`"}

    def gather(mine: Any) -> list[Any]:
        return [mine, replace(mine, provenance={**mine.provenance, **there})]

    monkeypatch.setattr(one_pass, "gather_objects", gather)
    batches = [(torch.randn(20, 3), torch.arange(20) % 2)]
    with pytest.raises(
        ValueError, match=r"prediction to be in one place in all processes, .*\[0\]"
    ):
        compare(nn.Sequential(nn.Linear(3, 2)), batches, lambda batch: batch[1])


# --- one-hot --------------------------------------------------------------------------------------


class Elsewhere(Tensor):
    """A tensor that says it is on an accelerator."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")


FINE = torch.eye(3)[[0, 2, 1, 1]]
WRONG = {
    "several or none": FINE + torch.eye(3)[[1, 2, 1, 1]].clamp_max(1) * (FINE == 0),
    "soft labels": FINE * 0.8 + 0.05,
    "other than 0 and 1": FINE * 3,
}


@pytest.mark.parametrize("words", WRONG)
@pytest.mark.parametrize("at", [0, 2])
def test_an_accelerator_is_not_waited_for(words: str, at: int) -> None:
    batches = [FINE, FINE, FINE]
    batches[at] = WRONG[words]
    check = OneHotCheck()
    with mock.patch.object(Tensor, "tolist", side_effect=AssertionError("it waits")):
        for batch in batches:
            check(batch.as_subclass(Elsewhere), 3)
    with pytest.raises(ValueError, match=f"^Expected the target .*{words}"):
        check.finish()
    with pytest.raises(ValueError, match=f"^Expected the target .*{words}"):
        OneHotCheck()(WRONG[words], 3)


def test_what_is_one_hot_passes_everywhere() -> None:
    check = OneHotCheck()
    for batch in (FINE, FINE.long(), FINE.bool(), FINE.half(), torch.arange(4), FINE[:0]):
        check(batch, 3)
        check(batch.as_subclass(Elsewhere), 3)
    check.finish()


# --- what only looks like classes -----------------------------------------------------------------


def likelihood(prediction: Tensor, baseline: Tensor, target: Tensor) -> Tensor:
    mean, log_variance = prediction.unbind(1)
    ours = -0.5 * (log_variance + (target - mean) ** 2 / log_variance.exp())
    return ours + 0.5 * (target - baseline[:, 0]) ** 2


def test_a_mean_and_its_variance_are_no_classes_unless_the_user_says_so() -> None:
    x = torch.randn(60, 3)
    target = (x[:, 0] > 0).long()
    answers = torch.randn(60, 2)
    model = nn.Sequential(nn.Linear(3, 2))
    report = compare(model, [(x, target)], lambda b: answers, advantage=likelihood)
    assert math.isnan(report.outcomes.only_model)
    assert np.isnan(report.column("mean_only_model")).all()
    assert np.isfinite(report.column("r")).all()

    report = compare(model, [(x, target)], lambda b: answers, advantage=likelihood, num_classes=2)
    with torch.no_grad():
        right = (model(x).argmax(1) == target) & (answers.argmax(1) != target)
    assert report.outcomes.only_model == int(right.sum())


def test_counts_are_no_classes_unless_the_user_says_so() -> None:
    x = torch.randn(60, 3)
    target = torch.randint(0, 5, (60,))
    said: dict[str, Any] = {"advantage": lambda p, b, t: (b - t).abs().float() - (p - t).abs()}
    model = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))

    def predicted(outputs: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        return outputs.round().long(), batch[1]

    report = compare(model, [(x, target)], lambda b: b[1], predictions=predicted, **said)
    assert math.isnan(report.outcomes.only_model)


# --- calls ----------------------------------------------------------------------------------------


class Twice(pl.LightningModule):
    """Several calls in one step: under DDP the step itself goes through the same forward."""

    def __init__(self, inline: bool = False) -> None:
        super().__init__()
        self.net, self.inline = nn.Linear(4, 3), inline

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0]).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        if self.inline:
            self.net(-batch[0])
            return {"logits": self.net(batch[0])}
        self(torch.randn_like(batch[0]))
        return {"logits": self(batch[0])}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.fixture
def strategy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One process, alone or as a group of one, which leaves nothing behind."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    before = dict(os.environ)
    yield request.param
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


STRATEGIES = pytest.mark.parametrize("strategy", ["auto", "ddp"], indirect=True)


@pytest.mark.filterwarnings("ignore:.*treespec.*")
@STRATEGIES
def test_several_calls_are_said_at_the_rehearsal(strategy: str) -> None:
    x, y = torch.randn(60, 4), torch.arange(60) % 3
    loader, module = DataLoader(TensorDataset(x, y), 20), Twice()
    callback = NeuronAdvantage(lambda batch: batch[1].roll(1) * 0, visualizer=None)
    trainer = paper_trainer(callback, max_epochs=1, strategy=strategy, devices=1)
    match = "`forward` was called 2 times in each validation step: .* those of call 2"
    with pytest.warns(UserWarning, match=match):
        trainer.fit(module, loader, loader)
    report = callback.report
    assert report is not None
    assert "call 2 of 2 of `forward`" in report.provenance["prediction"]
    assert any("was called 2 times" in note for note in report.notes)
    with torch.no_grad():
        logits = module.net(x)
    gain = (logits.argmax(1) == y).double() - (y == 0).double()
    for unit in range(3):
        expected = np.corrcoef(logits[:, unit].double(), gain)[0, 1]
        assert report.row("net", unit).r == pytest.approx(expected, abs=1e-5)


@pytest.mark.filterwarnings("ignore:.*treespec.*")
@STRATEGIES
def test_calls_outside_of_any_forward_are_not_mixed(strategy: str) -> None:
    loader = DataLoader(TensorDataset(torch.randn(60, 4), torch.arange(60) % 3), 20)
    callback = NeuronAdvantage(lambda batch: batch[1] * 0, visualizer=None)
    trainer = paper_trainer(callback, max_epochs=1, strategy=strategy, devices=1)
    with pytest.raises(ValueError, match="net: its forward was called 2 times outside"):
        trainer.fit(Twice(inline=True), loader, loader)
