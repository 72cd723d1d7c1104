"""The placebo: the baseline's answers dealt out anew within classes, and what they earn."""

from __future__ import annotations

import json
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_neurocorr import (
    BatchBaseline,
    NeuronAdvantage,
    NeuronReport,
    PlaceboCounts,
    TableBaseline,
    compare,
)
from lightning_neurocorr.functional.placebo import Placebo, shuffled_within_class
from lightning_neurocorr.show.markdown import escape as markdown_escape
from lightning_neurocorr.show.markdown import markdown
from lightning_neurocorr.show.sheets import contact_sheet
from lightning_neurocorr.studies import placebo as against_placebo
from lightning_neurocorr.studies.placebo import AgainstPlacebo
from tests.full_report import full_report
from tests.paper_model import fit, paper_loader, paper_trainer, watch


def answers_of(n: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets of unequal classes, and answers that are wrong more often in later classes."""
    target = torch.randint(0, classes, (n,)).minimum(torch.randint(0, classes, (n,)))
    wrong = torch.rand(n) < (target + 1) / (2 * classes)
    other = (target + torch.randint(1, classes, (n,))) % classes
    return torch.where(wrong, other, target), target


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_in_every_class_the_answers_stay_the_same(classes: int) -> None:
    answers, target = answers_of(3000, classes)
    dealt = shuffled_within_class(answers, target, torch.arange(3000), seed=1)
    before = sorted(zip(target.tolist(), answers.tolist(), strict=True))
    assert sorted(zip(target.tolist(), dealt.tolist(), strict=True)) == before
    assert not torch.equal(dealt, answers)


def test_who_gets_which_depends_on_positions_and_seed_only() -> None:
    answers, target = answers_of(500, 5)
    position = torch.randperm(10_000)[:500]
    dealt = shuffled_within_class(answers, target, position, seed=3)
    order = torch.randperm(500)
    again = shuffled_within_class(answers[order], target[order], position[order], seed=3)
    assert torch.equal(again, dealt[order])
    assert not torch.equal(shuffled_within_class(answers, target, position, seed=4), dealt)


def test_the_order_of_the_data_set_leaves_no_trace() -> None:
    """The baseline is wrong in the second half of every class; the placebo is wrong anywhere."""
    n = 4000
    target = torch.arange(n) % 4
    late = torch.arange(n) >= n // 2
    answers = torch.where(late, (target + 1) % 4, target)
    z = []
    for seed in range(100):
        wrong = shuffled_within_class(answers, target, torch.arange(n), seed) != target
        counts = torch.bincount(target[wrong & late], minlength=4).double()
        # Of 1,000 samples of a class 500 are late and 500 wrong: hypergeometric.
        z += ((counts - 250) / (1000 * 0.25 * 0.25 * 1000 / 999) ** 0.5).tolist()
    assert abs(np.mean(z)) < 4 / len(z) ** 0.5
    assert 0.85 < np.std(z) < 1.15


@pytest.mark.parametrize("settings", [{"draws": 0}, {"draws": True}, {"seed": -1}])
def test_settings_out_of_range_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"Expected `(draws|seed)` to be a whole number of at"):
        Placebo(**settings)
    with pytest.raises(ValueError, match="`every_n_validations` to be a whole number of"):
        Placebo(every_n_validations=0)


class Small(nn.Module):
    """A layer of ten neurons that go with a class each, and a head that is often wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(6, 10), nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.hidden(x).relu())


def small_case(n: int = 900) -> tuple[Small, DataLoader[Any], torch.Tensor]:
    """A model, a loader and answers of a baseline that is wrong where the first input is low."""
    torch.manual_seed(0)
    x = torch.randn(n, 6)
    target = x[:, :3].argmax(1)
    model = Small()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), target).backward()
        optimizer.step()
    answers = torch.where(x[:, 3] < -0.3, (target + 1) % 3, target)
    return model.eval(), DataLoader(TensorDataset(x, target), batch_size=70), answers


@pytest.mark.parametrize("ids", [None, 2], ids=["positions", "ids"])
def test_a_report_counts_what_a_run_against_each_shuffle_calls(
    monkeypatch: pytest.MonkeyPatch, ids: int | None
) -> None:
    """By rules that call about half of all neurons: the claims' own call hardly any."""
    lax = {
        "encodes": lambda columns: columns["q_baseline_wrong"] < 0.7,
        "used": lambda columns: columns["attribution_contrast"] > 0,
    }
    monkeypatch.setattr(against_placebo, "_claims", lambda _: lax)
    model, loader, answers = small_case()
    x, target = loader.dataset.tensors  # type: ignore[attr-defined]
    named = TensorDataset(x, target, 7 * torch.randperm(len(target)))
    options: dict[str, Any] = {"target": 1, "sample_id": ids}
    settings = Placebo(draws=3, seed=4)
    loader = DataLoader(named, batch_size=70)
    report = compare(model, loader, TableBaseline(answers), placebo=settings, **options)
    expected: dict[str, list[int]] = {"encodes": [], "used": []}
    for seed in settings.seeds:
        dealt = shuffled_within_class(answers, target, torch.arange(len(target)), seed)
        alone = compare(model, loader, TableBaseline(dealt), **options)
        for claim, rule in lax.items():
            expected[claim].append(int(rule(alone.columns).sum()))
    assert report.placebo.neurons == 13
    assert report.placebo.seeds == (4, 5, 6)
    assert {claim: list(counts) for claim, counts in report.placebo.called.items()} == expected
    assert len({*expected["encodes"], *expected["used"]}) > 2, "the rules are not lax"


def test_without_it_there_is_none_and_the_rest_is_the_same() -> None:
    model, loader, answers = small_case(300)
    plain = compare(model, loader, TableBaseline(answers), placebo=False)
    tried = compare(model, loader, TableBaseline(answers), placebo=True)
    assert plain.placebo == PlaceboCounts()
    assert tried.placebo.draws == 3
    for name, column in plain.columns.items():
        np.testing.assert_array_equal(column, tried.columns[name])


def test_the_callback_tries_it_at_the_end_of_a_run_and_when_it_is_due() -> None:
    callback = watch(placebo=Placebo(draws=2))
    fit(callback, max_epochs=2)
    assert callback.report is not None
    assert callback.report.placebo.draws == 2
    often = watch(placebo=Placebo(draws=1, every_n_validations=1))
    seen = []
    with patch.object(AgainstPlacebo, "counts", lambda *_: seen.append(1) or PlaceboCounts()):
        fit(often, max_epochs=3)
    assert len(seen) == 3


def test_several_loaders_are_one_validation() -> None:
    """Batches never mix loaders, and the samples of each find their answers again."""
    model, loader, answers = small_case()
    x, target = loader.dataset.tensors  # type: ignore[attr-defined]
    whole = TensorDataset(x, target, answers)
    parts = [Subset(whole, range(150)), Subset(whole, range(150, 900))]

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x)

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self(batch[0])

    found = []
    for loaders in ([DataLoader(part, 70) for part in parts], [DataLoader(whole, 70)]):
        callback = NeuronAdvantage(
            BatchBaseline(2), target=1, visualizer=None, placebo=Placebo(draws=2)
        )
        paper_trainer(callback).validate(Module(), loaders, verbose=False)
        assert callback.report is not None
        found.append(callback.report.placebo)
    assert found[0].draws == 2
    assert found[0] == found[1]


def test_every_view_says_it_in_a_sentence(tmp_path: Path) -> None:
    report = full_report()
    sentence = report.placebo.sentence
    assert sentence == (
        "Placebo: a baseline as good as this one, but right and wrong at random within each class. "
        'Against it (2 draws), this many of 5 neurons get the verdict "encodes the advantage": 0 '
        'and 1; "is used": 2 and 0. Whether a neuron is "needed" was not tried.'
    )
    for view in (str(report), str(report.top(2)), str(report.top(2)[:1]), str(report.shown(2))):
        assert sentence in view
    html = (report._repr_html_(), report.top(1)._repr_html_())
    assert all(escape(sentence) in view for view in html)
    assert markdown_escape(sentence) in markdown(report)
    with_it = contact_sheet(report, "head")
    without = contact_sheet(replace(report, placebo=PlaceboCounts()), "head")
    assert len(with_it) > len(without)
    loaded = NeuronReport.load(report.save(tmp_path / "report.npz"))
    assert loaded.placebo == report.placebo


def test_many_draws_are_said_as_a_range() -> None:
    counts = PlaceboCounts(9, {"encodes": (0, 3, 1, 1, 0, 2, 1)}, tuple(range(7)))
    assert "(7 draws), this many of 9 neurons" in counts.sentence
    assert '"encodes the advantage": 0 to 3.' in counts.sentence
    assert (
        'Against it, this many of 9 neurons get the verdict "is used": 3.'
        in PlaceboCounts(9, {"used": (3,)}, (0,)).sentence
    )
    assert PlaceboCounts().sentence == ""


@pytest.mark.parametrize(
    "wrong",
    [
        {"called": {"encodes": (1,)}, "seeds": (1, 2)},
        {"called": {"wins": (1,)}, "seeds": (1,)},
        {"called": {"used": (-1,)}, "seeds": (1,)},
        {"called": {"used": (1.5,)}, "seeds": (1,)},
    ],
)
def test_counts_that_do_not_fit_together_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Expected counts of neurons by claim"):
        PlaceboCounts(3, **wrong)


def test_a_file_of_before_has_no_placebo(tmp_path: Path) -> None:
    path = full_report().save(tmp_path / "report.npz")
    with np.load(path) as archive:
        arrays = dict(archive)
    meta = json.loads(arrays["meta"].tobytes())
    del meta["placebo"]
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    np.savez(path, **arrays)
    assert NeuronReport.load(path).placebo == PlaceboCounts()


def test_samples_that_cannot_be_run_again_are_refused_before_the_validation() -> None:
    model, loader, answers = small_case(100)
    x, target = loader.dataset.tensors  # type: ignore[attr-defined]
    asked: list[int] = []

    def baseline(batch: Any) -> torch.Tensor:
        asked.append(1)
        return answers

    with pytest.raises(ValueError, match=r"sequential loader over a map-style.*placebo=False"):
        compare(model, [(x, target)], baseline, placebo=True)
    assert not asked


@pytest.mark.filterwarnings("ignore:.*shuffling enabled")
def test_the_callback_refuses_it_at_the_rehearsal_too() -> None:
    with pytest.raises(ValueError, match=r"sequential loader over a map-style.*placebo=False"):
        fit(watch(placebo=True), loader=DataLoader(paper_loader().dataset, 10, shuffle=True))


def test_without_classes_it_is_refused() -> None:
    model, loader, _ = small_case(100)
    with pytest.raises(ValueError, match="Expected `placebo` to be False where `advantage` is not"):
        compare(model, loader, lambda batch: batch[0], placebo=True, advantage=lambda p, b, t: t)
