"""Pure statistics against SciPy, mpmath and loops."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from torch import Tensor

from lightning_neurocorr import functional as F
from lightning_neurocorr.functional.inference import student_p
from lightning_neurocorr.metric import NeuronAdvantageCorrelation
from tests.helpers import one_hot, partial_r, pearson, seeded, slow_fdr


def moments(x: np.ndarray, *columns: np.ndarray) -> F.Moments:
    """Moments of neurons ``(N, D)`` and columns (``(N,)`` or ``(N, q)``) through the metric."""
    wide = np.column_stack(columns)
    metric = NeuronAdvantageCorrelation(x.shape[1], num_covariates=wide.shape[1] - 1)
    w = torch.as_tensor(wide, dtype=torch.float64)
    metric.update(torch.as_tensor(x), w[:, 0], w[:, 1:])
    return metric.moments()[0]


# --- one sample -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_correctness_of_scores_ids_and_one_hot_labels(dtype: torch.dtype) -> None:
    scores = torch.randn(50, 4, generator=seeded()).to(dtype)
    target = torch.randint(0, 4, (50,), generator=seeded(1))
    expected = [int(row.float().argmax()) == int(y) for row, y in zip(scores, target, strict=True)]
    for prediction in (scores, scores.argmax(1), scores.argmax(1).to(dtype)):
        for labels in (target, target.int(), target.to(dtype), torch.eye(4)[target]):
            assert F.correctness(prediction, labels).tolist() == expected


def test_scores_with_nan_are_never_correct() -> None:
    scores = torch.tensor([[0.0, 1.0], [math.nan, 1.0], [1.0, math.nan], [math.nan, math.nan]])
    for target in (torch.zeros(4).long(), torch.ones(4).long()):
        assert F.correctness(scores, target)[1:].tolist() == [False] * 3


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (torch.zeros(3, 1), torch.zeros(3), r"`prediction` to be class ids .* got shape \(3, 1\)"),
        (torch.zeros(3, 2, 2), torch.zeros(3), "For other tasks pass `predictions`"),
        (torch.zeros(3), torch.zeros(3, 1, 1), "`target` to be class ids"),
        (torch.tensor([0.5, 1]), torch.zeros(2), "numbers such as 0.5"),
        (torch.zeros(2), torch.tensor([math.nan, 1]), r"`target` .* numbers such as nan"),
        (torch.zeros(3), torch.zeros(2), "same length, but got 3 and 2"),
    ],
)
def test_what_is_no_classification_is_an_error(
    prediction: Tensor, target: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        F.correctness(prediction, target)


def test_outcome_groups() -> None:
    model, baseline = torch.tensor([1, 1, 0, 0]), torch.tensor([1, 0, 1, 0])
    expected = [F.BOTH, F.ONLY_MODEL, F.ONLY_BASELINE, F.NEITHER]
    assert F.outcome_groups(model, baseline).tolist() == expected == [0, 1, 2, 3]
    assert F.outcome_groups(model.bool(), baseline.bool()).tolist() == expected


def test_log_probability_of_logits_probabilities_and_their_logs() -> None:
    logits = torch.randn(40, 5, generator=seeded()).double()
    target = torch.randint(0, 5, (40,), generator=seeded(1))
    expected = [
        math.log(math.exp(row[y]) / sum(map(math.exp, row.tolist())))
        for row, y in zip(logits, target.tolist(), strict=True)
    ]
    for scores in (logits, logits + 100, logits.softmax(1), logits.log_softmax(1)):
        for labels in (target, torch.eye(5)[target]):
            found = F.log_probability(scores, labels)
            assert found.dtype == torch.float64
            np.testing.assert_allclose(found, expected, atol=1e-9)
    half = F.log_probability(logits.softmax(1).half(), target)
    np.testing.assert_allclose(half, expected, atol=3e-3)


def test_log_probability_has_a_floor() -> None:
    target = torch.tensor([1, 1])
    for scores in (
        torch.tensor([[1.0, 0.0], [1.0, 0.0]]),
        torch.tensor([[1000.0, 0.0], [0.0, -math.inf]]),
    ):
        found = F.log_probability(scores, target)
        np.testing.assert_allclose(found, math.log(torch.finfo(torch.float32).tiny), rtol=1e-12)
    with pytest.raises(ValueError, match=r"shape \(N, C\) for `advantage='log_prob'`, but got \(2"):
        F.log_probability(target, target)


def test_the_three_kinds_of_advantage() -> None:
    a, b = (torch.randn(30, 3, generator=seeded(i)) for i in range(2))
    y = torch.randint(0, 3, (30,), generator=seeded(2))
    right = F.compute_advantage("correctness", a, b.argmax(1), y)
    assert right.tolist() == [
        float(a[i].argmax() == y[i]) - float(b[i].argmax() == y[i]) for i in range(30)
    ]
    log = F.compute_advantage("log_prob", a, b.softmax(1), y)
    expected = [float(a[i].log_softmax(0)[y[i]] - b[i].log_softmax(0)[y[i]]) for i in range(30)]
    np.testing.assert_allclose(log, expected, atol=1e-6)

    def errors(prediction: Tensor, baseline: Tensor, target: Tensor) -> Tensor:
        return (baseline - target).abs() - (prediction - target).abs()

    p, q = a[:, 0].requires_grad_(), b[:, 0]
    own = F.compute_advantage(errors, p, q, y.float())
    assert own.dtype == torch.float64
    assert not own.requires_grad
    np.testing.assert_allclose(own, errors(p, q, y.float()).detach(), atol=1e-6)


@pytest.mark.parametrize(
    ("answer", "got"), [(torch.zeros(4, 1), r"\(4, 1\)"), (0.5, "float"), (None, "NoneType")]
)
def test_what_a_callable_advantage_must_return(answer: object, got: str) -> None:
    x = torch.zeros(4)
    with pytest.raises(ValueError, match=rf"return a tensor of shape \(4,\).* but got {got}"):
        F.compute_advantage(lambda *_: answer, x, x, x)


def test_advantages_of_label_sets() -> None:
    rows = torch.rand(3, 60, 4, generator=seeded())
    model, baseline, truth = rows > 0.5
    truth[:2], model[0] = False, False
    found = {kind: F.compute_advantage(kind, model, baseline, truth) for kind in F.LABEL_ADVANTAGES}
    for i in range(60):
        exact, index = [], []
        for answer in (model[i].tolist(), baseline[i].tolist()):
            said = {j for j in range(4) if answer[j]}
            true = {j for j in range(4) if truth[i, j]}
            exact.append(float(said == true))
            index.append(len(said & true) / len(said | true) if said | true else 1.0)
        assert found["exact_match"][i] == exact[0] - exact[1]
        assert found["jaccard"][i] == pytest.approx(index[0] - index[1], abs=1e-12)
    assert F.class_ids(truth).tolist() == [-1] * 60
    with pytest.raises(ValueError, match=r"label sets \(N, L\) of type bool .* got torch.float32"):
        F.compute_advantage("jaccard", rows[0], baseline, truth)


def test_names_of_advantages() -> None:
    for kind in (*F.CLASS_ADVANTAGES, *F.LABEL_ADVANTAGES, lambda *_: None):
        F.check_advantage(kind)
    with pytest.raises(ValueError, match=r"'correctness', 'log_prob' or a callable .* got 'acc'"):
        F.check_advantage("acc")


# --- moments --------------------------------------------------------------------------------------


def sample(seed: int, n: int = 400, classes: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Neurons that go with the class and the advantage, the advantage, and the class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    a = rng.choice([-1.0, 0.0, 1.0], n) + (y == 1)
    x = rng.normal(size=(n, 6)) + np.outer(y == 1, [0, 1, 2, 3, 0, 1]) + 0.3 * a[:, None]
    return x, a, y


@pytest.mark.parametrize("classes", [1, 2, 4, 9])
def test_r_within_class_is_partial_correlation(classes: int) -> None:
    x, a, y = sample(classes, classes=classes)
    indicators = one_hot(y, classes + 1)  # the last class is never seen
    m = moments(x, a, indicators)
    found, seen = F.correlation_within(m, slice(1, classes + 2))
    assert seen == classes
    np.testing.assert_allclose(found, [partial_r(x[:, j], a, indicators) for j in range(6)])


def test_samples_outside_all_groups_are_a_group_of_their_own() -> None:
    x, a, y = sample(0)
    found, seen = F.correlation_within(moments(x, a, one_hot(y, 2)), slice(1, 3))
    expected = [partial_r(x[:, j], a, one_hot(y, 2)) for j in range(6)]
    np.testing.assert_allclose(found, expected)
    assert seen == 3


def test_a_neuron_that_is_the_class_has_no_r_within_it() -> None:
    x, a, y = sample(0)
    x = np.column_stack([y, y + 1e-5 * x[:, 0], x[:, 0]]).astype(np.float64)
    found, _ = F.correlation_within(moments(x, a, one_hot(y, 4)), slice(1, 5))
    assert found.isnan().tolist() == [True, True, False]
    found, _ = F.correlation_within(moments(x, 2.0 * y, one_hot(y, 4)), slice(1, 5))
    assert found.isnan().all()


def test_r_given_a_covariate_is_partial_correlation() -> None:
    x, a, y = sample(3)
    z = np.array([a[y == c].mean() for c in range(4)])[y]
    found = F.correlation_given(moments(x, a, z), 1)
    np.testing.assert_allclose(found, [partial_r(x[:, j], a, z) for j in range(6)])


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_a_constant_covariate_takes_nothing_out(constant: float) -> None:
    x, a, _ = sample(3)
    found = F.correlation_given(moments(x, a, np.full_like(a, constant)), 1)
    np.testing.assert_allclose(found, [pearson(x[:, j], a) for j in range(6)])


def test_group_means() -> None:
    x, a, y = sample(1, classes=3)
    m = moments(x, a, one_hot(y, 4))
    for c in range(3):
        np.testing.assert_allclose(F.group_means(m, 1 + c), x[y == c].mean(0))
    assert F.group_means(m, 4).isnan().all()


# --- inference ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [4, 10, 500])
def test_interval_and_p_are_those_of_scipy(n: int) -> None:
    rng = np.random.default_rng(n)
    x = rng.normal(size=(20, n))
    a = rng.normal(size=n)
    tests = [stats.pearsonr(row, a) for row in x]
    r = np.array([test.statistic for test in tests])
    np.testing.assert_allclose(F.p_value(r, n), [test.pvalue for test in tests], rtol=1e-9)
    low, high = F.fisher_interval(r, n, confidence=0.9)
    intervals = [test.confidence_interval(0.9) for test in tests]
    np.testing.assert_allclose(np.stack([low, high], 1), np.array(intervals), rtol=1e-9)
    both = F.p_value(r, n + 3, controls=3), F.fisher_interval(r, n + 3, controls=3)[0]
    np.testing.assert_allclose(both, [F.p_value(r, n), F.fisher_interval(r, n)[0]])


def test_interval_and_p_at_the_ends() -> None:
    r = np.array([-1.0, 0.0, 1.0, np.nan])
    low, high = F.fisher_interval(r, 50)
    np.testing.assert_array_equal(np.stack([low, high])[:, [0, 2, 3]], [[-1, 1, np.nan]] * 2)
    np.testing.assert_array_equal(F.p_value(r, 50), [0, 1, 0, np.nan])
    assert F.log_p_value(r, 50)[[0, 2]].tolist() == [-math.inf] * 2
    for n in (0, 1, 2):
        assert np.isnan(F.p_value(r, n)).all()
    assert np.isnan(F.fisher_interval(r, 3)).all()
    assert np.isnan(F.fisher_interval(r, 9, controls=6)).all()


@pytest.mark.parametrize("dof", [1, 15, 300])
@pytest.mark.parametrize("count", [7, 20_001])
def test_students_p_of_few_and_of_many(dof: int, count: int) -> None:
    t = np.append(np.linspace(-30, 30, count), np.nan)
    expected = 2 * stats.t.sf(np.abs(t), dof)
    np.testing.assert_allclose(student_p(t, dof), expected, rtol=1e-9, atol=1e-300)


def exact_log_p(r: float, n: float) -> float:
    with mpmath.workdps(50):
        x = 1 - mpmath.mpf(r) ** 2
        return float(mpmath.log(mpmath.betainc((n - 2) / 2, 0.5, 0, x, regularized=True)))


@pytest.mark.parametrize(
    ("r", "n"),
    [
        (0.3, 20), (-0.9, 50), (0.3, 10_000), (0.01, 10**7), (0.36, 9_000), (0.5, 5_000),
        (-0.05, 10**6), (0.02, 10**7), (0.9, 2_800), (0.999, 740), (1 - 1e-12, 170),
        (1 - 2**-52, 40), (1 - 1e-12, 4), (1 - 1e-8 / 3, 200),
    ],
)  # fmt: skip
def test_log_p_far_beyond_the_smallest_float(r: float, n: float) -> None:
    expected = exact_log_p(r, n)
    assert F.log_p_value(np.array(r), n) == pytest.approx(expected, rel=1e-11, abs=1e-12)
    assert F.p_value(np.array(r), n) == pytest.approx(math.exp(expected), rel=1e-8)


@pytest.mark.parametrize("n", [3, 5, 12.5, 300, 40_000])
@pytest.mark.parametrize("widest", [1.0, 6.0, 36.0, 200.0])
def test_log_p_of_many_is_that_of_each(n: float, widest: float, seen_beta: list[int]) -> None:
    z = np.linspace(0.01, widest, 20_001)
    r = np.tanh(z / math.sqrt(n - 2)) * np.where(np.arange(len(z)) % 3, 1, -1)
    r[[5, 17, 30]] = math.nan, 1.0, -1.0
    found = F.log_p_value(r.reshape(3, -1), n).ravel()
    one_by_one = np.count_nonzero(~(z < 40) | ~(np.abs(r) < 1))
    assert sum(seen_beta) <= one_by_one + 40 * 64 + 2
    assert np.isnan(found[5])
    assert found[[17, 30]].tolist() == [-math.inf] * 2
    alone = np.concatenate([F.log_p_value(part, n) for part in np.array_split(r, 4_000)])
    np.testing.assert_allclose(found, alone, rtol=1e-9, atol=5e-9)  # x = 1 - r^2 is rounded there
    for i in range(1, len(r), 1_777):
        if abs(r[i]) < 1 - 1e-6 and alone[i] > -800:
            assert found[i] == pytest.approx(exact_log_p(r[i], n), rel=1e-11, abs=3e-10)


@pytest.fixture
def seen_beta(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many numbers the incomplete beta function was asked for, call by call."""
    real, seen = special.betainc, []

    def counted(a: float, b: float, x: np.ndarray) -> np.ndarray:
        seen.append(np.size(x))
        return real(a, b, x)

    monkeypatch.setattr(special, "betainc", counted)
    return seen


def summed_log_p(r: float, n: int) -> float:
    """The series x^a (1-x)^b / (a B(a, b)) sum_k (a+b)_k / (a+1)_k x^k, term by term."""
    with mpmath.workdps(30):
        a, b, x = mpmath.mpf(n - 2) / 2, mpmath.mpf(1) / 2, 1 - mpmath.mpf(r) ** 2
        term = total = mpmath.mpf(1)
        k = 0
        while term > total * mpmath.mpf(10) ** -25:
            term *= (a + b + k) / (a + 1 + k) * x
            total += term
            k += 1
        front = a * mpmath.log(x) + b * mpmath.log(1 - x) - mpmath.log(a * mpmath.beta(a, b))
        return float(front + mpmath.log(total))


@pytest.mark.parametrize("n", [5, 60, 2_001, 30_000])
@pytest.mark.parametrize("exponent", [-3, -200, -259, -261, -320, -1000, -2000])
def test_log_p_is_right_down_to_1e_minus_2000(exponent: int, n: int) -> None:
    r = math.sqrt(-math.expm1(2 * exponent * math.log(10) / n))  # p is near (1 - r^2)^(n/2)
    if 0.1 < r < 1:
        assert F.log_p_value(np.array(r), n) == pytest.approx(summed_log_p(r, n), rel=1e-10)


@settings(max_examples=60, deadline=None)
@given(
    p=st.lists(st.one_of(st.floats(0, 1), st.just(0.01), st.just(math.nan)), max_size=20),
    method=st.sampled_from(["bh", "by"]),
)
def test_false_discovery_rate_by_its_definition(p: list[float], method: str) -> None:
    found = F.adjust_p_values(np.array(p), method)
    np.testing.assert_allclose(found, slow_fdr(p, method), rtol=1e-9, atol=1e-300)  # subnormal


def test_expected_coactive_samples() -> None:
    active = np.array([0.0, 100.0, 1000.0])
    np.testing.assert_allclose(F.expected_coactive(active, 0.15), [0, 15, 150])


def sparse_null(share: float, rare: float, n: int, neurons: int) -> tuple[np.ndarray, np.ndarray]:
    """p of unrelated lognormal spikes, and the expected number of co-active samples of each."""
    rng = np.random.default_rng(0)
    a = rng.choice([-1.0, 0.0, 1.0], n, p=[rare / 3, 1 - rare, 2 * rare / 3])
    x = rng.lognormal(0, 0.5, (n, neurons)) * (rng.random((n, neurons)) < share)
    m = moments(x, a)
    active = np.count_nonzero(x, axis=0)
    return F.p_value(F.correlation(m).numpy(), n), F.expected_coactive(active, (a != 0).mean())


def test_the_sparsity_guard_keeps_false_alarms_rare() -> None:
    """Unrelated spikes: the analytic p fails where the guard steps in, and holds elsewhere."""
    assert F.MIN_EXPECTED_COACTIVE == 25
    p, coactive = sparse_null(share=0.005, rare=0.015, n=2000, neurons=4000)
    assert (coactive < F.MIN_EXPECTED_COACTIVE).all()
    assert np.nanmean(p < 1e-3) > 5e-3  # five times too many
    assert (F.adjust_p_values(p) <= 0.05).any()
    p, coactive = sparse_null(share=0.15, rare=0.15, n=2000, neurons=4000)
    assert (coactive >= F.MIN_EXPECTED_COACTIVE).all()
    assert np.mean(p < 1e-3) < 3e-3
    assert np.mean(p < 0.05) == pytest.approx(0.05, abs=0.015)
    assert not (F.adjust_p_values(p) <= 0.05).any()


@pytest.mark.parametrize("sizes", [(30, 20, 10, 40), (30, 20, 0, 40), (0, 5, 0, 3), (9, 1, 1, 1)])
def test_contrast_is_the_smallest_pooled_t(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    group = np.repeat(range(4), sizes)
    x = rng.normal(size=(len(group), 8)) + np.outer(group == F.ONLY_MODEL, rng.normal(size=8))
    means = np.stack([x[group == g].mean(0) if sizes[g] else np.full(8, np.nan) for g in range(4)])
    found = F.contrast_t(means, np.array(sizes), x.var(0) * len(x))
    seen = [g for g in range(4) if sizes[g]]
    for j in range(8):
        within = sum(((x[group == g, j] - means[g, j]) ** 2).sum() for g in seen)
        sd = math.sqrt(within / (len(x) - len(seen)))
        ts = [
            (means[1, j] - means[g, j]) / (sd * math.sqrt(1 / sizes[1] + 1 / sizes[g]))
            for g in seen
            if g != F.ONLY_MODEL
        ]
        assert found[j] == pytest.approx(min(ts))


def test_contrast_of_two_groups_is_the_t_test_of_scipy() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(1, 1, 12), rng.normal(0, 1, 30)
    means = np.array([[y.mean()], [x.mean()], [np.nan], [np.nan]])
    total = np.concatenate([x, y]).var() * 42
    found = F.contrast_t(means, np.array([30, 12, 0, 0]), np.array([total]))
    assert found == pytest.approx(stats.ttest_ind(x, y).statistic)


def test_contrast_is_undefined_without_groups_or_spread() -> None:
    means, ss = np.ones((4, 3)), np.array([0.0, np.nan, np.inf])
    assert np.isnan(F.contrast_t(means, np.array([5, 5, 5, 5]), ss)).all()
    assert np.isnan(F.contrast_t(means, np.array([5, 0, 5, 5]), np.ones(3))).all()
    assert np.isnan(F.contrast_t(means, np.array([0, 5, 0, 0]), np.ones(3))).all()
    assert np.isnan(F.contrast_t(means, np.array([1, 1, 0, 0]), np.ones(3))).all()


@pytest.mark.parametrize(("wins", "losses"), [(0, 3), (5, 5), (40, 12), (3, 90), (900, 800)])
def test_mcnemar_is_the_binomial_sum(wins: int, losses: int) -> None:
    n, least = wins + losses, min(wins, losses)
    tail = sum(math.comb(n, k) for k in range(least + 1)) * 2
    assert F.mcnemar_p(wins, losses) == pytest.approx(min(1.0, tail / 2**n), rel=1e-9)
    assert math.isnan(F.mcnemar_p(0, 0))
