"""Which samples are attributed: by hash, class and outcome, whatever the batches are."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import Attribution, BatchBaseline, NeuronAdvantage
from lightning_neurocorr.activations import first_tensor as logits_of
from lightning_neurocorr.attribution import (
    SampleChoice,
    balanced,
    choose_samples,
    match_by_class,
)
from lightning_neurocorr.functional import BOTH, NEITHER, ONLY_BASELINE, ONLY_MODEL
from lightning_neurocorr.validation.rerun import Rerun
from lightning_neurocorr.validation.rerun.arguments import Axis
from lightning_neurocorr.validation.waiting import Piece, Waiting
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


@pytest.mark.parametrize("size", [1, 30, 1000])
def test_a_group_far_larger_than_expected_is_thinned_as_if_from_the_beginning(
    size: int,
) -> None:
    """The kept ones have the lowest draws, whatever the batches; and no group outgrows its room."""
    target, draw = torch.ones(1000, dtype=torch.long), torch.rand(1000, generator=seeded()) * 0.02
    outcome = torch.where(torch.arange(1000) % 3 > 0, ONLY_MODEL, BOTH)
    few = torch.tensor([[0, 0, 5, 5], [100, 5, 0, 0]])
    choice = SampleChoice(Attribution(max_samples=100), 1000, few)
    waiting = Waiting(choice, 10**9, Rerun(nn.Identity(), logits_of))
    waiting.rerun.layout = (Axis(0),)
    for part in torch.arange(1000).split(size):
        rows, group, score = choice(target[part], outcome[part], draw[part])
        integers = torch.stack([part[rows], *[group] * 4], 1)
        waiting.add(Piece(((part[rows],), {}), part[rows], integers, score))
    kept = waiting.integers()[:, 0]
    scores = torch.where(outcome == ONLY_MODEL, draw / choice.rate, draw / choice.shared_rates[1])
    assert max(choice.scale) < 1
    below = scores < torch.tensor(choice.scale).double()[(outcome == BOTH).long()]
    assert set(kept.tolist()) == set(below.nonzero().flatten().tolist())
    assert torch.equal(torch.cat([piece.prediction for piece in waiting.pieces]), kept)
    for group in (ONLY_MODEL, BOTH):
        assert 0.7 * 200 < int((outcome[kept] == group).sum()) <= 200


@pytest.mark.parametrize("size", [1, 7, 64])
def test_inputs_stay_within_their_budget_whatever_the_batches(size: int) -> None:
    draw, ones = torch.rand(300, generator=seeded()), torch.ones(300, dtype=torch.long)
    choice = SampleChoice(Attribution(), 300)
    module = nn.Identity()
    waiting = Waiting(choice, 2 * 40 * 60, Rerun(module, logits_of))
    waiting.rerun.layout = (Axis(0), None)
    module.table = whole = nn.Parameter(torch.zeros(10**4))  # a weight does not count
    for part in torch.arange(300).split(size):
        rows, group, score = choice(ones[part], ONLY_MODEL * ones[part], draw[part])
        inputs = torch.zeros(len(rows), 8)  # 32 bytes and 8 of a prediction
        integers = torch.stack([part[rows], *[group] * 4], 1)
        waiting.add(Piece(((inputs, whole), {}), part[rows], integers, score))
    assert 0.7 * 60 < len(waiting.integers()) <= 60
    below = (draw < choice.scale[0]).nonzero().flatten()
    assert set(waiting.integers()[:, 0].tolist()) == set(below.tolist())


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
    assert Attribution().limit(2000) == 1024
    assert Attribution(4096).limit(10_000) == 1024
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
