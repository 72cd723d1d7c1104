"""What is compared within classes, against loops over the samples and against shuffles of them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import special, stats

from lightning_neurocorr import functional as F
from lightning_neurocorr.functional import stratified
from lightning_neurocorr.functional.comparing import Comparison
from lightning_neurocorr.functional.stratified import CellMoments, stratify
from lightning_neurocorr.functional.student import nearly_student, student
from lightning_neurocorr.metric import Cells, NeuronAdvantageCorrelation
from lightning_neurocorr.validation.classes import ClassRows, pools
from lightning_neurocorr.validation.columns import CLAIMS, PARTS, correlation_columns
from tests.helpers import cells_of, one_hot, partial_r, slow_fdr

N, D = 1500, 6


class Samples:
    """Unequal classes of unequal difficulty, and neurons that go with a part of the advantage."""

    def __init__(self, classes: int = 5, n: int = N, seed: int = 0, wrong: float = 0.25) -> None:
        rng = np.random.default_rng(seed)
        self.target = rng.choice(classes, n, p=rng.dirichlet(np.full(classes, 3.0)))
        hard, weak = rng.uniform(0.5, 1.5, (2, classes))[:, self.target] * [[wrong], [0.3]]
        self.model, self.baseline = rng.random((2, n)) > [hard, weak]
        self.group = np.where(self.model, np.where(self.baseline, 0, 1), 3 - self.baseline)
        self.a = self.model.astype(float) - self.baseline
        self.fold = rng.integers(0, 2, n)
        self.x = rng.normal(size=(n, D)) * rng.uniform(0.5, 3, classes)[self.target][:, None]
        self.x += self.target[:, None]
        self.x[:, 0] += self.a
        self.x[:, 1] += self.model
        self.x[:, 2] -= self.baseline
        self.x[:, 3] -= self.a
        self.x[:, 4] = 0.7
        self.x[:, 5] = np.where(rng.random(n) < 0.2, self.x[:, 5], 0)

    def cells(self, by_class: bool = True) -> list[CellMoments]:
        return cells_of(self.x, self.a, self.target, self.group, self.fold, by_class=by_class)

    def columns(self, n: int = N) -> dict[str, np.ndarray]:
        metric = NeuronAdvantageCorrelation(D, folds=2, count_active=True)
        metric.update(*map(torch.as_tensor, (self.x, self.a)), fold=torch.as_tensor(self.fold))
        return correlation_columns(
            *metric.moments(), float((self.a != 0).mean()), cells=self.cells()
        )


def compare_groups(halves: list[CellMoments], one: int, other: int) -> Comparison:
    return stratify(halves).compared[one, other]


def slow_compare(
    x: np.ndarray, target: np.ndarray, group: np.ndarray, one: int, other: int
) -> tuple[float, float, float]:
    """r, p and pairs of one neuron, sample by sample."""
    keep = np.array([
        g in (one, other)
        and any(group[i] == one for i in np.flatnonzero(target == c))
        and any(group[i] == other for i in np.flatnonzero(target == c))
        for g, c in zip(group, target, strict=True)
    ])  # fmt: skip
    x, target, high = x[keep], target[keep], (group[keep] == one).astype(float)
    t = variance = pairs = 0.0
    spread, dof, factor = [0.0, 0.0], [0, 0], [0.0, 0.0]
    for c in set(target.tolist()):
        mine, which = x[target == c], high[target == c]
        n, n1 = len(mine), int(which.sum())
        t += sum(v - mine.mean() for v in mine[which == 1])
        variance += n1 * (n - n1) / (n * (n - 1)) * sum((v - mine.mean()) ** 2 for v in mine)
        pairs += n1 * (n - n1) / n
        for side in (0, 1):
            values = mine[which == side]
            spread[side] += sum((v - values.mean()) ** 2 for v in values)
            dof[side] += len(values) - 1
            factor[side] += (n1 * (n - n1) / n) ** 2 / len(values)
    if (x == x[0]).all():
        return math.nan, math.nan, pairs
    r = partial_r(x, high, one_hot(target, int(target.max()) + 1))
    error = [s / d * f for s, d, f in zip(spread, dof, factor, strict=True)]
    welch = sum(error) ** 2 / sum(e**2 / d for e, d in zip(error, dof, strict=True))
    p = max(stats.norm.sf(t / math.sqrt(variance)), stats.t.sf(t / math.sqrt(sum(error)), welch))
    return r, p, pairs


@pytest.mark.parametrize("classes", [1, 2, 40])
def test_every_column_of_a_part_against_a_loop(classes: int) -> None:
    samples = Samples(classes)
    found = samples.columns()
    active = (samples.x != 0).mean(0)
    p: dict[str, np.ndarray] = {}
    for name, groups in PARTS.items():
        slow = [slow_compare(samples.x[:, j], samples.target, samples.group, *groups)
                for j in range(D)]  # fmt: skip
        r, p[name], pairs = np.array(slow).T
        np.testing.assert_allclose(found[f"r_{name}"], r, rtol=1e-8, err_msg=name)
        p[name][pairs * active < F.MIN_EXPECTED_COACTIVE] = math.nan
        np.testing.assert_allclose(found[f"q_{name}"], slow_fdr(p[name]), rtol=1e-6, err_msg=name)
    for claim, both in CLAIMS.items():
        expected = slow_fdr(np.max([p[name] for name in both], 0))
        np.testing.assert_allclose(found[f"q_{claim}"], expected, rtol=1e-6, err_msg=claim)
    for j in (0, 1, 2, 3, 5):
        parts = CLAIMS["only_model" if found["r"][j] > 0 else "only_baseline"]
        weakest = min(
            slow_compare(samples.x[mine, j], samples.target[mine], samples.group[mine],
                         *PARTS[part])[0]
            for part in parts for mine in (samples.fold == 0, samples.fold == 1)
        )  # fmt: skip
        assert found["parts_replicated"][j] == pytest.approx(weakest, rel=1e-8)
    assert np.isnan(found["r_model_right"]).tolist() == [False] * 4 + [True, False]


def test_each_neuron_shows_the_part_it_was_made_for() -> None:
    found = Samples(10, 6000, seed=1).columns()
    small = {name: (found[f"q_{name}"] <= 0.05).tolist()[:4] for name in (*PARTS, *CLAIMS)}
    assert small["baseline_wrong"] == [True, False, True, False]
    assert small["model_right"] == [True, True, False, False]
    assert small["only_model"] == [True, False, False, False]
    assert small["only_baseline"] == [False, False, False, True]


def test_where_the_model_is_hardly_ever_wrong_one_part_decides() -> None:
    samples = Samples(3, wrong=0.02)
    found = samples.columns()
    assert (samples.group == F.NEITHER).sum() < 25
    assert np.isnan(found["q_model_right"]).all()
    np.testing.assert_array_equal(found["q_only_model"], found["q_baseline_wrong"])
    assert np.isnan(found["q_only_baseline"]).all()  # its baseline is never right alone


@pytest.mark.parametrize("kind", ["dense", "skewed", "skewed down", "sparse"])
@pytest.mark.parametrize(("classes", "rate"), [(2, 0.03), (10, 0.1), (300, 0.1)])
def test_the_null_of_shuffles_within_classes(kind: str, classes: int, rate: float) -> None:
    """Groups shuffled within classes, as under a placebo: small p are as rare as they say."""
    rng = np.random.default_rng(classes)
    n, d, runs = 3000, 200, 12
    target = rng.choice(classes, n, p=rng.dirichlet(np.full(classes, 2.0)))
    x = rng.normal(size=(n, d)) if kind == "dense" else rng.lognormal(size=(n, d))
    x = -x if kind == "skewed down" else x * (rng.random((n, d)) < 0.1) if kind == "sparse" else x
    x = (x + target[:, None] % 7) * rng.uniform(0.3, 3, classes)[target][:, None]
    p = []
    for _ in range(runs):
        share = np.clip(rate * rng.lognormal(sigma=0.8, size=classes), 0, 0.9)
        group = (rng.random(n) < share[target]).astype(int)
        (total, _) = cells_of(x, group, target, group, np.zeros(n, int))
        p.append(compare_groups([total], 1, 0).p)
    p = np.array(p)
    for level, most in ((0.05, 1.25), (1e-3, 3.0)):
        assert (p <= level).mean() <= most * level
    any_called = [(F.adjust_p_values(run) <= 0.05).any() for run in p]
    assert np.mean(any_called) <= 0.25  # 12 runs


# --- the sums -------------------------------------------------------------------------------------


def test_sums_do_not_depend_on_batches_blocks_or_parts() -> None:
    x = torch.randn(90, 5000) * 3 + 50
    a, group, half = torch.randn(90), torch.arange(90) % 4, torch.arange(90) // 7 % 2
    row = torch.arange(90) % 3

    def moments(sizes: list[int], widths: list[int]) -> list[CellMoments]:
        cells = Cells(5000, 3)
        for rows in torch.arange(90).split(sizes):
            parts = [part.contiguous() for part in x[rows].split(widths, 1)]
            cells.add(parts, a[rows], row[rows], group[rows], half[rows])
        return cells.moments([2, 0, -1, 1], by_class=True)

    whole, parts = moments([90], [5000]), moments([1, 30, 59], [7, 4093, 900])
    for one, other in zip(whole, parts, strict=True):
        for name in ("counts", "advantage", "shift", "sums", "squares"):
            np.testing.assert_allclose(
                getattr(one, name), getattr(other, name), rtol=1e-9, atol=1e-9, err_msg=name
            )
    mine = ((row == 0) & (group == 3) & (half == 1)).numpy()
    column = x[:, 4321].double().numpy()
    assert whole[1].counts[1, 3] == mine.sum()
    mean = whole[1].shift[4321] + whole[1].sums[1, 3, 4321] / mine.sum()
    assert mean == pytest.approx(column[mine].mean(), rel=1e-12)
    assert whole[0].counts[2].sum() == 0  # a class that this process has not met


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64])
def test_constants_come_out_as_constants(dtype: torch.dtype) -> None:
    x = torch.full((200, 2), 3.3).to(dtype)
    x[:, 1] += torch.arange(200).to(dtype) % 2
    group, target = np.arange(200) // 2 % 4, np.arange(200) // 8 % 3
    total = cells_of(x, torch.zeros(200), target, group, np.zeros(200, int))[0]
    assert (total.squares[..., 0] == 0).all()
    assert np.isnan(compare_groups([total], 1, 0).r).tolist() == [True, False]


def test_spread_that_is_small_beside_the_mean() -> None:
    samples = Samples(3)
    plain = compare_groups(samples.cells(), 1, 0)
    samples.x = samples.x * 1e-3 + 1e5
    shifted = compare_groups(samples.cells(), 1, 0)
    np.testing.assert_allclose(shifted.r[:4], plain.r[:4], rtol=1e-6)


def test_neurons_that_were_not_finite_are_nan_and_harm_no_other() -> None:
    samples = Samples(3)
    plain = samples.columns()
    samples.x[7, 0], samples.x[8, 1] = np.inf, np.nan
    with pytest.warns(UserWarning, match="2 of 6 neurons"):
        broken = samples.columns()
    for name in ("r_model_right", "q_only_model", "r_within_class", "mean_both"):
        assert np.isnan(broken[name][:2]).all(), name
    np.testing.assert_array_equal(broken["r_model_right"][2:], plain["r_model_right"][2:])


# --- the rows of classes --------------------------------------------------------------------------


def test_rows_are_given_out_as_classes_are_met() -> None:
    rows = ClassRows(4)
    batches = [[70, 3, 70], [3, 12], [500, 70], []]
    found = [rows(torch.tensor(batch, dtype=torch.long)).tolist() for batch in batches]
    assert found == [[1, 0, 1], [0, 2], [3, 1], []]
    assert rows.met() == {3: 0, 70: 1, 12: 2, 500: 3}
    assert rows(torch.tensor([9, 3])).tolist() == [4, 0]
    assert rows.met() is None  # five classes
    assert ClassRows(4).met() == {}


def test_classes_have_a_row_each_where_there_is_room() -> None:
    rows = ClassRows(6, 5)
    assert rows(torch.tensor([3, 0, 3])).tolist() == [3, 0, 3]
    assert rows(torch.tensor([1])).tolist() == [1]
    assert rows.met() == {0: 0, 1: 1, 3: 3}
    for strange in (5, 6, -1):
        rows = ClassRows(6, 5)
        assert rows(torch.tensor([strange, 2])).tolist() == [5, 2]
        assert rows.met() is None


def test_rows_never_wait_for_a_device() -> None:
    """A tensor without values cannot be waited for."""
    rows = ClassRows(4, 10)
    target = torch.empty(7, dtype=torch.long, device="meta")
    assert rows(target).shape == (7,)
    cells = Cells(6, 5, "meta")
    for _ in range(2):
        x = [torch.empty(7, 6, device="meta")]
        cells.add(x, torch.empty(7, device="meta"), rows(target), target, target)


def test_pools_hold_classes_alike() -> None:
    """Pools differ more than the classes in them, in both odds, and hold about as many wins."""
    rng = np.random.default_rng(0)
    wrong, right = rng.uniform(0.05, 0.6, 400), rng.uniform(0.2, 0.9, 400)
    n = 2000
    both, neither = (1 - wrong) * n, (1 - right) / right * wrong * n
    seen = torch.tensor(np.stack([both, wrong * n, both * 0 + 5, neither], 1)).round().long()
    pool = pools(seen, 1000)
    assert pool.shape == (401,)
    assert sorted(set(pool.tolist())) == list(range(64))
    for odds in (wrong, right):
        within = sum(odds[pool[:-1].numpy() == p].var() * (pool[:-1] == p).sum() for p in range(64))
        assert within / 400 < 0.12 * odds.var()
    wins = torch.bincount(pool[:-1], seen[:, 1].double())
    assert wins.max() < 3 * wins.mean()
    assert len(set(pools(seen, 5).tolist())) == 5
    assert set(pools(seen[:3], 2).tolist()) <= {0, 1}


def wide(neurons: int, most: int = 40) -> CellMoments:
    rng = np.random.default_rng(0)
    counts = rng.integers(2, most, (3, 4)).astype(float)
    sums = torch.from_numpy(rng.normal(size=(3, 4, neurons)))
    squares = torch.from_numpy(counts[..., None] * rng.uniform(1, 2, (3, 4, neurons)))
    return CellMoments(counts, counts, np.zeros(neurons), sums, squares)


def test_many_neurons_are_tested_on_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    cells, real, seen = wide(13_000, most=20), special.stdtr, []  # few degrees of freedom
    cells.squares[:, :, 7] = math.nan

    def noting(dof: np.ndarray, t: np.ndarray) -> np.ndarray:
        seen.append(len(t))
        return real(dof, t)

    monkeypatch.setattr(special, "stdtr", noting)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone = stratify([cells]).compared
    assert seen == [4 * 12_999]
    for threads, expected in ((2, [25_998] * 2), (64, [4333] * 12)):
        seen.clear()
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        found = stratify([cells]).compared
        assert seen == expected
        for groups in alone:
            np.testing.assert_array_equal(found[groups].p, alone[groups].p)
    assert all(np.isnan(part.p).nonzero()[0].tolist() == [7] for part in alone.values())


def test_students_distribution_is_scipys() -> None:
    """To 2e-11 of p, on both sides of where the normal number stands in for it."""
    dof, t = np.meshgrid(np.geomspace(1, 1e7, 150), np.r_[np.linspace(-37, 37, 301), np.nan])
    found, expected = (
        nearly_student(*map(torch.from_numpy, (t, dof))).numpy(),
        special.stdtr(dof, t),
    )
    rest = np.isnan(found)
    assert 0.4 < rest.mean() < 0.7
    found[rest] = student(t[rest], dof[rest])
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    told = expected > 1e-290  # of smaller ones doubles have fewer digits
    np.testing.assert_allclose(found[told], expected[told], rtol=2e-11)
    assert (found[~told & ~np.isnan(found)] <= 1e-289).all()


def test_neurons_come_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No temporary is as large as the sums are, and nothing depends on where blocks end."""
    halves = [wide(2000), wide(2000, most=20)]
    whole = stratify(halves)
    monkeypatch.setattr(stratified, "_BLOCK", 1)
    monkeypatch.setattr(stratified, "_FEWEST", 300)
    parts = stratify(halves)
    for name in ("means", "comoment", "within"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-12)
    for groups, found in parts.compared.items():
        for name in ("r", "p", "weakest"):
            expected = getattr(whole.compared[groups], name)
            np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("by_class", "most", "expected"), [(True, 200, 1), (True, 20, 2), (False, 20, 1)]
)
def test_the_device_is_waited_for_once(
    by_class: bool, most: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice where few degrees of freedom ask for Student's distribution itself."""
    halves = [replace(wide(5, most), by_class=by_class)] * 2
    waits, cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: waits.append(x.shape) or cpu(x))
    stratify(halves)
    assert len(waits) == expected
