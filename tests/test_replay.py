"""Evidence that runs samples again: only where that gives the answers they got before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_neurocorr import Ablation, BatchBaseline, NeuronAdvantage, SecondPass, compare
from tests.paper_model import paper_trainer

QUICK = Ablation(random_sets=3, sizes=(1,), singles=2)


class Data(Dataset[Any]):
    """Three classes told apart by the sign and size of the inputs; the baseline is often wrong."""

    def __init__(self, n: int = 300, shift: float = 0.0, noise: float = 0.0) -> None:
        self.y = torch.arange(n) % 3
        self.x = nn.functional.one_hot(self.y, 6).float() * 2 + 0.3 * torch.randn(n, 6) + shift
        self.answer = torch.where(torch.rand(n) < 0.5, self.y, (self.y + 1) % 3)
        self.noise = noise

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> Any:
        x = self.x[i] + self.noise * torch.randn(6)
        return x, self.y[i], self.answer[i]


class Net(pl.LightningModule):
    """Right by its wiring; normalises its inputs in the step where there is a shift."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.shift = shift
        with torch.no_grad():
            self.hidden.weight.copy_(torch.eye(6))
            self.hidden.bias.zero_()
            self.head.weight.copy_(torch.eye(3, 6))
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x).relu())

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch[0] - self.shift if self.shift else batch[0])


def validated(module: Net, *data: Data, **options: Any) -> NeuronAdvantage:
    callback = NeuronAdvantage(BatchBaseline(2), target=1, visualizer=None, **options)
    loaders = [DataLoader(part, 50) for part in data]
    paper_trainer(callback).validate(module, loaders, verbose=False)
    return callback


def test_an_input_computed_in_the_step_is_not_replayed_as_something_else() -> None:
    options: dict[str, Any] = {"ablation": QUICK, "second_pass": SecondPass(permutations=9)}
    with pytest.warns(UserWarning, match="arguments are computed in validation_step"):
        callback = validated(Net(3.0), Data(shift=3.0), **options)
    assert np.isnan(callback.report.column("ablation")).all()  # type: ignore[union-attr]
    assert np.isnan(callback.report.column("auroc")).all()  # type: ignore[union-attr]
    torch.manual_seed(1)
    plain = validated(Net(), Data(), **options)
    torch.manual_seed(1)
    told = validated(Net(3.0), Data(shift=3.0), inputs=lambda batch: batch[0] - 3.0, **options)
    for name in ("ablation", "auroc"):
        np.testing.assert_allclose(
            plain.report.column(name),  # type: ignore[union-attr]
            told.report.column(name),  # type: ignore[union-attr]
            atol=1e-4,
        )
    assert np.isfinite(plain.report.column("ablation")).any()  # type: ignore[union-attr]


def test_a_wrong_reading_or_random_data_is_noticed() -> None:
    with pytest.warns(UserWarning, match="get the answers they got before"):
        callback = validated(
            Net(3.0), Data(shift=3.0), inputs=lambda batch: 3.0 - batch[0], ablation=QUICK
        )
    assert not callback.report.study  # type: ignore[union-attr]
    with pytest.warns(UserWarning, match="random augmentation"):
        validated(Net(), Data(noise=2.0), second_pass=SecondPass(permutations=9))


def test_an_inner_module_is_not_fed_the_raw_batch() -> None:
    with pytest.warns(UserWarning, match="Say with `inputs`"):
        callback = validated(Net(), Data(), output="head", ablation=QUICK)
    assert np.isnan(callback.report.column("ablation")).all()  # type: ignore[union-attr]


def test_several_loaders_are_ablated_together() -> None:
    callback = validated(Net(), Data(170), Data(130), ablation=QUICK)
    report = callback.report
    assert report is not None
    assert report.study["num_advantage"] == report.outcomes.only_model
    assert np.isfinite(report.column("ablation")).any()


def test_no_shared_sample_of_the_class_is_said() -> None:
    data = Data()
    data.answer = torch.zeros(300, dtype=torch.long)
    with pytest.warns(UserWarning, match="No ablation: no sample that both get right"):
        callback = validated(Net(), data, ablation=QUICK)
    assert "No ablation" in callback.report.notes[-1]  # type: ignore[union-attr]


def test_a_monitor_outlives_a_validation_that_failed(tmp_path: Any) -> None:
    from pytorch_lightning.callbacks import ModelCheckpoint
    from pytorch_lightning.loggers import CSVLogger

    from tests.paper_model import PaperModule, paper_loader

    calls = []

    def breaks(batch: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 2 + 5 + 3:
            raise RuntimeError("the reading service is down")
        return batch[2]

    callback = NeuronAdvantage(breaks, "model.detector", target=1, visualizer=None)
    keep = ModelCheckpoint(
        tmp_path / "kept", monitor="neurocorr/strongest_r/model.detector", mode="max"
    )
    options = {"logger": CSVLogger(tmp_path), "enable_checkpointing": True}
    trainer = paper_trainer(callback, keep, max_epochs=4, log_every_n_steps=1, **options)
    with pytest.warns(UserWarning, match="the reading service is down"):
        trainer.fit(PaperModule(), paper_loader(), paper_loader())
    assert trainer.current_epoch == 4
    assert [entry.epoch for entry in callback.history] == [0, 2, 3]


class Regressor(Net):
    """Its targets are numbers: nobody is right or wrong."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return {"preds": self(batch[0])[:, 0], "target": batch[1].float()}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0]).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


@pytest.mark.parametrize(
    "options", [{"ablation": QUICK}, {"second_pass": SecondPass(permutations=9)}]
)
def test_evidence_that_needs_outcome_groups_fails_in_the_rehearsal(options: dict[str, Any]) -> None:
    def closer(prediction: Tensor, baseline: Tensor, target: Tensor) -> Tensor:
        return (baseline - target).abs() - (prediction - target).abs()

    def fit(module: Regressor, **more: Any) -> NeuronAdvantage:
        callback = NeuronAdvantage(
            lambda batch: torch.zeros(len(batch[0])), advantage=closer, visualizer=None, **more
        )
        trainer = paper_trainer(callback, num_sanity_val_steps=1)
        trainer.fit(module, DataLoader(Data(), 50), DataLoader(Data(), 50))
        return callback

    module = Regressor()
    weights = module.hidden.weight.clone()
    (option,) = options
    with pytest.raises(ValueError, match=f"Expected `{option}` to be None where nothing is right"):
        fit(module, **options)
    torch.testing.assert_close(module.hidden.weight, weights, rtol=0, atol=0)  # before training
    assert np.isfinite(fit(Regressor()).report.column("r")).any()  # type: ignore[union-attr]


def test_in_a_notebook_it_is_an_error_too() -> None:
    batches = [(torch.randn(40, 6), torch.randn(40))]
    with pytest.raises(ValueError, match="Expected `ablation` to be None where nothing is right"):
        compare(
            nn.Sequential(nn.Linear(6, 1), nn.Flatten(0)),
            batches,
            lambda batch: torch.zeros(len(batch[0])),
            advantage=lambda prediction, baseline, target: (baseline - target).abs(),
            ablation=QUICK,
        )


def test_validate_returns_the_numbers_without_a_logger() -> None:
    callback = NeuronAdvantage(BatchBaseline(2), target=1, visualizer=None)
    (found,) = paper_trainer(callback).validate(Net(), DataLoader(Data(), 50), verbose=False)
    assert found["neurocorr/outcomes/neither"] == 0


def test_inputs_that_are_no_images_are_a_remark_and_no_warning() -> None:
    callback = NeuronAdvantage(BatchBaseline(2), target=1)
    paper_trainer(callback).validate(Net(), DataLoader(Data(), 50), verbose=False)
    assert "No pictures" in callback.report.notes[-1]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"ablation": True}, "Expected `ablation` to be None or Ablation"),
        ({"second_pass": 1}, "Expected `second_pass` to be None or SecondPass"),
        ({"attribution": "yes"}, "Expected `attribution`"),
        ({"ablation": Ablation(), "attribution": False}, r"Pass Ablation\(by='r'\)"),
        ({"to_image": 3}, "Expected `to_image`"),
        ({"dataloaders": 0}, r"list of indices such as \[0\]"),
        ({"num_classes": -1}, "Expected `num_classes`"),
    ],
)
def test_wrong_settings_fail_in_the_constructor(options: dict[str, Any], match: str) -> None:
    with pytest.raises((TypeError, ValueError), match=match):
        NeuronAdvantage(BatchBaseline(2), target=1, **options)


def test_one_neuron_is_a_layer_of_one() -> None:
    from lightning_neurocorr import NeuronAdvantageCorrelation

    metric = NeuronAdvantageCorrelation(1)
    x, a = torch.arange(5.0)[:, None], torch.tensor([1.0, 0, 1, -1, 0])
    assert metric(x, a).shape == (1,)
    assert metric.compute().shape == (1,)
    assert metric.clone().compute().shape == (1,)
    with pytest.raises(TypeError, match="Expected `activations` to be a tensor, but got ndarray"):
        metric.update(x.numpy(), a)  # type: ignore[arg-type]
