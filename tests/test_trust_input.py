"""Bad input: a clear error early, a named gap later, and never a number out of nothing."""

from __future__ import annotations

import math
import time
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from lightning_neurocorr import BatchBaseline, NeuronAdvantage, NeuronReport, compare
from tests.paper_model import PaperModule, PaperSet, label, paper_loader, paper_trainer


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
    if "predictions" not in options:
        options.setdefault("target", label)
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


def test_layers_that_are_left_out_for_one_reason_share_a_note() -> None:
    class Tables(nn.Module):
        """Reads its input with one layer; two others make a table of 5 rows for every batch."""

        def __init__(self) -> None:
            super().__init__()
            self.read, self.one, self.two = nn.Linear(3, 2), nn.Linear(2, 4), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.read(x) + self.two(self.one(torch.ones(5, 2))).sum()

    x, y = torch.randn(64, 3), torch.arange(64) % 2
    report = compare(Tables(), [(x, y)], lambda batch: batch[1].roll(1), attribution=False)
    assert report.layers == ("read",)
    (note,) = [note for note in report.notes if "left out" in note]
    assert note.startswith("2 layers were left out (one, two): it gave 5 rows for 64 samples")


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
    callback = NeuronAdvantage(BatchBaseline(2), "model.detector", target=1, visualizer=None)
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
    callback = NeuronAdvantage(baseline, "model.detector", target=1, visualizer=None)
    with pytest.raises((ValueError, TypeError, RuntimeError, NotImplementedError), match=match):
        paper_trainer(callback).fit(module, paper_loader(), paper_loader(n=10))
    assert not steps


def test_a_baseline_that_raises_at_batch_37() -> None:
    calls: list[int] = []

    def baseline(batch: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 3 + 48 + 37:  # the sanity check asks twice about its first batch
            raise ConnectionError("gone")
        return batch[2]

    callback = NeuronAdvantage(baseline, "model.detector", target=1, visualizer=None)
    with pytest.warns(UserWarning, match="could not read batch 36 .*ConnectionError: gone"):
        paper_trainer(callback, max_epochs=3).fit(
            PaperModule(), paper_loader(), paper_loader(batch_size=1)
        )
    assert [entry.epoch for entry in callback.history] == [0, 2]


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

    callback = NeuronAdvantage(BatchBaseline(2), [name], target=1, visualizer=None)
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


class Wide(PaperModule):
    """Many layers of one unit each, all of them called."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.many = nn.ModuleList(nn.Linear(3, 1) for _ in range(layers))

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        for layer in self.many:
            layer(batch[0])
        return batch[0][:, 0]


def test_ten_thousand_layers_take_ten_times_as_long_as_a_thousand(tmp_path: Any) -> None:
    from pytorch_lightning.loggers import TensorBoardLogger

    seconds = []
    for layers in (1_000, 10_000):
        module = Wide(layers)
        callback = NeuronAdvantage(
            lambda batch: 0 * batch[0][:, 0],
            "many.*",
            advantage=lambda prediction, baseline, target: prediction - baseline,
            predictions=lambda outputs, batch: (outputs, outputs),
            visualizer=None,
        )
        logger = TensorBoardLogger(tmp_path / str(layers))
        start = time.process_time()
        paper_trainer(callback, logger=logger).validate(module, paper_loader(48, 48), verbose=False)
        seconds.append(time.process_time() - start)
        logger.finalize("success")
        assert len(callback.report.layers) == layers
        assert len(callback.history[0].top) == layers
        weight = module.many[-1].weight.detach()
        x = PaperSet().x
        expected = np.corrcoef((x @ weight.T)[:, 0], x[:, 0])[0, 1]
        assert callback.report.column("r")[-1] == pytest.approx(expected, abs=1e-5)
    assert seconds[1] < 15 * seconds[0]  # what grows with the square takes a hundred times as long
