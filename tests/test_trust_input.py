"""Bad input: a clear error early, a named gap later, and never a number out of nothing."""

from __future__ import annotations

import math
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, StackDataset, Subset

from lightning_neurocorr import BatchBaseline, NeuronAdvantage, NeuronReport
from tests.paper_model import PaperModule, PaperSet, paper_loader, paper_trainer


class Extra(PaperModule):
    """One more layer whose activations are whatever ``change`` makes of the detector's."""

    def __init__(self, change: Any) -> None:
        super().__init__("logits")
        self.extra = Through(change)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        self.extra(self.model.detector(batch[0]))
        return super().validation_step(batch, batch_idx)


class Through(nn.Module):
    def __init__(self, change: Any) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Any:
        return self.change(x)


def validated(module: Any, loader: Any = None, **options: Any) -> tuple[NeuronReport, list[str]]:
    """The report, and what was said."""
    options = {"baseline": BatchBaseline(2), "layers": ["extra", "model.detector"], **options}
    callback = NeuronAdvantage(
        options.pop("baseline"), options.pop("layers"), visualizer=None, **options
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        paper_trainer(callback).validate(module, loader or paper_loader(), verbose=False)
    assert callback.report is not None
    return callback.report, [str(w.message) for w in caught]


def with_value(value: float) -> Any:
    def change(x: Tensor) -> Tensor:
        x = x.clone()
        x[0, 1] = value
        return x

    return change


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_activations_that_are_not_finite_have_no_values_and_are_said(value: float) -> None:
    report, said = validated(Extra(with_value(value)))
    assert report.row("extra", 0).r == pytest.approx(1)
    assert math.isnan(report.row("extra", 1).r)
    assert report.row("model.detector", 0).r == pytest.approx(1)
    assert any("1 neurons of layer extra had activations that are not finite" in s for s in said)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: (x * 4).int(), 1.0),
        (lambda x: x > 0, None),
        (lambda x: x.half(), 1.0),
        (lambda x: x.bfloat16(), 1.0),
        (lambda x: x.double(), 1.0),
        (lambda x: torch.complex(x + 2, 0 * x), 1.0),
        (lambda x: (x, None), 1.0),
        (lambda x: {"a": None, "b": x}, 1.0),
        (lambda x: x[:, :, None, None].expand(-1, -1, 2, 2), 1.0),
    ],
    ids=["int", "bool", "half", "bfloat16", "double", "complex", "tuple", "dict", "image"],
)
def test_activations_of_any_kind(change: Any, expected: float | None) -> None:
    report, _ = validated(Extra(change))
    r = report.row("extra", 0).r
    assert 0.5 < r <= 1 if expected is None else r == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x[:3], "3 rows for 10 samples"),
        (lambda x: x.sum(), "1 rows for 10 samples"),
        (lambda x: "text", "TypeError"),
        (lambda x: None, "TypeError"),
        (lambda x: x[:, :0], "it has no neurons"),
    ],
    ids=["fewer rows", "a number", "text", "nothing", "no units"],
)
def test_a_layer_that_cannot_be_read_is_left_out_and_said(change: Any, reason: str) -> None:
    report, said = validated(Extra(change))
    assert report.layers == ("model.detector",)
    assert report.rows[0].r == pytest.approx(1)
    assert any("Layer extra was left out" in s for s in said)
    import re

    assert any(re.search(reason, s) for s in said)


def test_logits_that_are_not_finite_count_as_wrong_or_as_they_are() -> None:
    class Broken(PaperModule):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x).clone()
            logits[0] = math.nan
            return logits

    report, _ = validated(Broken(), layers="model.detector")
    assert report.n == 48
    assert sum(report.outcomes.counts.values()) == 48


def test_images_that_are_not_finite_leave_the_other_layers() -> None:
    class Poisoned(PaperSet):
        def __getitem__(self, i: int) -> Any:
            x, y, answer = super().__getitem__(i)
            return (x * math.nan if i == 7 else x), y, answer

    report, said = validated(PaperModule(), DataLoader(Poisoned(), 10), layers="model.detector")
    assert report.n == 48
    assert any("not finite" in s for s in said)
    assert all(math.isnan(row.r) for row in report.rows)


def test_batches_of_one() -> None:
    report, _ = validated(PaperModule(), paper_loader(batch_size=1), layers="model.detector")
    assert report.n == 48
    assert report.rows[0].r == pytest.approx(1)


def test_one_sample_has_no_r() -> None:
    report, _ = validated(PaperModule(), paper_loader(n=1), layers="model.detector")
    assert report.n == 1
    assert all(math.isnan(row.r) for row in report.rows)
    assert "too few" in report.message or "no advantage" in report.message


def test_an_empty_validation_set_is_nothing_to_report() -> None:
    callback = NeuronAdvantage(BatchBaseline(2), "model.detector", visualizer=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own about a loader without batches
        trainer = paper_trainer(callback, max_epochs=1)
        empty = DataLoader(Subset(PaperSet(), range(0)), 10)
        trainer.fit(PaperModule(), paper_loader(), empty)
    assert trainer.current_epoch == 1
    assert callback.report is None


@pytest.mark.parametrize("label", [-1, 2, -100])
def test_labels_out_of_range_are_an_error_that_names_one(label: int) -> None:
    class Odd(PaperSet):
        def __getitem__(self, i: int) -> Any:
            x, y, answer = super().__getitem__(i)
            return x, torch.tensor(label) if i == 3 else y, answer

    class Model(PaperModule):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return {"logits": self(batch[0]), "target": batch[1]}

    with pytest.raises(ValueError, match=rf"class ids in \[0, 2\), but got {label}"):
        validated(Model(), DataLoader(Odd(), 10), layers="model.detector")


@pytest.mark.parametrize(
    ("baseline", "match"),
    [
        (lambda batch: batch[2][:-1], "N = 10"),
        (lambda batch: batch[2][:, None, None], r"\(N,\)|shape"),
        (lambda batch: None, "None"),
        (lambda batch: "yes", "str"),
        (lambda batch: torch.zeros(10, 7), "7"),
        (lambda batch: torch.full((10,), 0.5), "0.5|integer|class"),
        (lambda batch: torch.zeros(10, 2).to("meta"), "meta|device"),
        (lambda batch: torch.full((10, 2), math.nan), "finite|NaN|nan"),
    ],
    ids=["rows", "axes", "None", "text", "classes", "fractions", "device", "nan"],
)
def test_a_baseline_that_answers_nonsense_is_an_early_error(baseline: Any, match: str) -> None:
    steps: list[int] = []
    module = PaperModule()
    module.on_train_batch_start = lambda *_: steps.append(1)  # type: ignore[assignment,method-assign]
    callback = NeuronAdvantage(baseline, "model.detector", visualizer=None)
    with pytest.raises((ValueError, TypeError, RuntimeError, NotImplementedError), match=match):
        paper_trainer(callback).fit(module, paper_loader(), paper_loader(n=10))
    assert not steps


def test_a_baseline_that_raises_at_batch_37() -> None:
    calls: list[int] = []

    def baseline(batch: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 2 + 48 + 37:
            raise ConnectionError("gone")
        return batch[2]

    callback = NeuronAdvantage(baseline, "model.detector", visualizer=None)
    with pytest.warns(UserWarning, match="could not read batch 36 .*ConnectionError: gone"):
        paper_trainer(callback, max_epochs=3).fit(
            PaperModule(), paper_loader(), paper_loader(batch_size=1)
        )
    assert [entry.epoch for entry in callback.history] == [0, 2]


# --- wrong arguments that only a run can tell -----------------------------------------------


@pytest.mark.parametrize(
    ("pooling", "reason"),
    [
        (lambda x: x.amax((2, 3)), "layer 'model.detector' got IndexError: Dimension out of range"),
        (lambda x: x[:, :, None], r"layer 'model.detector' got ValueError: .* \(10, 3, 1\)"),
        (lambda x: 0, "layer 'model.detector' got ValueError: .* got int"),
        (lambda x: x.T, r"layer 'model.detector' got it gave 3 rows for 10 samples"),
        (lambda x: x if x.shape[1] == 3 else x[:, 0], "layer 'model.head' got ValueError"),
    ],
    ids=["axes", "shape", "number", "transposed", "one layer of two"],
)
@pytest.mark.parametrize("rehearsed", [True, False])
def test_pooling_that_fails_is_an_early_error(pooling: Any, reason: str, rehearsed: bool) -> None:
    callback = NeuronAdvantage(BatchBaseline(2), pooling=pooling, visualizer=None)
    trainer = paper_trainer(callback, num_sanity_val_steps=2 if rehearsed else 0, max_epochs=3)
    with pytest.raises(ValueError, match="Expected `pooling` to bring .*" + reason):
        trainer.fit(PaperModule(), paper_loader(), paper_loader())
    assert trainer.current_epoch == 0
    assert trainer.global_step == (0 if rehearsed else 5)


def test_two_callbacks_of_one_name_are_refused_and_told_what_to_do() -> None:
    def callback(**options: Any) -> NeuronAdvantage:
        return NeuronAdvantage(BatchBaseline(2), "model.detector", visualizer=None, **options)

    trainer = paper_trainer(callback(), callback())
    with pytest.raises(ValueError, match=r"`name` of its own, but got several named 'neurocorr'.*"):
        trainer.fit(PaperModule(), paper_loader(), paper_loader())
    trainer = paper_trainer(callback(), callback(name="other"))
    trainer.fit(PaperModule(), paper_loader(), paper_loader())
    assert {key.split("/")[0] for key in trainer.callback_metrics} == {"neurocorr", "other"}


class Data(pl.LightningDataModule):
    """Loaders that the trainer does not know before it asks."""

    def __init__(self, valid: Any) -> None:
        super().__init__()
        self.valid = valid

    def train_dataloader(self) -> Any:
        return paper_loader()

    def val_dataloader(self) -> Any:
        return self.valid


class SideBySide(PaperModule):
    """A batch is a list of batches, one from each loader."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        part = batch[0]
        return super().validation_step(part, batch_idx) if part is not None else None


@pytest.mark.parametrize("mode", ["min_size", "max_size", "max_size_cycle"])
@pytest.mark.parametrize("place", ["fit", "data module", "no rehearsal", "validate"])
def test_loaders_side_by_side_are_refused_and_told_what_to_do(mode: Any, place: str) -> None:
    loaders = CombinedLoader([paper_loader(), paper_loader(24)], mode)
    callback = NeuronAdvantage(BatchBaseline(2), "model.detector", visualizer=None)
    trainer = paper_trainer(callback, num_sanity_val_steps=0 if place == "no rehearsal" else 2)
    if place == "fit":
        run = partial(trainer.fit, SideBySide(), paper_loader(), loaders)
    elif place == "validate":
        run = partial(trainer.validate, SideBySide(), loaders, verbose=False)
    else:
        run = partial(trainer.fit, SideBySide(), datamodule=Data(loaders))
    with pytest.raises(ValueError, match=rf"CombinedLoader\(mode='{mode}'\).*StackDataset"):
        run()


def test_loaders_side_by_side_as_one_data_set() -> None:
    """What the error says to do gives the same batches, and every sample has a position."""
    both = DataLoader(StackDataset(PaperSet(), PaperSet()), 10)
    callback = NeuronAdvantage(
        lambda batch: batch[0][2],
        "model.detector",
        predictions=lambda outputs, batch: (outputs["logits"], batch[0][1]),
        visualizer=None,
    )
    paper_trainer(callback).validate(SideBySide("logits"), both, verbose=False)
    assert callback.report.n == 48
    assert callback.report.rows[0].r == pytest.approx(1)


def test_loaders_one_after_the_other_are_taken() -> None:
    loaders = CombinedLoader([paper_loader(), paper_loader(24)], "sequential")
    callback = NeuronAdvantage(BatchBaseline(2), "model.detector", visualizer=None)
    paper_trainer(callback).fit(PaperModule(), paper_loader(), loaders)
    assert callback.report.n == 72


# --- size and names ------------------------------------------------------------------------------

NAMES = ["a|b", "<script>alert(1)</script>", "line\nbreak", "x" * 500, "ünïcode µ", "a$b", "'; --"]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_odd_layer_names(name: str, tmp_path: Any) -> None:
    from pytorch_lightning.loggers import TensorBoardLogger

    class Odd(PaperModule):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(name, nn.Linear(3, 2))

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.get_submodule(name)(batch[0])
            super().validation_step(batch, batch_idx)

    callback = NeuronAdvantage(BatchBaseline(2), [name], visualizer=None)
    logger = TensorBoardLogger(tmp_path)
    paper_trainer(callback, logger=logger, max_epochs=1, log_every_n_steps=1).fit(
        Odd(), paper_loader(), paper_loader()
    )
    logger.finalize("success")
    report = callback.report
    assert report is not None
    assert report.layers == (name,)
    report.save(tmp_path / "report.npz")
    assert NeuronReport.load(tmp_path / "report.npz").layers == (name,)


def test_a_million_neurons_in_one_layer() -> None:
    scale = torch.linspace(-1, 1, 1_000_001)
    scale[500_000] = 0
    wide = Extra(lambda x: x[:, :1] * scale)
    report, _ = validated(wide, layers="extra", attribution=False)
    r = report.column("r")
    assert len(r) == 1_000_001
    np.testing.assert_allclose(r[[0, 499_999, 500_001, -1]], [-1, -1, 1, 1], atol=1e-6)
    assert math.isnan(r[500_000])
    assert report.top(1)[0].r == pytest.approx(1)


def test_thousands_of_layers() -> None:
    class Deep(PaperModule):
        def __init__(self) -> None:
            super().__init__()
            self.many = nn.ModuleList(nn.Linear(3, 1) for _ in range(2000))

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            for layer in self.many:
                layer(batch[0])
            super().validation_step(batch, batch_idx)

    report, _ = validated(Deep(), layers="many.*", attribution=False)
    assert len(report.layers) == 2000
    assert np.isfinite(report.column("r")).all()
