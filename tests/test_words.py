"""Words: r against NumPy's loops, planted words are named, and none where none fits."""

import numpy as np
import pytest
from scipy import stats

from lightning_neurocorr.functional.formulas import find_formulas
from lightning_neurocorr.functional.pairwise import correlations, with_halves
from lightning_neurocorr.functional.words import advantage_words, name_neurons, usable_words


def table(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes and words: ten classes, seven conditions, low and high fifths, rare noise."""
    classes = rng.integers(0, 10, n)
    columns = [classes == c for c in range(10)]
    columns += [rng.random(n) < p for p in (0.1, 0.12, 0.1, 0.2, 0.2, 0.1, 0.15)]
    for measured in rng.normal(size=(6, n)):
        low, high = np.quantile(measured, [0.2, 0.8])
        columns += [measured <= low, measured >= high]
    columns += [rng.random(n) < p for p in np.geomspace(0.004, 0.1, 12)]
    return classes, np.stack(columns, 1).astype(np.float32)


def firing(rng: np.random.Generator, word: np.ndarray) -> np.ndarray:
    """A neuron that fires for eight of ten samples with the word and two of a hundred without."""
    fires = np.where(word > 0, rng.random(len(word)) < 0.8, rng.random(len(word)) < 0.02)
    return fires * rng.gamma(4, 0.25, len(word)) + rng.normal(0, 0.1, len(word))


def slow_r(x: np.ndarray, y: np.ndarray, classes: np.ndarray | None) -> float:
    """Pearson's r over known samples, class by class where there are classes."""
    known = np.isfinite(y)
    x, y = x[known].astype(float).copy(), y[known].astype(float).copy()
    if classes is not None:
        for c in set(classes[known].tolist()):
            mine = classes[known] == c
            x[mine] -= x[mine].mean()
            y[mine] -= y[mine].mean()
    return float(np.corrcoef(x, y)[0, 1])


def test_halves_and_the_whole_come_from_the_same_sums() -> None:
    rng = np.random.default_rng(3)
    _, words = table(rng, 400)
    words[rng.random(words.shape) < 0.05] = np.nan
    words[:, :20] = np.nan_to_num(words[:, :20])
    half = rng.random(400) < 0.4
    a = rng.normal(1000, 1, (400, 4))
    a[half, 1] = 1003.5  # constant in one half
    a[:, 2] = 7.0
    found = with_halves(a, words, half)
    for mine, rows in zip(found, (half | True, ~half, half), strict=True):
        for v in np.flatnonzero(usable_words(words[rows])):
            for d in (0, 3):
                slow = slow_r(a[rows, d], words[rows, v], None)
                assert mine[v, d] == pytest.approx(slow, abs=1e-9)
        assert np.isnan(mine[:, 2]).all()
    assert np.isnan(found[2, :, 1]).all()
    assert np.isfinite(found[1, usable_words(words[~half]), 1]).all()
    assert correlations(a, None)[0, 3] == pytest.approx(slow_r(a[:, 0], a[:, 3], None), abs=1e-9)
    assert np.isnan(correlations(a[:2], None)).all()
    assert correlations(a[:0], None).shape == (4, 4)


@pytest.mark.parametrize("within", [False, True])
def test_r_is_numpys_over_the_samples_that_are_known(within: bool) -> None:
    rng = np.random.default_rng(0)
    classes, words = table(rng, 300)
    words[rng.random(words.shape) < 0.1] = np.nan
    words[:, 3] = np.where(rng.random(300) < 0.5, np.nan, rng.normal(size=300))
    a = rng.normal(100, 3, (300, 5))
    by = classes if within else None
    found = correlations(a, words, by)
    for v in np.flatnonzero(usable_words(words))[10:]:
        for d in range(5):
            assert found[v, d] == pytest.approx(slow_r(a[:, d], words[:, v], by), abs=1e-9)
    if within:
        assert np.isnan(correlations(a, (classes == 2)[:, None].astype(float), classes)).all()


def test_planted_words_are_named_and_survive_their_controls() -> None:
    rng = np.random.default_rng(1)
    _, words = table(rng, 2000)
    a = np.stack([firing(rng, word) for word in words.T], 1)
    found = name_neurons(a, words, rng.random(2000) < 0.5)
    assert (found.word == np.arange(words.shape[1])).mean() >= 0.97
    assert (found.p <= 0.05).mean() >= 0.9
    assert (found.score > found.null).mean() >= 0.97
    assert np.nanmean(np.abs(found.held_out - found.score)) < 0.1


def test_a_neuron_without_a_word_gets_none() -> None:
    rng = np.random.default_rng(2)
    _, words = table(rng, 2000)
    hidden = [(rng.random(2000) < p).astype(float) for p in rng.uniform(0.01, 0.2, 150)]
    a = np.stack([*rng.normal(size=(150, 2000)), *(firing(rng, word) for word in hidden)], 1)
    found = name_neurons(a, words, rng.random(2000) < 0.5)
    assert (found.p <= 0.05).mean() <= 0.05
    assert (found.score > found.null).mean() <= 0.1


def test_exemplars_are_counted_one_by_one() -> None:
    rng = np.random.default_rng(3)
    _, words = table(rng, 900)
    words[rng.random(900) < 0.2, 12] = np.nan
    a = firing(rng, np.nan_to_num(words[:, 12]))[:, None]
    found = name_neurons(a, words, rng.random(900) < 0.5)
    rows = [i for i in range(900) if not np.isnan(words[i, 12])]
    top = sorted(rows, key=lambda i: -a[i, 0])[:25]
    hits = sum(words[i, 12] == 1 for i in top)
    has = sum(words[i, 12] == 1 for i in rows)
    p = stats.hypergeom.sf(hits - 1, len(rows), has, 25) * int(usable_words(words).sum())
    assert found.word.tolist() == [12]
    assert found.share[0] == hits / 25
    assert found.base[0] == has / len(rows)
    assert found.p[0] == pytest.approx(min(1, p))


def test_words_that_everybody_or_nobody_has_are_never_said() -> None:
    rng = np.random.default_rng(4)
    words = np.stack([np.ones(60), np.zeros(60), np.full(60, np.nan), rng.random(60) < 0.5], 1)
    words = np.concatenate([words, words[:, [3]]], 1)  # twice the same
    found = name_neurons(rng.normal(size=(60, 8)) + words[:, [3]], words, rng.random(60) < 0.5)
    assert set(found.word.tolist()) <= {3}
    none = name_neurons(rng.normal(size=(60, 3)), words[:, :3], rng.random(60) < 0.5)
    assert none.word.tolist() == [-1, -1, -1]
    for column in (none.score, none.null, none.p):
        assert np.isnan(column).all()


def test_a_score_is_a_word_that_the_other_half_has_to_confirm() -> None:
    rng = np.random.default_rng(5)
    scores = rng.normal(size=(800, 6)) * rng.uniform(0.5, 9, 6) + rng.normal(size=6)
    half = rng.random(800) < 0.5
    a = np.concatenate(
        [scores[:, :3] + 2 * rng.normal(size=(800, 3)), rng.normal(size=(800, 200))], 1
    )
    found = name_neurons(a, scores, half)
    assert found.word[:3].tolist() == [0, 1, 2]
    assert (found.p[:3] < 0.001).all()
    assert (found.p[3:] <= 0.05).mean() <= 0.075
    assert np.isnan(found.share).all()


def advantage_of(rng: np.random.Generator, condition: np.ndarray) -> np.ndarray:
    """The baseline is wrong where the condition holds, and sometimes elsewhere."""
    model = rng.random(len(condition)) < 0.85
    baseline = rng.random(len(condition)) < np.where(condition > 0, 0.2, 0.8)
    return model.astype(int) - baseline.astype(int)


@pytest.mark.parametrize("known", [12, 60, 300])
def test_a_score_that_few_samples_have_is_tested_on_these(known: int) -> None:
    """Ten numbers that have nothing to do with a neuron go with it well."""
    rng = np.random.default_rng(0)
    a, scores = rng.normal(size=(1000, 200)), rng.normal(size=(1000, 10))
    for column in scores.T:
        column[rng.permutation(1000)[known:]] = np.nan
    half = rng.random(1000) < 0.5
    found = name_neurons(a, scores, half)
    assert (found.p <= 0.05).mean() < 0.1
    assert (found.p <= 0.001).mean() < 0.01
    for d in np.flatnonzero(found.p < 1):
        rows = half & np.isfinite(scores[:, found.word[d]])
        slow = stats.pearsonr(a[rows, d], scores[rows, found.word[d]], alternative="greater")
        assert found.p[d] == pytest.approx(slow.pvalue, rel=1e-6)


def test_advantage_words_are_said_where_due_only() -> None:
    rng = np.random.default_rng(6)
    n = 4000
    classes, words = table(rng, n)
    d = advantage_of(rng, words[:, 10])
    due = np.stack([firing(rng, np.maximum(words[:, 10], classes < 2)) for _ in range(20)], 1)
    class_only = np.stack([firing(rng, classes < 2) for _ in range(20)], 1)
    irrelevant = np.stack([firing(rng, words[:, 13]) for _ in range(20)], 1)
    noise = rng.normal(size=(n, 40))
    a = np.concatenate([due, class_only, irrelevant, noise], 1)
    found = advantage_words(a, words[:, 10:], d, classes)
    assert (found.word[:20] == 0).mean() >= 0.95
    assert (found.word[20:] == -1).mean() >= 0.95
    assert (found.share[:20] > 0.8).all()
    slow = slow_r(a[:, 0], words[:, 10], classes) * slow_r(words[:, 10], d.astype(float), classes)
    assert found.score[0] == pytest.approx(slow, abs=1e-9)


def test_no_advantage_word_against_shuffled_outcomes() -> None:
    rng = np.random.default_rng(7)
    classes, words = table(rng, 3000)
    d = advantage_of(rng, words[:, 10])
    for c in range(10):
        mine = np.flatnonzero(classes == c)
        d[mine] = d[rng.permutation(mine)]
    a = np.stack([firing(rng, word) for word in words[:, 10:].T], 1)
    assert (advantage_words(a, words[:, 10:], d, classes).word == -1).mean() >= 0.95


@pytest.mark.parametrize("joined", ["and", "and not", "or"])
def test_formulas_of_two_words(joined: str) -> None:
    rng = np.random.default_rng(8)
    _, words = table(rng, 6000)
    half = rng.random(6000) < 0.5
    one, two = words[:, 13] > 0, words[:, 18] > 0
    true = {"and": one & two, "and not": one & ~two, "or": one | two}[joined]
    (found,) = find_formulas(firing(rng, true)[:, None], words, half)
    assert found is not None
    assert (found.joined, {found.first, found.second}) == (joined, {13, 18})
    assert found.score > 1.1 * found.single


def test_single_words_get_no_formula() -> None:
    rng = np.random.default_rng(9)
    _, words = table(rng, 2000)
    half = rng.random(2000) < 0.5
    found = find_formulas(np.stack([firing(rng, w) for w in words.T], 1), words, half)
    assert sum(formula is not None for formula in found) <= 0.05 * len(found)


def test_a_formula_is_the_best_of_all_that_are_tried() -> None:
    rng = np.random.default_rng(10)
    n, kinds = 1500, ("and", "and not", "or")
    words = (rng.random((n, 6)) < [0.1, 0.2, 0.3, 0.4, 0.5, 0.05]).astype(np.float32)
    has = words > 0
    half = rng.random(n) < 0.5
    fires = np.stack(
        [has[:, 1] & ~has[:, 3], has[:, 2] | has[:, 0], has[:, 4], has[:, 4] & has[:, 3]]
    )
    a = fires.T + rng.normal(0, 0.7, (n, 4))
    for d, found in enumerate(find_formulas(a, words, half)):
        tried = {}
        for i in range(6):
            for j in (j for j in range(6) if j != i):
                one, two = has[:, i], has[:, j]
                columns = {"and": one & two, "and not": one & ~two, "or": one | two}
                for joined in kinds:
                    if 20 <= columns[joined].sum() <= 0.6 * n:
                        column = columns[joined].astype(float)
                        r = np.corrcoef(column[~half], a[~half, d])[0, 1]
                        tried[i, joined, j] = r, np.corrcoef(column[half], a[half, d])[0, 1]
        alone = [np.corrcoef(has[~half, v], a[~half, d])[0, 1] for v in range(6)]
        best = max(tried, key=lambda key: tried[key][0])
        single = np.corrcoef(has[half, int(np.argmax(alone))], a[half, d])[0, 1]
        held = tried[best][1]
        if held > max(1.1 * single, single + 1.64 / np.sqrt(half.sum())):
            assert found is not None
            assert {found.first, found.second} == {best[0], best[2]}
            assert found.joined == best[1]
            assert (found.score, found.single) == pytest.approx((held, single), abs=1e-6)
        else:
            assert found is None
    assert [found is None for found in find_formulas(a, words, half)] == [False, False, True, False]
