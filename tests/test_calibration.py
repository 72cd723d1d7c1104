"""What is called significant where nothing is to be found, and where classes confound."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import cells_of

from lightning_neurocorr import functional as F
from lightning_neurocorr import verdict
from lightning_neurocorr.columns import correlation_columns
from lightning_neurocorr.metric import NeuronAdvantageCorrelation
from lightning_neurocorr.samples import folds


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
    return float(np.mean([(F.adjust_p_values(row) <= verdict.ALPHA).any() for row in p]))


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
        encoding = np.flatnonzero(verdict.encodes(found))
        right += int((encoding < planted).sum())
        total += len(encoding)
        by_class = verdict.associated(found) & verdict.class_explains(found)
        assert by_class[planted : planted + detectors].sum() > 20
    assert right >= 0.95 * total
    assert right >= 0.9 * 4 * planted
