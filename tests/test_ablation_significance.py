"""Whether a cost is an accident of the samples: against enumeration, and where there is none."""

import math
from collections.abc import Callable
from itertools import combinations, product

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neurocorr.ablation import Ablation, AblationSamples, significance, study
from lightning_neurocorr.ablation.significance import excess_p_values
from lightning_neurocorr.functional import BOTH, ONLY_MODEL, adjust_p_values
from lightning_neurocorr.report import rules
from tests.helpers import slow_fdr


def slow_t(lost: np.ndarray, advantage: set[int], stratum: list[int]) -> float:
    """Difference of means over its standard error; shared samples weigh as their stratum's wins."""
    first = [lost[i] for i in sorted(advantage)]
    pairs = []
    for i in range(len(lost)):
        if i not in advantage:
            same = [k for k in range(len(lost)) if stratum[k] == stratum[i]]
            wins = sum(k in advantage for k in same)
            pairs.append((lost[i], wins / (len(same) - wins)))
    total = sum(w for _, w in pairs)
    mean = sum(x * w for x, w in pairs) / total
    error = np.var(first, ddof=1) / len(first)
    error += sum(w**2 * (x - mean) ** 2 for x, w in pairs) / total**2
    return float((np.mean(first) - mean) / math.sqrt(error))


@pytest.mark.parametrize(("enough", "exact"), [(10**6, 0.1), (significance._ENOUGH, 0.3)])
def test_p_against_all_divisions_of_a_few_samples(monkeypatch, enough: int, exact: float) -> None:
    monkeypatch.setattr(significance, "_ENOUGH", enough)
    rng = np.random.default_rng(0)
    stratum, advantage = [0] * 6 + [1] * 5, {0, 1, 2, 6, 7}
    lost = rng.normal(size=(11, 4)) + 1.5 * np.isin(np.arange(11), list(advantage))[:, None]
    mask = np.isin(np.arange(11), list(advantage))
    found = excess_p_values(lost, mask, np.array(stratum), rounds=50_000)
    ways = list(product(combinations(range(6), 3), combinations(range(6, 11), 2)))
    for j in range(4):
        true = slow_t(lost[:, j], advantage, stratum)
        far = [slow_t(lost[:, j], {*a, *b}, stratum) >= true - 1e-9 for a, b in ways]
        assert found[j] == pytest.approx(np.mean(far), rel=exact)


def test_what_costs_advantage_samples_alone_and_what_costs_nothing() -> None:
    advantage = np.arange(100) < 30
    lost = np.stack([advantage * 2.0, np.zeros(100), np.ones(100), -1.0 * advantage], 1)
    p = excess_p_values(lost, advantage, np.arange(100) % 2)
    assert p.tolist() == [1e-4, 1.0, 1.0, 1.0]
    np.testing.assert_array_equal(p, excess_p_values(lost, advantage, np.arange(100) % 2))


def test_groups_too_small_to_tell() -> None:
    lost = np.random.default_rng(0).normal(size=(10, 2))
    for wins in (0, 1, 9, 10):
        assert np.isnan(excess_p_values(lost, np.arange(10) < wins, np.zeros(10, int))).all()
    none_shared = excess_p_values(lost, np.arange(10) < 5, np.arange(10))
    assert np.isnan(none_shared).all()  # each class is on one side only


NOISE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "normal": lambda z, _: z,
    "skewed to the right": lambda z, _: np.exp(1.2 * z),
    "skewed to the left": lambda z, _: -np.exp(1.2 * z),
    "advantage samples vary three times as much": lambda z, a: z * np.where(a, 3, 1)[:, None],
    "hardly ever anything but 0": lambda z, _: np.where(np.abs(z) > 2, z**3, 0.0),
}


@pytest.mark.parametrize("noise", NOISE)
def test_where_nothing_is_needed_hardly_any_run_finds_something(noise: str) -> None:
    """Neurons cost unequally (log-normal), samples go along, but advantage samples lose no more."""
    rng = np.random.default_rng(1)
    n, neurons, controls, runs, hits = 240, 8, 20, 200, 0
    advantage, classes = np.arange(n) < 40, 4
    for _ in range(runs):
        stratum = rng.integers(classes, size=n)
        z = 0.7 * rng.normal(size=(n, neurons + controls)) + 0.7 * rng.normal(size=(n, 1))
        size = np.exp(1.5 * rng.normal(size=neurons + controls))
        lost = NOISE[noise](z, advantage) * size + 0.3 * stratum[:, None]
        excess = lost[:, :neurons] - lost[:, neurons:].mean(1, keepdims=True)
        p = excess_p_values(excess, advantage, stratum, rounds=999, seed=int(rng.integers(1e9)))
        hits += np.nanmin(adjust_p_values(p)) <= 0.05
    assert hits <= 0.07 * runs


def test_a_study_of_shuffled_outcomes_calls_hardly_anything_needed() -> None:
    """A whole study of a network where who is right about a sample is drawn by lot."""
    torch.manual_seed(0)
    runs, called = 200, 0
    settings = Ablation(sizes=(), singles=4, random_sets=20)
    for run in range(runs):
        model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).requires_grad_(False)
        model[2].weight *= torch.randn(12).exp()  # a few neurons matter far more than the others
        x = torch.randn(120, 6)
        target = model(x).argmax(1)
        outcome = torch.where(torch.rand(120) < 0.4, ONLY_MODEL, BOTH)
        samples = AblationSamples([((x,), {})], [120], target, outcome, torch.arange(120) % 2)
        ranking = {fold: {"1": torch.randperm(12).tolist()} for fold in (0, 1)}
        found = study(model, {"1": model[1]}, samples, ranking, settings)
        called += any(is_needed(neuron) for neuron in found.neurons)
        if run < 5:
            q = [neuron.q for neuron in found.neurons]
            assert len(q) == len(set(ranking[0]["1"][:4] + ranking[1]["1"][:4]))
            assert all(math.isnan(value) or 0 < value <= 1 for value in q)
    assert called <= 0.07 * runs


def is_needed(neuron) -> bool:
    columns = {
        "r": 0.0,
        "ablation": neuron.effect.beyond,
        "ablation_control": neuron.control.beyond,
        "ablation_p": neuron.p,
        "ablation_q": neuron.q,
        "ablation_advantage": neuron.effect.advantage_accuracy,
        "ablation_shared": neuron.effect.shared_accuracy,
    }
    return bool(rules.needed(columns))


def test_one_neuron_of_many_that_carries_the_answer_is_needed() -> None:
    """Thirty are silenced in two layers; unit 0 of the first decides the advantage samples."""
    rng = torch.Generator().manual_seed(0)
    n = 300
    wins = torch.arange(n) % 3 == 0
    target = torch.randint(0, 2, (n,), generator=rng)
    sign = 2.0 * target - 1
    x = 0.1 * torch.randn(n, 30, generator=rng)
    x[:, 0] += sign * wins * 2
    x[:, 1] += sign * ~wins * 2
    model = nn.Sequential(nn.Identity(), nn.Identity(), nn.Linear(30, 2)).requires_grad_(False)
    model[2].weight[:] = torch.tensor([-1.0, 1.0])[:, None]
    model[2].bias.zero_()
    outcome = torch.where(wins, ONLY_MODEL, BOTH)
    samples = AblationSamples([((x,), {})], [n], target, outcome, (torch.arange(n) // 3) % 2)
    ranking = {fold: {layer: list(range(15)) for layer in "01"} for fold in (0, 1)}
    layers = {"0": model[0], "1": model[1]}
    settings = Ablation(sizes=(), singles=15, fill="zero")
    found = study(model, layers, samples, ranking, settings).neurons
    assert len(found) == 30
    assert [(n.layer, n.unit) for n in found if is_needed(n)] == [("0", 0), ("1", 0)]
    assert found[0].q == pytest.approx(30 * 1e-4 / 2)
    assert slow_fdr([1e-4, 1e-4] + [0.5] * 28)[0] == pytest.approx(found[0].q)
