"""Groups, matches and read-outs: what was planted comes back, and nothing where nothing was."""

import numpy as np
import pytest
import torch

from lightning_neurocorr.functional.groups import find_groups, modularity
from lightning_neurocorr.functional.matching import CrossMoments, match
from lightning_neurocorr.functional.readout import read_out

pytest.importorskip("sklearn")


def streams(rng: np.random.Generator, sources: int, n: int = 600, neurons: int = 48):
    """Neurons that each see one of some sources; each source may show the class or any other."""
    classes = rng.integers(0, 6, n)
    columns = []
    for _ in range(sources):
        shown = np.where(rng.random(n) < 0.5, classes, rng.integers(0, 6, n))
        seen = rng.normal(size=(6, 6))[shown] + 0.6 * rng.normal(size=(n, 6))
        mixed = seen @ rng.normal(size=(6, neurons // sources))
        columns.append(np.maximum(mixed + 0.3 * rng.normal(size=mixed.shape), 0))
    truth = np.repeat(np.arange(sources), neurons // sources)
    return np.concatenate(columns, 1), classes, truth


def purity(label: np.ndarray, truth: np.ndarray) -> float:
    """Share of neurons that are of the commonest source of their group."""
    groups = [truth[label == k] for k in np.unique(label[label >= 0])]
    return sum(np.bincount(group).max() for group in groups) / len(label)


@pytest.mark.parametrize("sources", [2, 3])
def test_groups_are_the_planted_sources(sources: int) -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        a, classes, truth = streams(rng, sources)
        found = find_groups(a, classes, rng.random(len(a)) < 0.5)
        assert not found.why
        assert purity(found.label, truth) >= 0.9
        assert len(np.unique(found.label)) == sources


def test_no_groups_from_one_source_or_from_shuffled_columns() -> None:
    for seed in range(4):
        rng = np.random.default_rng(10 + seed)
        a, classes, _ = streams(rng, 1)
        half = rng.random(len(a)) < 0.5
        assert "no split" in find_groups(a, classes, half).why
        a, classes, _ = streams(rng, 3)
        for column in a.T:
            for c in range(6):
                mine = np.flatnonzero(classes == c)
                column[mine] = column[rng.permutation(mine)]
        found = find_groups(a, classes, half)
        assert "no split" in found.why
        assert (found.label == -1).all()


def test_few_samples_and_few_neurons_make_no_groups() -> None:
    rng = np.random.default_rng(0)
    a, classes, _ = streams(rng, 2, n=80)
    assert "50 samples" in find_groups(a, classes, np.arange(80) % 2 == 0).why
    a, classes, _ = streams(rng, 2)
    a[:, 3:] = 7.0
    assert "vary" in find_groups(a, classes, np.arange(len(a)) % 2 == 0).why


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


def test_too_many_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pairs of neurons, but got 100,000 x 100,000"):
        CrossMoments(100_000, 100_000)


def test_a_label_is_read_out_where_it_is_linear_only() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(1200, 2))
    target = ((x[:, 0] > 0) ^ (x[:, 1] > 0)).astype(int)
    half = rng.random(1200) < 0.5
    before = read_out(np.concatenate([x, np.full((1200, 1), 3.0)], 1), target, half)
    after = read_out(np.stack([np.maximum(x[:, 0] * x[:, 1], 0), x[:, 0]], 1), target, half)
    assert abs(before.mean() - 0.5) < 0.06
    assert after.mean() > 0.8
    assert abs(read_out(x, rng.permutation(target), half).mean() - 0.5) < 0.06
    assert not read_out(x, np.zeros(1200, dtype=int), half).any()


def test_a_read_out_of_many_neurons_projects_them() -> None:
    rng = np.random.default_rng(4)
    target = rng.integers(0, 2, 120)
    wide = rng.normal(size=(120, 2500)) + 0.6 * target[:, None]
    assert read_out(wide, target, np.arange(120) % 2 == 0).mean() > 0.9
