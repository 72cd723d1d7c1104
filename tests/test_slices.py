"""Slices: planted ones are found and measured, and none where outcomes are shuffled."""

import numpy as np
import pytest
from scipy import stats

from lightning_neurocorr.functional import BOTH, NEITHER, ONLY_BASELINE, ONLY_MODEL
from lightning_neurocorr.functional.mixture import find_parts
from lightning_neurocorr.functional.slices import (
    Side,
    find_slices,
    higher,
    judge,
    less_class,
)
from lightning_neurocorr.studies.slices import SPECIFIC


def world(rng: np.random.Generator, n: int, *, null: bool = False):
    """Two conditions that the baseline fails on, one that the model fails on, and noise."""
    classes = rng.integers(0, 8, n)
    planted = np.stack([rng.random(n) < p for p in (0.1, 0.12, 0.1)], 1)
    noise = [rng.random(n) < p for p in np.geomspace(0.01, 0.3, 20)]
    stands_for_classes = [(classes < 3) | (rng.random(n) < 0.05), rng.random(n) < classes / 10]
    words = np.column_stack([planted, *noise, *stands_for_classes]).astype(np.float32)
    hard = np.linspace(-0.15, 0.15, 8)[classes]
    model = rng.random(n) < 0.85 + hard - 0.35 * planted[:, 2]
    baseline = rng.random(n) < 0.8 + hard - 0.6 * planted[:, 0] - 0.5 * planted[:, 1]
    baseline[planted[:, 2]] |= rng.random(int(planted[:, 2].sum())) < 0.5
    if null:
        for c in range(8):
            mine = np.flatnonzero(classes == c)
            order = rng.permutation(mine)
            model[mine], baseline[mine] = model[order], baseline[order]
    return classes, words, model, baseline, rng.random(n) < 0.5


def outcomes(model: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """Outcome groups of who is right."""
    return np.where(
        model, np.where(baseline, BOTH, ONLY_MODEL), np.where(baseline, ONLY_BASELINE, NEITHER)
    )


def test_planted_slices_are_found_in_both_directions() -> None:
    rng = np.random.default_rng(0)
    classes, words, model, baseline, half = world(rng, 6000)
    d = model.astype(int) - baseline.astype(int)
    better = find_slices(words, outcomes(model, baseline), classes, half, 1)
    worse = find_slices(words, outcomes(model, baseline), classes, half, -1)
    assert {0, 1} <= {w for part in better for w in part.words}
    assert [part.words for part in worse][:1] == [(2,)]
    first = better[0]
    planted = words[:, list(first.words)].all(1)
    assert (first.members == planted).all()
    inside = d[first.members & half]
    assert first.n == len(inside)
    assert first.advantage == pytest.approx(inside.mean())
    assert (first.wins, first.losses) == ((inside > 0).sum(), (inside < 0).sum())
    spread = 1.96 * inside.std(ddof=1) / np.sqrt(len(inside))
    assert (first.low, first.high) == pytest.approx(
        (inside.mean() - spread, inside.mean() + spread)
    )


def test_p_is_the_larger_of_a_contrast_and_mcnemars() -> None:
    rng = np.random.default_rng(1)
    classes, words, model, baseline, half = world(rng, 1500)
    members = words[:, 15] == 1
    for direction, right, won in ((1, model, model & ~baseline), (-1, ~model, ~model & baseline)):
        side = Side.of(outcomes(model, baseline), classes, ~half, direction)
        part = judge(members, half, side)
        assert part is not None
        d = direction * (model.astype(int) - baseline.astype(int))
        gap = spread = 0.0
        for c in range(8):
            x, of_slice = d[half & (classes == c)], members[half & (classes == c)]
            n, k = len(x), of_slice.sum()
            gap += x[of_slice].sum() - k * x.mean()
            spread += k * (n - k) / n * x.var(ddof=1)
        exact = stats.binomtest(part.wins, part.wins + part.losses).pvalue
        sided = exact if direction * (part.wins - part.losses) > 0 else 1.0
        assert part.p == pytest.approx(max(stats.norm.sf(gap / spread**0.5), sided))
        beyond, variance = 0.0, 0.0
        for c in range(8):
            table = right & half & (classes == c)
            hits = np.arange(1 + np.sum(table))
            chance = stats.hypergeom.pmf(hits, *(np.sum(x[table]) for x in (right, won, members)))
            mean = np.sum(hits * chance)
            beyond += np.sum(table & won & members) - mean
            variance += np.sum((hits - mean) ** 2 * chance)
        assert part.p_specific == pytest.approx(stats.norm.sf(beyond / variance**0.5))


def test_where_no_class_tells_nothing_is_specific() -> None:
    yes, no = np.ones(4, bool), np.zeros(4, bool)
    some = np.array([True, False, True, False])
    for won, inside in ((yes, some), (no, some), (some, yes), (some, no)):
        assert higher(won, inside, np.zeros(4)) == 1
    assert higher(some, some, np.arange(4)) == 1  # a class of one
    assert higher(some[:0], some[:0], np.zeros(0)) == 1


def test_slices_of_a_placebo_are_none_of_this_baseline() -> None:
    found: dict[str, list[bool]] = {"real": [], "placebo": []}
    told: dict[str, list[bool]] = {"real": [], "placebo": []}
    for seed in range(30):
        rng = np.random.default_rng(400 + seed)
        classes, words, _, baseline, half = world(rng, 2000)
        model = rng.random(2000) < np.where(words[:, 2] > 0, 0.3, 0.9)  # bad where the word is
        mixed = baseline.copy()
        for c in range(8):
            mine = np.flatnonzero(classes == c)
            mixed[mine] = mixed[rng.permutation(mine)]
        for name, answers in (("real", baseline), ("placebo", mixed)):
            for sign in (1, -1):
                parts = find_slices(words, outcomes(model, answers), classes, half, sign)
                found[name].append(bool(parts))
                told[name].append(any(part.p_specific <= SPECIFIC for part in parts))
    assert np.sum(found["placebo"]) >= 30  # the model is weak there: that is true
    assert np.sum(told["placebo"]) <= 2  # of sixty
    assert np.sum(told["real"]) >= 30


def test_words_that_nearly_are_classes_are_no_slices_by_luck() -> None:
    p = []
    for seed in range(60):
        rng = np.random.default_rng(900 + seed)
        classes = rng.integers(0, 10, 2000)
        said = np.where(rng.random(2000) < 0.9, classes, rng.integers(0, 10, 2000))
        model, baseline = rng.random(2000) < 0.9, rng.random(2000) < 0.5
        half = rng.random(2000) < 0.5
        side = Side.of(outcomes(model, baseline), classes, ~half, 1)
        parts = [judge(said == k, half, side) for k in range(10)]
        p += [part.p for part in parts if part is not None]
    assert len(p) == 600
    assert np.mean(np.array(p) <= 0.025) < 0.04


def test_a_whole_class_is_no_better_than_others_of_its_class() -> None:
    classes = np.repeat([0, 1], 400)
    half = np.arange(800) % 2 == 1
    model = np.ones(800, dtype=bool)
    baseline = np.where((classes == 0) & half, np.arange(800) % 3 == 0, np.arange(800) % 3 > 0)
    side = Side.of(outcomes(model, baseline), classes, ~half, 1)
    part = judge(classes == 0, half, side)
    assert part is not None
    assert part.p == 1


def test_the_mean_of_the_class_is_that_of_the_first_half() -> None:
    d, classes = np.array([1, 0, 0, -1, 1]), np.array([0, 0, 1, 1, 2])
    first = np.array([True, True, True, False, False])
    assert less_class(d, classes, first).tolist() == [0.5, -0.5, 0.0, -1.0, 1 - 1 / 3]


def test_words_with_unknown_samples_put_them_in_no_slice() -> None:
    rng = np.random.default_rng(2)
    classes, words, model, baseline, half = world(rng, 6000)
    unknown = rng.random(6000) < 0.3
    words[unknown, 0] = np.nan
    found = find_slices(words, outcomes(model, baseline), classes, half, 1)
    part = next(part for part in found if part.words == (0,))
    assert not (part.members & unknown).any()


def test_nothing_is_found_where_outcomes_are_shuffled_within_class() -> None:
    false = np.zeros(2)
    for seed in range(60):
        classes, words, model, baseline, half = world(np.random.default_rng(seed), 1500, null=True)
        false += [
            bool(find_slices(words, outcomes(model, baseline), classes, half, sign))
            for sign in (1, -1)
        ]
    assert (false <= 0.07 * 60).all()


def test_too_few_advantage_samples_make_no_slices() -> None:
    rng = np.random.default_rng(3)
    classes, words, _, _, half = world(rng, 400)
    few = np.zeros(400, dtype=int)
    few[:20] = ONLY_MODEL
    assert find_slices(words, few, classes, half, 1) == []
    assert find_slices(words[:, :0], rng.integers(0, 4, 400), classes, half, 1) == []


def activations(rng: np.random.Generator, words: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Forty rectified neurons that mix the three conditions with the class."""
    seen = words[:, :3] @ rng.normal(size=(3, 40)) * 1.5 + rng.normal(size=(8, 40))[classes]
    return np.maximum(seen + rng.normal(size=seen.shape), 0)


def test_parts_of_the_activations_are_the_planted_conditions() -> None:
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(4)
    classes, words, model, baseline, half = world(rng, 5000)
    outcome = outcomes(model, baseline)
    found = find_parts(activations(rng, words, classes), outcome, classes, half)
    assert {part.direction for part in found} == {1, -1}
    for part in found:
        columns = words[:, :2] if part.direction > 0 else words[:, 2:3]
        planted = np.asarray(columns.any(1))
        assert planted[part.members].mean() > 0.5
    best = next(part for part in found if part.direction > 0)
    assert words[best.members][:, :2].any(1).mean() > 0.9


def test_no_parts_where_outcomes_are_shuffled_within_class() -> None:
    pytest.importorskip("sklearn")
    false = 0
    for seed in range(12):
        rng = np.random.default_rng(100 + seed)
        classes, words, model, baseline, half = world(rng, 1500, null=True)
        outcome = outcomes(model, baseline)
        false += bool(find_parts(activations(rng, words, classes), outcome, classes, half))
    assert false <= 1
