"""Rank statistics and the max-T null, against SciPy and against loops."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lightning_neurocorr.functional.ranks import (
    SecondPass,
    auroc,
    max_t_p_values,
    second_pass_columns,
    spearman,
)


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    advantage = random.integers(-1, 2, 60).astype(float)
    activations = random.normal(size=(60, 5)).round(1) + 0.5 * advantage[:, None] * [1, 0, 0, 0, 0]
    activations[:, 4] = 2.0
    return activations, advantage


def test_auroc_counts_pairs(data: tuple[np.ndarray, np.ndarray]) -> None:
    activations, advantage = data
    positive = advantage > 0
    for unit in range(4):
        yes, no = activations[positive, unit], activations[~positive, unit]
        wins = np.mean([(x > y) + 0.5 * (x == y) for x in yes for y in no])
        assert auroc(activations, positive)[unit] == pytest.approx(wins)
    assert np.isnan(auroc(activations, positive)[4])
    assert np.isnan(auroc(activations, np.zeros(60, bool))).all()


def test_spearman_is_scipys(data: tuple[np.ndarray, np.ndarray]) -> None:
    activations, advantage = data
    found = spearman(activations, advantage)
    for unit in range(4):
        assert found[unit] == pytest.approx(stats.spearmanr(activations[:, unit], advantage)[0])
    assert np.isnan(found[4])


def test_max_t_is_the_share_of_shuffles_that_come_as_far(
    data: tuple[np.ndarray, np.ndarray],
) -> None:
    activations, advantage = data
    activations = activations[:, :4]
    strata = np.arange(60) % 3
    found = max_t_p_values(activations, advantage, strata, permutations=99, seed=7)
    random = np.random.default_rng(7)
    largest = []
    for _ in range(99):
        shuffled = advantage.copy()
        for stratum in range(3):
            members = np.flatnonzero(strata == stratum)
            shuffled[members] = advantage[random.permutation(members)]
        largest.append(max(abs(np.corrcoef(column, shuffled)[0, 1]) for column in activations.T))
    for unit, column in enumerate(activations.T):
        own = abs(np.corrcoef(column, advantage)[0, 1])
        assert found[unit] == pytest.approx((1 + sum(x >= own for x in largest)) / 100)


def test_max_t_keeps_its_level_where_nothing_is_to_find() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        activations = np.maximum(random.normal(size=(80, 30)), 0)
        advantage = random.integers(-1, 2, 80).astype(float)
        hits += max_t_p_values(activations, advantage, permutations=99, seed=seed).min() <= 0.05
    assert hits <= 0.07 * 200 + 6  # three standard errors above 5 %


def test_a_class_detector_is_not_significant_within_classes() -> None:
    random = np.random.default_rng(1)
    target = random.integers(0, 4, 400)
    advantage = (random.random(400) < np.array([0.05, 0.1, 0.2, 0.6])[target]).astype(float)
    activations = (target == 3)[:, None] + 0.3 * random.normal(size=(400, 1))
    settings = SecondPass(permutations=199)
    outcome = np.where(advantage > 0, 1, 0)
    found = second_pass_columns(activations, advantage, outcome, target, settings)
    assert found["p_max_t"][0] > 0.05
    assert max_t_p_values(activations, advantage, permutations=199)[0] < 0.05
    assert found["auroc"][0] > 0.7


@pytest.mark.parametrize("wrong", [{"neurons": 0}, {"neurons": 2000}, {"permutations": 0}])
def test_wrong_settings(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"Expected `{next(iter(wrong))}`"):
        SecondPass(**wrong)
