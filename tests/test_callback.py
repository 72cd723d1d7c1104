"""The callback through real trainers: what it finds, what it says, what it leaves behind."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_neurocorr import (
    BatchBaseline,
    MajorityBaseline,
    ModuleBaseline,
    NeuronAdvantage,
    TableBaseline,
)
from tests.helpers import pearson
from tests.paper_model import (
    PaperModule,
    fit,
    paper_data,
    paper_loader,
    paper_trainer,
    watch,
)


@pytest.mark.parametrize("returns", ["nothing", "loss", "preds", "logits"])
@pytest.mark.parametrize("as_dict", [False, True])
def test_wired_neurons_have_the_r_they_were_wired_for(returns: str, as_dict: bool) -> None:
    callback = watch(baseline=BatchBaseline("answer" if as_dict else 2))
    trainer = paper_trainer(callback)
    loader = paper_loader(as_dict=as_dict)
    trainer.fit(PaperModule(returns), paper_loader(as_dict=as_dict), loader)
    report = callback.report
    assert report is not None
    np.testing.assert_allclose([row.r for row in report.rows][:2], [1, -1], atol=1e-12)
    assert math.isnan(report.rows[2].r)
    assert report.rows[2].dead
    assert not report.rows[0].dead
    assert len(callback.history) == 2


def test_outcomes_are_counted_as_in_the_data() -> None:
    callback = watch()
    fit(callback)
    x, target, answer = paper_data()
    model_right = x[:, 2] > 0
    baseline_right = answer == target
    outcomes = callback.report.outcomes  # type: ignore[union-attr]
    assert outcomes.both == int((model_right & baseline_right).sum())
    assert outcomes.only_model == int((model_right & ~baseline_right).sum())
    assert outcomes.only_baseline == int((~model_right & baseline_right).sum())
    assert outcomes.neither == int((~model_right & ~baseline_right).sum())
    assert outcomes.model_accuracy == pytest.approx(float(model_right.float().mean()))


def test_output_names_the_module_that_predicts() -> None:
    callback = watch(output="model")
    fit(callback, PaperModule(through="model"))
    assert callback.report.rows[0].r == pytest.approx(1)  # type: ignore[union-attr]


def test_a_prediction_that_cannot_be_found_is_an_error_before_training() -> None:
    module = PaperModule(through="model")
    before = [p.clone() for p in module.parameters()]
    with pytest.raises(ValueError, match=r"return \{'preds'.*name with `output`"):
        fit(watch(), module)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert not any(part._forward_hooks for part in module.modules())


def test_predictions_callable_reads_them() -> None:
    seen = []

    def predictions(outputs: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(outputs)
        return outputs["preds"], batch[1]

    callback = watch(predictions=predictions)
    fit(callback, PaperModule("preds"))
    assert seen
    assert callback.report.rows[0].r == pytest.approx(1)  # type: ignore[union-attr]


# --- wrong arguments, said early -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"advantage": "accuracy"}, "Expected `advantage` to be 'correctness'"),
        ({"pooling": "median"}, "Expected `pooling`"),
        ({"top_k": 0}, "Expected `top_k`"),
        ({"every_n_validations": 0}, "Expected `every_n_validations`"),
        ({"predictions": 3}, "Expected `predictions`"),
        ({"name": ""}, "Expected `name`"),
        ({"visualizer": "lucent"}, "Expected `visualizer`"),
        ({"baseline": "majority"}, "Expected `baseline`"),
    ],
)
def test_wrong_arguments_fail_in_the_constructor(options: dict[str, Any], match: str) -> None:
    with pytest.raises((ValueError, TypeError), match=match):
        watch(**options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"layers": "model.detektor"}, "Did you mean 'model.detector'"),
        ({"layers": lambda name, module: False}, "chose none"),
        ({"output": "modell"}, "Expected `output` to be the dotted name"),
        ({"dataloaders": [3]}, "Expected `dataloaders` to be indices of the 1"),
        ({"baseline": TableBaseline(np.zeros(47, int))}, "47"),
        ({"baseline": BatchBaseline(7)}, "7"),
        ({"baseline": lambda batch: torch.zeros(3)}, r"N = 10 samples"),
    ],
)
def test_wrong_settings_fail_before_the_first_training_step(
    options: dict[str, Any], match: str
) -> None:
    module = PaperModule()
    steps = []
    module.on_train_batch_start = lambda *_: steps.append(1)  # type: ignore[assignment,method-assign]
    with pytest.raises((ValueError, IndexError, TypeError), match=match):
        fit(watch(**options), module)
    assert not steps
    assert not any(part._forward_hooks for part in module.modules())


def test_a_missing_target_is_an_error_that_says_what_to_do() -> None:
    class NoTarget(PaperModule):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self(batch["x"])

    loader = DataLoader([{"x": row} for row in paper_data()[0]], batch_size=10)
    trainer = paper_trainer(watch(baseline=lambda batch: torch.zeros(10), target=None))
    with pytest.raises(ValueError, match=r"one of target, .* but got a dict with 'x'.*`target=`"):
        trainer.fit(NoTarget(), paper_loader(), loader)


@pytest.mark.filterwarnings("ignore:.*`val_dataloader`.*")
def test_a_fit_without_validation_is_a_warning_and_validate_may_follow() -> None:
    callback = watch(baseline=MajorityBaseline(target=1))
    trainer, module = paper_trainer(callback), PaperModule()
    with pytest.warns(UserWarning, match=r"no validation loader.*call trainer\.validate"):
        trainer.fit(module, paper_loader())
    assert callback.report is None
    trainer.validate(module, paper_loader(), verbose=False)
    assert callback.report.rows[0].r == pytest.approx(pearson(*without_lightning()), abs=1e-6)  # type: ignore[union-attr]


def without_lightning() -> tuple[np.ndarray, np.ndarray]:
    """Activation of the first neuron and advantage over the more frequent class."""
    x, target, _ = paper_data()
    model_right, majority = (x[:, 2] > 0).numpy(), int(target.bincount().argmax())
    return x[:, 0].numpy(), model_right.astype(float) - (target == majority).numpy()


@pytest.mark.filterwarnings("ignore:.*`validation_step`.*")
def test_a_model_that_can_never_be_validated_is_an_error() -> None:
    class Trains(pl.LightningModule):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            raise AssertionError("an error comes before training")

        def configure_optimizers(self) -> None: ...

    for loaders in ((paper_loader(),), (paper_loader(), paper_loader())):
        with pytest.raises(ValueError, match="Expected a validation_step, but Trains has none"):
            paper_trainer(watch(layers=None)).fit(Trains(), *loaders)


# --- hooks, random numbers, weights --------------------------------------------------------------


class Interrupted(PaperModule):
    """Raises in the middle of the second validation."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, batch_idx)
        if self.trainer.current_epoch == 1 and batch_idx == 2:
            raise self.error


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), SystemExit(3)])
def test_hooks_are_gone_after_an_exception(error: BaseException) -> None:
    module = Interrupted(error)
    with pytest.raises(BaseException) as raised:  # noqa: PT011
        fit(watch(layers=None), module)
    assert type(raised.value) in (type(error), SystemExit)
    for part in module.modules():
        assert not part._forward_hooks
        assert not part._forward_pre_hooks


class Noisy(pl.LightningModule):
    """Dropout and batch norm, so that every random draw and every buffer matters."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Dropout(0.3),
            nn.Flatten(), nn.Linear(6 * 36, 4),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def _random_baseline(batch: Any) -> torch.Tensor:
    return torch.randint(0, 4, (len(batch[1]),)) + int(np.random.randint(1)) * 0  # noqa: NPY002


def _train_noisy(*callbacks: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    data = torch.utils.data.TensorDataset(torch.randn(96, 1, 8, 8), torch.randint(0, 4, (96,)))
    module = Noisy()
    trainer = paper_trainer(*callbacks, max_epochs=3)
    trainer.fit(module, DataLoader(data, 16, shuffle=True), DataLoader(data, 20))
    after = {"draw": torch.rand(3), "numpy": torch.tensor(np.random.rand())}  # noqa: NPY002
    return module.state_dict() | after


def test_training_is_bit_identical_with_and_without() -> None:
    without = _train_noisy()
    callback = NeuronAdvantage(_random_baseline)
    with_it = _train_noisy(callback)
    assert callback.report.panels  # type: ignore[union-attr]
    assert without.keys() == with_it.keys()
    for name, value in without.items():
        assert torch.equal(value, with_it[name]), name


# --- faults after the first validation worked ----------------------------------------------------


def test_a_baseline_that_breaks_later_does_not_end_the_run() -> None:
    calls = []

    def breaks(batch: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2 + 5 + 3:
            raise RuntimeError("the reading service is down")
        return batch[2]

    callback = watch(baseline=breaks)
    with pytest.warns(UserWarning, match="the reading service is down"):
        trainer = fit(callback, max_epochs=4)
    assert trainer.current_epoch == 4
    assert [entry.epoch for entry in callback.history] == [0, 2, 3]


def test_a_baseline_that_breaks_in_the_first_validation_is_an_error() -> None:
    def breaks(batch: Any) -> torch.Tensor:
        raise RuntimeError("no such table")

    with pytest.raises(RuntimeError, match="no such table"):
        fit(watch(baseline=breaks))


def test_a_layer_that_is_not_always_called_is_left_out_and_said() -> None:
    class Sometimes(PaperModule):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().validation_step(batch, batch_idx)
            if batch_idx != 3:
                self.extra(batch[0])

        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Linear(3, 2)

    callback = watch(layers=["extra", "model.detector"])
    with pytest.warns(UserWarning, match="Layer extra was left out"):
        fit(callback, Sometimes())
    assert callback.report.layers == ("model.detector",)  # type: ignore[union-attr]


# --- the numbers against SciPy -------------------------------------------------------------------


def test_r_equals_scipy_on_the_whole_validation_set() -> None:
    from scipy import stats

    torch.manual_seed(0)
    module = Noisy()
    x, y = torch.randn(150, 1, 8, 8), torch.randint(0, 4, (150,))
    answers = torch.randint(0, 4, (150,))
    data = torch.utils.data.TensorDataset(x, y, answers)
    callback = NeuronAdvantage(BatchBaseline(2), target=1, visualizer=None, at="raw")
    paper_trainer(callback).validate(module, DataLoader(data, 32), verbose=False)
    module.eval()
    with torch.no_grad():
        conv = module.net[0](x).mean((2, 3))
        logits = module(x)
    advantage = (logits.argmax(1) == y).double() - (answers == y).double()
    report = callback.report
    assert report is not None
    for name, activations in (("net.0", conv), ("net.5", logits)):
        for unit, column in enumerate(activations.T.double()):
            expected = stats.pearsonr(column.numpy(), advantage.numpy()).statistic
            assert report.row(name, unit).r == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("mode", ["train", "eval", "module"])
def test_a_network_that_a_function_runs_in_training_mode_is_said(
    mode: str, recwarn: pytest.WarningsRecorder
) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout(0.5))
    network.train(mode != "eval")
    function = lambda batch: network(batch[0])  # noqa: E731
    callback = watch(baseline=ModuleBaseline(network) if mode == "module" else function)
    warnings.filterwarnings("default", "NeuronAdvantage")
    fit(callback)
    assert callback.report is not None
    said = [note for note in callback.report.notes if "Dropout in training mode" in note]
    assert len(said) == (mode == "train")
    assert len([w for w in recwarn if "Dropout in training mode" in str(w.message)]) == len(said)
    assert network.training == (mode != "eval")
