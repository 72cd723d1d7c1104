"""What is called significant where nothing is to be found, and where classes confound."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_neurocorr import Ablation, BatchBaseline, NeuronReport, compare
from lightning_neurocorr import functional as F
from lightning_neurocorr.functional.hashing import folds
from lightning_neurocorr.metric import NeuronAdvantageCorrelation
from lightning_neurocorr.report import rules
from lightning_neurocorr.validation.columns import correlation_columns
from tests.helpers import cells_of


def columns_of(
    activations: torch.Tensor,
    advantage: torch.Tensor,
    target: torch.Tensor | None = None,
    groups: torch.Tensor | None = None,
) -> dict[str, np.ndarray]:
    """The columns of one layer, as a validation computes them."""
    metric = NeuronAdvantageCorrelation(activations.shape[1], folds=2, count_active=True)
    halves_of = folds(torch.arange(len(advantage)))
    for part in torch.arange(len(advantage)).split(500):
        metric.update(activations[part], advantage[part], fold=halves_of[part])
    total, halves = metric.moments()
    if groups is None:
        groups = torch.where(advantage == 0, 0, torch.where(advantage > 0, 1, 2))
    known = target is not None
    classes = target if known else torch.zeros(len(advantage), dtype=torch.long)
    cells = cells_of(activations, advantage, classes, groups, halves_of, by_class=known)
    active = float((advantage != 0).double().mean())
    return correlation_columns(total, halves, active, cells=cells)


def draw(kind: str, n: int, d: int) -> torch.Tensor:
    z = torch.randn(n, d)
    if kind == "relu":
        return (z - 1).relu()
    if kind == "sparse relu":
        return (z - 2).relu()
    if kind == "sparse":
        return (torch.rand(n, d) < 0.005) * torch.randn(n, d).mul(0.5).exp()
    return z


def permuted_r(activations: torch.Tensor, advantage: torch.Tensor, runs: int) -> np.ndarray:
    """r of every neuron with ``runs`` shuffles of the advantage, ``(runs, D)``."""
    n = len(advantage)
    x = activations.double()
    x = (x - x.mean(0)) / x.std(0, unbiased=False)
    shuffled = torch.stack([advantage[torch.randperm(n)] for _ in range(runs)])
    a = (shuffled - advantage.mean()) / advantage.std(unbiased=False)
    return (a @ x / n).numpy()


def false_rate(r: np.ndarray, testable: np.ndarray, n: int) -> float:
    """Share of runs in which a neuron is called significant."""
    p = np.where(testable, F.p_value(r, n), np.nan)
    return float(np.mean([(F.adjust_p_values(row) <= rules.ALPHA).any() for row in p]))


@pytest.mark.parametrize("kind", ["dense", "relu", "sparse relu", "sparse"])
@pytest.mark.parametrize("rates", [(0.05, 0.10), (0.005, 0.01)], ids=["common", "rare"])
def test_a_permuted_advantage_is_rarely_called_significant(
    kind: str, rates: tuple[float, float]
) -> None:
    n, d = 2000, 60
    activations = draw(kind, n, d)
    u = torch.rand(n)
    advantage = (u < rates[1]).double() - (u > 1 - rates[0]).double()
    found = columns_of(activations, advantage)
    testable = ~np.isnan(found["p_value"])
    assert false_rate(permuted_r(activations, advantage, 1000), testable, n) <= 0.07


def test_without_the_guard_sparse_neurons_would_be_called_significant() -> None:
    """The guard is what keeps the level: the same neurons, tested anyway, fail it."""
    n = 2000
    activations = draw("sparse", n, 200)
    u = torch.rand(n)
    advantage = (u < 0.01).double() - (u > 0.995).double()
    tested = np.ones(200, dtype=bool)
    assert false_rate(permuted_r(activations, advantage, 200), tested, n) > 0.5


def test_planted_neurons_are_what_is_called_encoding_where_classes_confound() -> None:
    """Ten classes on which the baseline is unequally weak: detectors of class are not planted."""
    planted, detectors, empty = 20, 200, 280
    right = total = 0
    for run in range(4):
        torch.manual_seed(run)
        n = 10_000
        target = torch.randint(0, 10, (n,))
        weakness = (0.25 + 0.15 * torch.randn(10)).clamp(0.02, 0.9)
        baseline_right = torch.rand(n) > weakness[target]
        model_right = torch.rand(n) < 0.8  # or `neither` is too few to tell
        advantage = model_right.double() - baseline_right.double()
        preferred = torch.randint(0, 10, (detectors,))
        activations = torch.cat(
            [
                0.25 * advantage[:, None].float() + torch.randn(n, planted),
                2.0 * (target[:, None] == preferred) + torch.randn(n, detectors),
                torch.randn(n, empty),
            ],
            1,
        )
        groups = F.outcome_groups(model_right, baseline_right)
        found = columns_of(activations, advantage, target, groups)
        encoding = np.flatnonzero(rules.encodes(found))
        right += int((encoding < planted).sum())
        total += len(encoding)
        by_class = rules.associated(found) & rules.class_explains(found)
        assert by_class[planted : planted + detectors].sum() > 20
    assert right >= 0.95 * total
    assert right >= 0.9 * 4 * planted


# --- used and needed: a placebo is right and wrong at random within each class --------------------


class Skewed(torch.nn.Module):
    """Classes of unequal size and difficulty; each neuron says something of several."""

    def __init__(self, classes: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.hidden, self.head = torch.nn.Linear(12, 40), torch.nn.Linear(40, classes)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.hidden(x).relu())


def against_placebo(classes: int, seed: int, ablation: Ablation | None = None) -> NeuronReport:
    """A report on 2,400 samples whose baseline fails by class, but at random within it."""
    generator = torch.Generator().manual_seed(seed)
    model = Skewed(classes, seed)
    x = torch.randn(2400, 12, generator=generator) * torch.rand(2400, 1, generator=generator).exp()
    with torch.no_grad():
        said = model(x).argmax(1)
    noise = torch.rand(2, 2400, generator=generator)
    which = torch.rand(classes, generator=generator)
    target = torch.where(noise[0] < 0.8, said, (said + 1) % classes)
    wrong = (target + 1 + (noise[1] * 100).long() % (classes - 1)) % classes
    answer = torch.where(noise[1] < 0.1 + 0.5 * which[target], wrong, target)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, target, answer), batch_size=400
    )
    return compare(
        model, loader, BatchBaseline(2), "hidden", target=1, visualizer=None, ablation=ablation
    )


@pytest.mark.parametrize("classes", [2, 6, 60])
def test_against_a_placebo_hardly_any_neuron_is_called_used(classes: int) -> None:
    called = attributed = total = 0
    for seed in range(8):
        columns = against_placebo(classes, seed).columns
        called += int(rules.used(columns).sum())
        attributed += int(rules.depends(columns).sum())
        total += len(columns["r"])
    assert called <= 0.02 * total
    assert attributed >= 0.15 * total  # by attribution alone


def test_against_a_placebo_ablation_costs_both_groups_the_same() -> None:
    """The difference in differences is 0 on average, and hardly any neuron is called needed."""
    settings = Ablation(by="attribution", sizes=(), singles=4, random_sets=20)
    found, called = [], 0
    for seed in range(100, 116):
        columns = against_placebo(6, seed, settings).columns
        lost = columns["ablation"][np.isfinite(columns["ablation"])]
        found.append(lost)
        called += int(rules.needed(columns).sum())
    runs = np.array([lost.mean() for lost in found])
    error = runs.std(ddof=1) / len(runs) ** 0.5
    assert abs(runs.mean()) < 3 * error
    assert called <= 0.05 * sum(map(len, found))
