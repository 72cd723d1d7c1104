"""Groups, matches and read-outs: what was planted comes back, and nothing where nothing was."""

import pickle
from itertools import permutations

import numpy as np
import pytest
import torch

from lightning_neurocorr.functional.groups import Grouping, _half, find_groups, modularity
from lightning_neurocorr.functional.matching import CrossMoments, match
from lightning_neurocorr.functional.readout import read_out
from tests.planted_sources import Planted, hand_wired, made_up, trained

pytest.importorskip("sklearn")
from sklearn.cluster import SpectralClustering
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score
from sklearn.preprocessing import StandardScaler


def groups_of(planted: Planted) -> Grouping:
    return find_groups(planted.activations, planted.classes, planted.half)


@pytest.mark.parametrize(
    ("classes", "weights"),
    [(2, None), (3, None), (5, None), (10, None), (100, None), (3, [8, 2, 1]), (10, [2, *[1] * 9])],
)
def test_groups_are_the_planted_sources_and_one_source_is_none(
    classes: int, weights: list[float] | None
) -> None:
    for sources in (1, 2, 3):
        planted = made_up(sources, sources, n=800, classes=classes, weights=weights, dims=2)
        found = groups_of(planted)
        if sources == 1:
            assert "no split" in found.why
            assert (found.label == -1).all()
            continue
        assert found.label.max() + 1 == sources
        assert planted.purity(found.label) >= 0.95


@pytest.mark.parametrize("sources", [1, 2, 3])
def test_channels_of_a_convolution_with_planted_sources(sources: int) -> None:
    planted = hand_wired(0, sources, cross=0.05)
    found = groups_of(planted)
    assert found.label.max() + 1 == (sources if sources > 1 else 0)
    assert sources == 1 or planted.purity(found.label) >= 0.9
    assert groups_of(planted.shuffled()).why


def test_channels_of_a_trained_network_with_planted_sources() -> None:
    for sources in (1, 2):
        for layer, planted in trained(0, sources, towers=True, n=4000, epochs=6).items():
            found = groups_of(planted)
            assert found.label.max() + 1 == (sources if sources > 1 else 0), layer
            assert sources == 1 or planted.purity(found.label) >= 0.9


def test_neurons_that_are_off_where_others_are_on_are_of_one_source() -> None:
    rng = np.random.default_rng(0)
    seen = rng.normal(size=600)
    on = np.maximum(seen[:, None] + 0.2 * rng.normal(size=(600, 12)), 0)
    off = np.maximum(-seen[:, None] + 0.2 * rng.normal(size=(600, 12)), 0)
    found = find_groups(np.concatenate([on, off], 1), np.arange(600) % 3, rng.random(600) < 0.5)
    assert "no split" in found.why


def test_detectors_of_one_picture_each_are_of_one_source() -> None:
    rng = np.random.default_rng(0)
    shown = rng.integers(0, 5, 800)
    detectors = (shown[:, None] == np.arange(30) % 5) + 0.2 * rng.normal(size=(800, 30))
    found = find_groups(detectors, rng.integers(0, 5, 800), rng.random(800) < 0.5)
    assert "no split" in found.why


def test_no_groups_from_shuffled_columns() -> None:
    for seed in range(4):
        found = groups_of(made_up(10 + seed, 3).shuffled())
        assert found.why
        assert (found.label == -1).all()


def test_few_samples_and_few_neurons_make_no_groups() -> None:
    assert "50 samples" in groups_of(made_up(0, 2, n=80)).why
    assert "beside one for each class" in groups_of(made_up(0, 2, n=240, classes=100)).why
    planted = made_up(0, 2)
    planted.activations[:, 3:] = 7.0
    assert "vary" in groups_of(planted).why


def test_modularity_by_its_definition() -> None:
    rng = np.random.default_rng(1)
    alike = rng.random((7, 7))
    alike = alike + alike.T
    np.fill_diagonal(alike, 0)
    label = np.array([0, 0, 1, 1, 2, 2, 2])
    total, slow = alike.sum(), 0.0
    for i in range(7):
        for j in range(7):
            if label[i] == label[j]:
                slow += alike[i, j] - alike[i].sum() * alike[j].sum() / total
    assert modularity(alike, label) == pytest.approx(slow / total)


def test_streamed_correlations_are_numpys() -> None:
    g = torch.Generator().manual_seed(0)
    a = torch.randn(500, 9, generator=g) * 3 + 1000
    b = a @ torch.randn(9, 12, generator=g) + 20 * torch.randn(500, 12, generator=g)
    whole, one, two = (CrossMoments(9, 12) for _ in range(3))
    for start in range(0, 500, 37):
        whole.update(a[start : start + 37], b[start : start + 37])
    one.update(a[:200], b[:200])
    two.update(a[200:], b[200:])
    one.merge(two)
    slow = np.corrcoef(a.T.double(), b.T.double())[:9, 9:]
    for found in (whole, one):
        assert np.abs(found.correlation_().numpy() - slow).max() < 1e-5


def test_a_permuted_copy_is_recovered_exactly() -> None:
    g = torch.Generator().manual_seed(1)
    a = torch.randn(300, 20, generator=g).relu()
    a[:, 4] = 2.5  # dead
    order = torch.randperm(20, generator=g)
    moments = CrossMoments(20, 20)
    moments.update(a, a[:, order])
    found = match(moments.correlation_())
    live = np.arange(20) != 4
    assert (order.numpy()[found.best[live]] == np.flatnonzero(live)).all()
    assert (found.one_to_one[live] == found.best[live]).all()
    assert found.mutual[live].all()
    assert found.novelty[live] == pytest.approx(0, abs=3e-6)
    assert (found.best[4], found.one_to_one[4], bool(found.mutual[4])) == (-1, -1, False)
    assert np.isnan(found.novelty[4])


def test_matches_by_loops() -> None:
    rng = np.random.default_rng(2)
    r = rng.uniform(-1, 1, (6, 5)).astype(np.float32)
    found = match(torch.from_numpy(r))
    for j in range(6):
        best = max(range(5), key=lambda k: r[j, k])
        assert found.best[j] == best
        assert bool(found.mutual[j]) == (max(range(6), key=lambda i: r[i, best]) == j)
        assert found.novelty[j] == pytest.approx(1 - r[j, best])
    given = found.one_to_one[found.one_to_one >= 0]
    assert len(set(given.tolist())) == len(given) == 5


def test_a_negative_r_is_no_match() -> None:
    found = match(torch.tensor([[-0.9, -0.2], [0.5, -0.1]]))
    assert found.r.tolist() == pytest.approx([-0.2, 0.5])
    assert found.mutual.tolist() == [False, True]
    assert found.one_to_one.tolist() == [-1, 0]


def test_one_to_one_gives_the_largest_sum_of_what_is_given() -> None:
    """Against trying every order; a pair below 0 is not given, so it costs nothing."""
    draw = np.random.default_rng(0)
    for _ in range(40):
        r = draw.uniform(-1, 1, (3, 4)).astype(np.float32)
        r[:, 1] = np.nan if draw.random() < 0.3 else r[:, 1]
        worth = np.nan_to_num(r).clip(0)
        most = max(sum(worth[range(3), list(order)]) for order in permutations(range(4), 3))
        found = match(torch.from_numpy(r)).one_to_one
        given = [(i, j) for i, j in enumerate(found.tolist()) if j >= 0]
        assert sum(r[i, j] for i, j in given) == pytest.approx(most, abs=1e-6)
        assert len({j for _, j in given}) == len(given)


def test_too_many_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pairs of neurons, but got 100,000 x 100,000"):
        CrossMoments(100_000, 100_000)


@pytest.mark.parametrize("scale", [1e17, 1e18, 1e20])
def test_what_float32_cannot_hold_is_no_match(scale: float) -> None:
    rng = np.random.default_rng(5)
    source = rng.standard_normal((2000, 4))
    a, b = ((source + rng.standard_normal((2000, 4))) * scale for _ in range(2))
    moments = CrossMoments(4, 4)
    for rows in range(0, 2000, 200):
        moments.update(*(torch.from_numpy(part[rows : rows + 200]).float() for part in (a, b)))
    r, expected = moments.correlation_().numpy(), np.corrcoef(a.T, b.T)[:4, 4:]
    told = np.isfinite(r)
    assert told.all() == (scale < 1e18)
    np.testing.assert_allclose(r[told], expected[told], atol=1e-5)


def right(x: np.ndarray, target: np.ndarray, half: np.ndarray) -> float:
    return float((read_out(x, target, half) == target).mean())


def test_a_label_is_read_out_where_it_is_linear_only() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(1200, 2))
    target = ((x[:, 0] > 0) ^ (x[:, 1] > 0)).astype(int)
    half = rng.random(1200) < 0.5
    assert abs(right(np.concatenate([x, np.full((1200, 1), 3.0)], 1), target, half) - 0.5) < 0.06
    assert right(np.stack([np.maximum(x[:, 0] * x[:, 1], 0), x[:, 0]], 1), target, half) > 0.8
    assert abs(right(x, rng.permutation(target), half) - 0.5) < 0.06
    assert (read_out(x, np.zeros(1200, dtype=int), half) == -1).all()
    assert (read_out(x, target, np.ones(1200, dtype=bool)) == -1).all()


def test_a_read_out_of_many_neurons_projects_them() -> None:
    rng = np.random.default_rng(4)
    target = rng.integers(0, 2, 120)
    wide = rng.normal(size=(120, 2500)) + 0.6 * target[:, None]
    assert right(wide, target, np.arange(120) % 2 == 0) > 0.9


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_read_out_is_scikit_learns_logistic_regression(classes: int) -> None:
    rng = np.random.default_rng(classes)
    target = 3 * rng.choice(classes, 1500, p=np.arange(1, classes + 1) / sum(range(classes + 1)))
    hidden = rng.normal(size=(1500, 12)) + 0.5 * rng.normal(size=(40, 12))[target]
    a = np.maximum(hidden @ rng.normal(size=(12, 60)), 0) * rng.uniform(0.01, 100, 60)
    a[:, 3] = 7.0  # dead
    half = rng.random(1500) < 0.4
    slow = np.zeros(1500, dtype=int)
    for part in (half, ~half):
        known = StandardScaler().fit(a[~part])
        fit = LogisticRegression(C=0.1, max_iter=2000, tol=1e-6)
        fit.fit(known.transform(a[~part]), target[~part])
        slow[part] = fit.predict(known.transform(a[part]))
    found = read_out(a, target, half)
    assert (found == slow).mean() > 0.98
    assert abs((found == target).mean() - (slow == target).mean()) < 0.01


def test_labellings_are_read_together_as_alone_and_without_what_is_not_finite() -> None:
    rng = np.random.default_rng(5)
    target = rng.integers(0, 4, 600)
    a = rng.normal(size=(600, 20)) + np.eye(4)[target] @ rng.normal(size=(4, 20))
    half, other = rng.random(600) < 0.5, rng.permutation(target)
    together = read_out(a, np.stack([target, other]), half)
    assert (together == [read_out(a, target, half), read_out(a, other, half)]).all()
    faulty = np.concatenate([a, np.where(np.arange(600) == 7, np.nan, 0.0)[:, None]], 1)
    assert (read_out(faulty, target, half) == together[0]).all()


def test_small_batches_wait_for_each_other() -> None:
    g = torch.Generator().manual_seed(6)
    a, b = torch.randn(230, 4, generator=g) + 50, torch.randn(230, 3, generator=g)
    small, whole = CrossMoments(4, 3), CrossMoments(4, 3)
    for start in range(0, 230, 7):
        small.update(a[start : start + 7], b[start : start + 7])
    assert 0 < small.n < 230
    small.update(a[:0], b[:0])
    sent = pickle.loads(pickle.dumps(small))  # as to another process
    whole.update(a, b)
    assert sent.n == 230
    expected = whole.correlation_()
    for found in (small, sent):
        torch.testing.assert_close(found.correlation_(), expected, atol=1e-6, rtol=0)


def test_clusters_are_scikit_learns() -> None:
    rng = np.random.default_rng(7)
    for sources in (1, 3):
        said = rng.normal(size=(500, sources))[:, rng.integers(0, sources, 40)]
        a = said * rng.uniform(0.3, 1, 40) + rng.normal(size=(500, 40))
        half = _half(a, rng.integers(0, 4, 500))
        for k in range(2, 9):
            slow = SpectralClustering(k, affinity="precomputed", assign_labels="cluster_qr")
            labels = slow.fit_predict(half.alike + 1e-6)
            assert adjusted_rand_score(labels, half.clusters(k)) == 1
