"""A whole study of silenced sets: what it costs, and on what it is run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import Ablation, BatchBaseline, NeuronAdvantage
from lightning_neurocorr.ablation.plan import extent
from lightning_neurocorr.ablation.together import Together
from lightning_neurocorr.report import NeuronReport
from tests.ablation_models import C
from tests.neurons import seeded
from tests.paper_model import paper_trainer


class Own(pl.LightningModule):
    """A LightningModule whose forward is its own, with a network inside."""

    def __init__(self, *, writes: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.writes = writes
        self.stem = nn.Sequential(nn.Conv2d(1, 20, 3, padding=1), nn.ReLU(inplace=True))
        self.deep = nn.Conv2d(20, 20, 3, padding=1)
        self.head = nn.Linear(20 * 36, C)
        self.samples: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.samples.append(len(x))
        x = x.mul_(2).add_(1) if self.writes else x * 2 + 1
        hidden = self.stem(x)
        return self.head((self.deep(hidden).relu() + hidden).flatten(1))

    def validation_step(self, batch: list[Tensor]) -> None:
        self(batch[0])


def validated(
    *, writes: bool = False, prepared: bool = False, **settings: Any
) -> tuple[Own, NeuronReport, Any]:
    model = Own(writes=writes).eval()
    x = torch.randn(500, 1, 6, 6, generator=seeded())
    with torch.no_grad():
        logits = model(x.clone())
        model.head.bias -= logits.mean(0)
        target = model(x.clone()).argmax(1)
    missed = torch.rand(len(x), generator=seeded(1)) < 0.3
    answer = torch.where(missed, (target + 1) % C, target)
    model.samples.clear()
    ablation = Ablation(
        by="r", **{"sizes": (1, 2), "random_sets": 4, "time_budget_s": None, **settings}
    )
    callback = NeuronAdvantage(
        BatchBaseline(2), "*", target=1, ablation=ablation, visualizer=None, attribution=False
    )
    loader = DataLoader(TensorDataset(x, target, answer), batch_size=50)
    trainer = paper_trainer(callback, precision="64-true" if prepared else "32-true")
    if prepared:  # the data set holds half of what the model is for
        loader = DataLoader(TensorDataset(x / 2, target, answer), batch_size=50)
        model.on_before_batch_transfer = doubled
    trainer.validate(model, loader, verbose=False)
    assert callback.report is not None
    return model, callback.report, callback.report.studies["ablation"]


def test_a_study_costs_few_calls_and_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, report, found = validated()
    calls, samples = len(model.samples), sum(model.samples)
    forwards = found.numbers["forwards"]
    monkeypatch.setattr(Together, "_side_by_side", failing)
    slow_model, slow_report, slow_found = validated()
    for name in ("ablation", "ablation_control", "ablation_advantage", "ablation_shared"):
        numbers = report.column(name)
        assert np.isfinite(numbers).any()
        np.testing.assert_allclose(numbers, slow_report.column(name), rtol=0, atol=1e-6)
    assert sum("one set at a time" in note for note in slow_found.notes) == 3
    assert not [note for note in found.notes if "one set at a time" in note]
    # With 64 samples in a chunk four sets go side by side.
    assert slow_found.numbers["forwards"] == forwards
    assert calls < len(slow_model.samples) / 2.2  # one of them checks each chunk
    assert samples < 1.6 * forwards


def assert_same_ablation(found: NeuronReport, expected: NeuronReport, *, atol: float) -> None:
    assert np.isfinite(expected.column("ablation")).any()
    for name in ("ablation", "ablation_control", "ablation_advantage", "ablation_shared"):
        np.testing.assert_allclose(found.column(name), expected.column(name), rtol=0, atol=atol)


def test_a_model_that_writes_into_its_inputs_gets_them_fresh_each_time() -> None:
    _, report, _ = validated()
    _, again, found = validated(writes=True)
    assert_same_ablation(again, report, atol=1e-6)
    assert not [note for note in found.notes if "one set at a time" in note]


def test_no_layer_is_begun_once_the_time_is_over() -> None:
    model, _, found = validated(time_budget_s=1e-9)
    assert found.numbers["forwards"] == 0
    assert sum("not finished within its share" in note for note in found.notes) == 3
    assert sum(model.samples) < 2000  # validated, and heard untouched


def doubled(batch: list[Tensor], dataloader_idx: int) -> list[Tensor]:
    return [2 * batch[0], *batch[1:]]


def test_samples_are_run_again_as_lightning_prepares_them() -> None:
    _, report, _ = validated()
    _, again, _ = validated(prepared=True)
    assert_same_ablation(again, report, atol=1e-5)


def failing(*_: Any) -> Iterator[Tensor]:
    raise ValueError("not today")
    yield


def test_what_it_costs_is_said_beforehand_and_bounded(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="lightning_neurocorr"):
        _, _, found = validated()
    (said,) = [record.message for record in caplog.records if "forwards" in record.message]
    most = int(said.split("up to ")[1].split(" ")[0].replace(",", ""))
    sets = 2 * (1 + 4) + 16 + 2 * 4
    assert most % (3 * sets) == 0
    assert found.numbers["forwards"] <= most
    bound = 2 * sets * 64 * 3 + 1000
    _, _, bounded = validated(max_forwards=bound)
    assert bound < most
    assert 0 < bounded.numbers["forwards"] < min(bound, found.numbers["forwards"])
    assert [note for note in bounded.notes if "Up to 68 samples per group were taken" in note]
    _, _, least = validated(max_forwards=2 * sets * 64)
    assert 0 < least.numbers["forwards"] <= 2 * sets * 64
    assert sum("(`max_forwards`)" in note for note in least.notes) == 3


def test_the_extent_of_a_study() -> None:
    settings = Ablation()
    assert settings.most_sets == 4 * 21 + 16 + 2 * 20
    assert extent(settings, 3) == (3, 512, 3 * 2 * 140 * 512)
    assert extent(settings, 13) == (13, 512, 13 * 2 * 140 * 512)
    assert extent(settings, 54) == (54, 132, 54 * 2 * 140 * 132)
    assert extent(settings, 500) == (111, 64, 111 * 2 * 140 * 64)
    assert extent(settings, 0) == (0, 512, 0)
    with pytest.raises(ValueError, match="`max_forwards` to be a whole number of at least 17,920"):
        Ablation(max_forwards=17_919)
