"""Which samples are attributed: by hash, class and outcome, whatever the batches are."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from lightning_neurocorr import Attribution, BatchBaseline, NeuronAdvantage, Placebo
from lightning_neurocorr.attribution import (
    SampleChoice,
    balanced,
    choose_samples,
    match_by_class,
    settings,
)
from lightning_neurocorr.functional import BOTH, NEITHER, ONLY_BASELINE, ONLY_MODEL
from lightning_neurocorr.validation.attributing import Attributing
from tests.helpers import seeded
from tests.paper_model import paper_trainer


def groups(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 4, (n,), generator=generator)
    outcome = torch.randint(0, 4, (n,), generator=generator)
    return target, outcome, torch.rand(n, generator=generator)


def test_partners_share_the_class_and_are_used_once() -> None:
    target, outcome, draw = groups(200)
    partners = match_by_class(target, outcome, draw)
    advantage = (outcome == ONLY_MODEL).nonzero().flatten()
    assert len(partners) == len(advantage)
    used = partners[partners >= 0].tolist()
    assert len(set(used)) == len(used)
    for i, j in zip(advantage.tolist(), partners.tolist(), strict=True):
        assert j < 0 or (target[i] == target[j] and outcome[j] == BOTH)
    for c in range(4):
        of_class = target[advantage] == c
        available = int(((outcome == BOTH) & (target == c)).sum())
        assert int((partners[of_class] >= 0).sum()) == min(int(of_class.sum()), available)


def test_partners_follow_the_order_of_the_draw() -> None:
    target = torch.zeros(4, dtype=torch.long)
    outcome = torch.tensor([ONLY_MODEL, BOTH, BOTH, ONLY_BASELINE])
    assert match_by_class(target, outcome).tolist() == [1]
    assert match_by_class(target, outcome, torch.tensor([0.1, 0.9, 0.2, 0.0])).tolist() == [2]
    assert match_by_class(target, torch.full((4,), NEITHER)).tolist() == []


def test_a_study_takes_the_lowest_draws_in_any_order() -> None:
    target, outcome, draw = groups(300)
    rows, group, givers = choose_samples(target, outcome, draw, room=20)
    chosen = {(int(i), int(g)) for i, g in zip(rows, group, strict=True)}
    order = torch.randperm(300)
    again, group, _ = choose_samples(target[order], outcome[order], draw[order], room=20)
    assert {(int(order[i]), int(g)) for i, g in zip(again, group, strict=True)} == chosen
    advantage = [i for i, g in chosen if g == 0]
    eligible = [i for i in range(300) if outcome[i] == ONLY_MODEL]
    assert sorted(advantage) == sorted(sorted(eligible, key=lambda i: draw[i])[:20])
    assert all(outcome[i] == BOTH for i, g in chosen if g == 1)
    # Each gives its answer to itself and to one partner at most, of its class.
    shared = rows[20:].tolist()
    assert givers[:20].tolist() == rows[:20].tolist()
    assert len(set(givers[20:].tolist())) == len(shared)
    for i, giver in zip(shared, givers[20:].tolist(), strict=True):
        assert giver in advantage
        assert target[giver] == target[i]


# --- a stream of batches -------------------------------------------------------------------------


def table(target: Tensor, outcome: Tensor) -> Tensor:
    """Samples per class and outcome group by a loop, ``(C, 4)``."""
    counts = torch.zeros(int(target.max()) + 1, 4, dtype=torch.long)
    for c, g in zip(target.tolist(), outcome.tolist(), strict=True):
        counts[c, g] += 1
    return counts


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("size", [1, 7, 64, 3000])
def test_the_choice_depends_on_each_sample_alone(size: int, known: bool) -> None:
    target, outcome, draw = groups(3000)
    seen = table(target, outcome) if known else None
    settings = Attribution(max_samples=100)
    choose, chosen = SampleChoice(settings, 3000, seen), []
    for part in torch.randperm(3000).split(size):
        rows, group, score = choose(target[part], outcome[part], draw[part])
        assert (score < 1).all()
        chosen += [(int(part[i]), int(g)) for i, g in zip(rows, group, strict=True)]
    whole = SampleChoice(settings, 3000, seen)
    expected = {
        (i, g)
        for i in range(3000)
        for g, of, rate in (
            (0, ONLY_MODEL, whole.rate),
            (1, BOTH, float(whole.shared_rates[min(target[i], len(whole.shared_rates) - 1)])),
        )
        if outcome[i] == of and draw[i] < rate
    }
    assert len(chosen) == len(set(chosen))
    assert set(chosen) == expected
    if known:
        assert 70 < sum(g == 0 for _, g in chosen) < 130
        assert 60 < sum(g == 1 for _, g in chosen) < 140


def test_known_classes_are_sampled_as_they_are_among_the_wins() -> None:
    """Class 0 holds most of the wins, class 1 most of what both know."""
    counts = torch.tensor([[100, 900, 0, 0], [9000, 100, 0, 0], [0, 0, 5, 5]])
    choose = SampleChoice(Attribution(max_samples=500), 10_010, counts)
    wins, shared = counts[:, ONLY_MODEL] * choose.rate, counts[:, BOTH] * choose.shared_rates[:3]
    assert choose.rate == 0.5
    torch.testing.assert_close(wins, torch.tensor([450.0, 50, 0]))
    # All 100 of class 0 are taken, 450 were wanted; a class without samples costs nothing.
    torch.testing.assert_close(shared, torch.tensor([100.0, 50, 0]).double(), rtol=0.02, atol=0)
    rows, _, _ = choose(torch.tensor([7, 7]), torch.tensor([BOTH, BOTH]), torch.tensor([0.04, 0.2]))
    assert rows.tolist() == [0]  # a class beyond the table is taken at the rate of all


class Told(nn.Module):
    """Logits that are right on some samples, from noisy neurons that know the class."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x).tanh()) + 4 * x[:, :4]


def report_of(size: int, validations: int) -> dict[str, Tensor]:
    """The *used* columns of a validation set of 200, with a known past if there is one."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 4, (200,), generator=generator)
    x = torch.randn(200, 6, generator=generator) + 2 * torch.eye(4, 6)[target]
    wrong = torch.rand(200, generator=generator) < torch.tensor([0.1, 0.3, 0.5, 0.7])[target]
    answer = torch.where(wrong, (target + 1) % 4, target)
    torch.manual_seed(1)
    model = Told()
    callback = NeuronAdvantage(
        BatchBaseline(2), "*", target=1, visualizer=None, attribution=Attribution(max_samples=20)
    )
    loader = DataLoader(TensorDataset(x, target, answer), batch_size=size)
    for _ in range(validations):
        paper_trainer(callback).validate(Plain(model), loader, verbose=False)
    report = callback.report
    assert report is not None
    return {name: report.column(name) for name in ("attribution", "attribution_contrast", "r")}


class Plain(pl.LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def validation_step(self, batch: list[Tensor]) -> None:
        self(batch[0])


@pytest.mark.parametrize("validations", [1, 2])
def test_columns_are_the_same_for_every_batch_size(validations: int) -> None:
    expected = report_of(200, validations)
    assert np.isfinite(expected["attribution_contrast"]).all()
    for size in (1, 7, 64):
        for name, values in report_of(size, validations).items():
            np.testing.assert_allclose(values, expected[name], atol=1e-5, rtol=1e-5, err_msg=name)


# --- inside a fit, other validations follow ------------------------------------------------------


class Resting(Plain):
    """Trains at a rate of 0; ends the fit after ``last`` validations, which nothing says before."""

    def __init__(self, model: nn.Module, last: int) -> None:
        super().__init__(model)
        self.last = last

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return self(batch[0]).sum()

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.last -= 1
            self.trainer.should_stop = not self.last

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Unsized(IterableDataset[Any]):
    """Samples in their order, of which nobody says how many there are."""

    def __init__(self, dataset: TensorDataset) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        return (self.dataset[i] for i in range(len(self.dataset)))


class Reports(pl.Callback):
    """Keeps the report of every validation."""

    def __init__(self, of: NeuronAdvantage) -> None:
        self.of, self.seen = of, []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.seen.append(self.of.report)


def told(loader: Any, attribution: Attribution, stop: int | None, **options: Any) -> list[Any]:
    """The reports of a fit, which ends after ``stop`` validations; None is one `validate`."""
    torch.manual_seed(1)
    callback = NeuronAdvantage(
        BatchBaseline(2), "*", target=1, visualizer=None, attribution=attribution
    )
    reports = Reports(callback)
    trainer = paper_trainer(callback, reports, **options)
    module = Resting(Told(), stop or -1)
    if stop is None:
        trainer.validate(module, loader, verbose=False)
    else:
        trainer.fit(module, DataLoader(TensorDataset(torch.zeros(4, 6))), loader)
    return reports.seen


def labelled(n: int) -> TensorDataset:
    """Inputs, classes, and a baseline that is wrong about half of them."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 4, (n,), generator=generator)
    x = torch.randn(n, 6, generator=generator) + 3 * torch.eye(4, 6)[target]
    wrong = torch.rand(n, generator=generator) < 0.5
    answer = (target + wrong * torch.randint(1, 4, (n,), generator=generator)) % 4
    return TensorDataset(x, target, answer)


def same_numbers(one: Any, other: Any) -> None:
    for name in ("attribution", "attribution_contrast", "attribution_shared"):
        values, expected = one.column(name), other.column(name)
        assert np.isfinite(expected).all()
        np.testing.assert_allclose(values, expected, atol=1e-5, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("size", [23, 280])
@pytest.mark.parametrize("kind", ["sized", "unsized", "cut short"])
def test_validations_that_others_follow_take_a_share(
    monkeypatch: pytest.MonkeyPatch, size: int, kind: str
) -> None:
    """As many as `Attribution(max_samples=...)` would take of the samples that were seen."""
    monkeypatch.setattr(settings, "_FEWEST", 5)
    data, share = labelled(280 if kind == "sized" else 560), Attribution(max_share=0.2)
    whole = DataLoader(Subset(data, range(280)), 280)
    loader, options = DataLoader(data, size), {"max_epochs": 9}
    if kind == "unsized":
        loader = DataLoader(Unsized(Subset(data, range(280))), size)  # type: ignore[arg-type]
    if kind == "cut short":
        options["limit_val_batches"] = 280 // size
        whole = DataLoader(Subset(data, range(280 // size * size)), 280)
    expected = int(0.2 * len(whole.dataset) / 2)  # type: ignore[arg-type]
    (few,) = told(loader, share, stop=1, **options)
    wins = few.outcomes.only_model
    said = few.provenance["attribution"]
    assert wins > 2 * expected
    assert said.startswith(f"{expected} of {wins} samples that only the model gets right, ")
    assert said.endswith("trainer.validate takes more)")
    same_numbers(few, told(whole, Attribution(max_samples=expected), stop=None)[0])
    # The last validation of a fit takes all, where the trainer knows that it is the last.
    first, second = told(loader, share, stop=3, **{**options, "max_epochs": 2})
    assert first.provenance["attribution"] == said
    assert second.provenance["attribution"].startswith(f"{wins} of {wins} samples")
    assert "trainer.validate" not in second.provenance["attribution"]
    every = told(whole, Attribution(), stop=None)[0]
    np.testing.assert_allclose(
        second.column("attribution"), every.column("attribution"), atol=1e-5, rtol=1e-5
    )


def test_small_sets_are_attributed_whole() -> None:
    (report,) = told(DataLoader(labelled(300), 50), Attribution(), stop=1, max_epochs=9)
    wins = report.outcomes.only_model
    assert wins > 100
    assert report.provenance["attribution"].startswith(f"{wins} of {wins} samples")
    assert "trainer.validate" not in report.provenance["attribution"]


def test_a_placebo_takes_as_many_as_the_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "_FEWEST", 5)
    taken: list[int] = []
    finish = Attributing.finish

    def counted(self: Attributing, *arguments: Any) -> Any:
        found = finish(self, *arguments)
        taken.append(found.taken.wins)
        return found

    monkeypatch.setattr(Attributing, "finish", counted)
    callback = NeuronAdvantage(
        BatchBaseline(2), "*", target=1, visualizer=None,
        attribution=Attribution(max_share=0.2), placebo=Placebo(draws=2),
    )  # fmt: skip
    loader, train = DataLoader(labelled(280), 40), DataLoader(TensorDataset(torch.zeros(4, 6)))
    trainer = paper_trainer(callback, max_epochs=9, num_sanity_val_steps=0)
    trainer.fit(Resting(Told(), 1), train, loader)
    assert taken == [28, 28, 28]
    taken.clear()
    trainer.validate(Resting(Told(), 1), loader, verbose=False)
    assert min(taken) > 100


def test_balanced_weights_give_both_directions_of_two_classes_the_same() -> None:
    target, rival = torch.randint(0, 5, (2, 400), generator=seeded())
    rival[::7] = -1
    rival[(target == 2) & (rival == 3)] = 4  # 3 is taken for 2, but 2 never for 3
    weight = balanced(target, rival)
    for a in range(5):
        for b in range(5):
            one, other = ((target == x) & (rival == y) for x, y in ((a, b), (b, a)))
            n, m = int(one.sum()), int(other.sum())
            expected = n * m / (n + m) if n and m and a != b else 0
            assert float(weight[one].sum()) == pytest.approx(expected), (a, b)
            assert len(weight[one].unique()) <= 1
    assert (weight[rival < 0] == 0).all()
    assert (weight[(target == 3) & (rival == 2)] == 0).all()


def test_settings() -> None:
    assert Attribution().limit(548) == Attribution().limit(4266) == 256
    assert Attribution(100).limit(548) == 100
    assert Attribution().limit(10_000) == 600
    assert Attribution(4096).limit(50_000) == 3000
    assert Attribution().limit(10**6) == Attribution().limit() == 1024
    assert SampleChoice(Attribution(max_samples=100), 800).rate == 1
    assert SampleChoice(Attribution(max_samples=100), 800).wanted == (100, 200)
    assert SampleChoice(Attribution(max_samples=100), 800, processes=3).room == (67, 134)
    assert Attribution().parts(1000) == 64
    assert Attribution().parts(200_000) == 41
    assert Attribution().parts(10**6) == 16
    assert SampleChoice(Attribution(max_samples=100)).rate == 1
    seen = torch.tensor([[0, 400, 0, 0]])
    assert SampleChoice(Attribution(max_samples=100), seen=seen).rate == 0.25
    with pytest.raises(ValueError, match="`max_samples` to be at least 1, but got 0"):
        Attribution(max_samples=0)
    with pytest.raises(ValueError, match=r"`max_share` to be in \(0, 1\], but got 2"):
        Attribution(max_share=2)
    with pytest.raises(ValueError, match="`method` to be 'gradient' or 'path', but got 'saliency'"):
        Attribution(method="saliency")
