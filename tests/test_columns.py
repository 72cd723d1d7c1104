"""Columns of a report from streamed moments, against the raw samples."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from lightning_neurocorr import functional as F
from lightning_neurocorr.attribution import AttributionColumns
from lightning_neurocorr.metric import NeuronAdvantageCorrelation
from lightning_neurocorr.report import COLUMNS
from lightning_neurocorr.report.layout import Layout
from lightning_neurocorr.validation.columns import attribution_columns, correlation_columns
from tests.helpers import GROUP_NAMES, cells_of, one_hot, partial_r, pearson, slow_fdr

N, D, CLASSES = 900, 8, 3


class Case:
    """A validation set with everything that the columns say about it."""

    def __init__(
        self,
        rows: int = CLASSES,
        grouped: bool = True,
        empty_group: int = -1,
        sizes: list[int] | None = None,
    ) -> None:
        rng = np.random.default_rng(0)
        self.target = rng.integers(0, CLASSES, N)
        self.group = rng.choice([g for g in range(4) if g != empty_group], N)
        self.a = np.array([0.0, 1.0, -1.0, 0.0])[self.group]
        self.x = rng.normal(size=(N, D)) + np.outer(self.a, np.linspace(-0.4, 0.4, D))
        self.x[:, 2] += self.target
        self.x[:, 4] *= rng.random(N) < 0.02  # too sparse to test
        self.x[:, 5] = 1.5
        self.fold = rng.integers(0, 2, N)
        metric = NeuronAdvantageCorrelation(D, folds=2, count_active=True)
        x, a, fold = map(torch.as_tensor, (self.x, self.a, self.fold))
        metric.update(x, a, fold=fold)
        cells = cells_of(x, a, self.target, self.group, fold, rows=rows, by_class=rows > 0)
        self.found = correlation_columns(
            *metric.moments(), (self.a != 0).mean(), cells=cells if grouped else (), sizes=sizes
        )

    def check(self, name: str, expected: list[float] | np.ndarray) -> None:
        np.testing.assert_allclose(self.found[name], expected, rtol=1e-7, atol=1e-12, err_msg=name)


def test_columns_are_those_of_a_report() -> None:
    case = Case()
    assert case.found.keys() <= set(COLUMNS)
    assert all(column.shape == (D,) for column in case.found.values())
    assert all(column.dtype == np.float64 for column in case.found.values())


def test_r_its_interval_and_its_p() -> None:
    case = Case()
    tests = [stats.pearsonr(case.x[:, j], case.a) if j != 5 else None for j in range(D)]
    case.check("r", [t.statistic if t else math.nan for t in tests])
    case.check("r_low", [t.confidence_interval().low if t else math.nan for t in tests])
    case.check("r_high", [t.confidence_interval().high if t else math.nan for t in tests])
    coactive = (case.x != 0).sum(0) * (case.a != 0).mean()
    assert (coactive < F.MIN_EXPECTED_COACTIVE).tolist() == [j == 4 for j in range(D)]
    p = [t.pvalue if t and j != 4 else math.nan for j, t in enumerate(tests)]
    case.check("p_value", p)
    case.check("q_value", slow_fdr(p))


@pytest.mark.parametrize("sizes", [[8], [2, 3, 0, 2, 1]])
def test_q_counts_the_neurons_of_a_layer(sizes: list[int]) -> None:
    alone, found = Case(sizes=[1] * D).found, Case(sizes=sizes).found
    names = [name for name in found if name.startswith("q_")]
    assert {"q_value", "q_within_class", "q_only_model", "q_model_right"} <= set(names)
    for name in names:  # of a layer of one neuron q is p
        p = np.split(alone[name], np.cumsum(sizes)[:-1])
        expected = np.concatenate([slow_fdr(part.tolist()) for part in p])
        np.testing.assert_allclose(found[name], expected, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("rows", [CLASSES, CLASSES + 2])
def test_r_within_class(rows: int) -> None:
    case = Case(rows)
    given, lost = one_hot(case.target, CLASSES), CLASSES - 1
    r = np.array([partial_r(case.x[:, j], case.a, given) for j in range(D)])
    r[5] = math.nan  # residuals of a constant are rounding
    case.check("r_within_class", r)
    t = r * np.sqrt((N - 2 - lost) / (1 - r**2))
    p = 2 * stats.t.sf(np.abs(t), N - 2 - lost)
    p[4] = math.nan
    case.check("p_within_class", p)
    case.check("q_within_class", slow_fdr(p))


def test_where_the_class_says_all_nothing_within_it_is_shown() -> None:
    """A neuron that only tells the class; and a baseline whose advantage only tells the class."""
    target = np.arange(300) % 3
    pure, mixed = np.eye(3)[target][:, :1], np.random.default_rng(0).normal(size=(300, 1))
    for advantage in (np.random.default_rng(1).choice([-1.0, 1], 300), (target == 0).astype(float)):
        x = np.hstack([pure, mixed + pure])
        metric = NeuronAdvantageCorrelation(2, folds=2, count_active=True)
        metric.update(*map(torch.as_tensor, (x, advantage)), fold=torch.as_tensor(target % 2))
        cells = cells_of(x, advantage, target, np.where(advantage > 0, 1, 0), target % 2)
        found = correlation_columns(*metric.moments(), 1.0, cells=cells)
        explained = np.isnan(found["r_within_class"])
        assert explained.tolist() == [True, advantage.min() == 0]
        assert np.isnan(found["p_within_class"][explained]).all()
        assert (found["q_within_class"][explained] == 1).all()
        assert not np.isnan(found["q_within_class"]).any()


def test_without_classes_there_is_no_r_within_them() -> None:
    found = Case(rows=0).found
    assert not found.keys() & {"r_within_class", "q_only_model", "r_model_right"}
    assert "mean_only_model" in found


def test_r_in_both_halves() -> None:
    case = Case()
    halves = [
        [pearson(case.x[case.fold == f, j], case.a[case.fold == f]) for j in range(D)]
        for f in range(2)
    ]
    case.check("r_fold_0", halves[0])
    case.check("r_fold_1", halves[1])
    weaker = [
        math.nan if math.isnan(r) else min(a, b) if r >= 0 else max(a, b)
        for r, a, b in zip(case.found["r"], *halves, strict=True)
    ]
    case.check("r_replicated", weaker)


@pytest.mark.parametrize("empty", [-1, 0, 2, 3])
def test_profile_over_outcome_groups(empty: int) -> None:
    case = Case(empty_group=empty)
    for g, name in enumerate(GROUP_NAMES):
        inside = case.x[case.group == g]
        case.check(f"mean_{name}", inside.mean(0) if len(inside) else np.full(D, math.nan))
    seen = [g for g in range(4) if g != empty]
    within = sum(case.x[case.group == g].var(0) * (case.group == g).sum() for g in seen)
    sd = np.sqrt(within / (N - len(seen)))
    sizes = [(case.group == g).sum() for g in range(4)]
    mean = {g: case.x[case.group == g].mean(0) for g in seen}
    with np.errstate(invalid="ignore", divide="ignore"):
        ts = [
            (mean[1] - mean[g]) / (sd * math.sqrt(1 / sizes[1] + 1 / sizes[g]))
            for g in seen
            if g != 1
        ]
    expected = np.min(ts, 0)
    expected[5] = math.nan
    case.check("contrast_t", expected)


def test_without_outcomes_there_is_no_profile() -> None:
    found = Case(grouped=False).found
    assert not [name for name in found if name.startswith(("mean_", "contrast"))]


def test_mean_spread_and_activity() -> None:
    case = Case()
    case.check("mean", case.x.mean(0))
    case.check("std", case.x.std(0))
    case.check("active", (case.x != 0).mean(0))
    assert case.found["std"][5] == 0


def test_neurons_that_were_not_finite() -> None:
    metric = NeuronAdvantageCorrelation(2, folds=2, count_active=True)
    x = torch.randn(50, 2)
    x[3, 0] = math.inf
    metric.update(x, torch.randn(50), fold=torch.arange(50) % 2)
    with pytest.warns(UserWarning, match="1 of 2 neurons"):
        total, folds = metric.moments()
    found = correlation_columns(total, folds, 1.0)
    for name in ("r", "p_value", "mean", "std", "r_replicated"):
        assert np.isnan(found[name]).tolist() == [True, False], name


def test_attribution_is_corrected_within_its_layer() -> None:
    rng = np.random.default_rng(0)
    layout = Layout(("a", "left out", "b"), (3, 2, 3))
    given = {name: attributed(rng, 3) for name in ("a", "b")}
    given["b"].p_value[1] = math.nan
    found = attribution_columns(given, layout)
    told = {
        "attribution": "attribution",
        "attribution_low": "low",
        "attribution_contrast": "contrast",
        "attribution_shared": "shared",
    }
    for name, part in layout.split(np.arange(8)).items():
        if name not in given:
            assert all(np.isnan(column[part]).all() for column in found.values())
            continue
        for column, field in told.items():
            np.testing.assert_array_equal(found[column][part], getattr(given[name], field))
        for column, field in {
            "attribution_q": "p_value",
            "attribution_contrast_q": "contrast_p",
        }.items():
            expected = slow_fdr(getattr(given[name], field))
            np.testing.assert_allclose(found[column][part], expected, rtol=1e-9)
    assert attribution_columns({}, layout) == {}


def attributed(rng: np.random.Generator, neurons: int) -> AttributionColumns:
    """What is known of a layer, made up."""
    names = set(AttributionColumns.__dataclass_fields__) - {"n", "pairs"}
    return AttributionColumns(n=40, pairs=40, **{name: rng.random(neurons) for name in names})
