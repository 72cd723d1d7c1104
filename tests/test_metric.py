"""The streaming metric against two passes over everything in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_neurocorr import functional as F
from lightning_neurocorr.metric import NeuronAdvantageCorrelation
from tests.helpers import all_pearson, assert_same_r, seeded, split, streamed
from tests.neurons import ROWS, D, filled, related


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("sizes", [(256,), (1, 37)], ids=str)
def test_r_is_exact_to_1e_6(row: str, sizes: tuple[int, ...]) -> None:
    x, a = related()
    x = ROWS[row](x)
    found = streamed(x, a, sizes)
    assert not np.isnan(found).any()
    assert_same_r(found, all_pearson(x, a))


@pytest.mark.parametrize("row", ["normal", "mean 1e4", "5 spikes in 20,000", "sparse ReLU"])
def test_batches_of_one(row: str) -> None:
    x, a = related(2000)
    x = ROWS[row](x)
    assert_same_r(streamed(x, a, (1,)), all_pearson(x, a))


def test_batches_of_eight_over_a_long_time() -> None:
    x, a = related(24_000, 3)
    assert_same_r(streamed(x + 50, a, (8,)), all_pearson(x + 50, a))


@pytest.mark.parametrize("row", ["normal", "mean 1e6", "5 spikes in 20,000"])
def test_float64_is_exact_to_1e_11(row: str) -> None:
    x, a = related()
    x = ROWS[row](x.double())
    assert_same_r(streamed(x, a, (37,)), all_pearson(x, a), 1e-11)


def test_float64_beyond_the_range_of_float32() -> None:
    x, a = related(500)
    for scale in (1e-100, 1e100):
        assert_same_r(streamed(x.double() * scale, a), all_pearson(x.double(), a), 1e-11)


def test_advantage_with_a_mean_far_from_zero() -> None:
    x, a = related()
    a = 5 + 1e-3 * a.double()
    assert_same_r(streamed(x, a), all_pearson(x, a))


def test_small_numbers_that_cancel_in_every_batch() -> None:
    """Sums of differences are exactly 0, only squares tell that the neuron moves."""
    x = 1e-20 * torch.tensor([0.0, 1.0]).repeat(500)[:, None]
    a = torch.cat([torch.tensor([0.0, 1.0]).repeat(250), torch.ones(500)])
    assert_same_r(streamed(x, a, (2,)), all_pearson(x, a))


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e9, 1e-30, 3e38, 1 / 3])
@pytest.mark.parametrize("sizes", [(256,), (37,), (1,)], ids=str)
def test_constant_neurons_are_nan(constant: float, sizes: tuple[int, ...]) -> None:
    x, a = torch.full((300, 3), constant), torch.randn(300, generator=seeded())
    for dtype in (torch.float32, torch.float64):
        assert np.isnan(streamed(x.to(dtype), a, sizes)).all()
        assert np.isnan(streamed(x.to(dtype), a, sizes, folds=3)).all()


def test_constant_advantage_is_nan() -> None:
    assert np.isnan(streamed(related(1000)[0], torch.full((1000,), 0.3), (37,))).all()


def test_a_perfect_neuron_its_negative_and_a_step_from_a_constant() -> None:
    a = torch.randint(-1, 2, (999,), generator=seeded()).double()
    step = torch.ones(999)
    step[-1] = 1 + 2**-23
    found = streamed(torch.stack([a.float(), -3 * a.float() + 7, step], 1), a, (64,))
    np.testing.assert_allclose(found[:2], [1, -1], atol=1e-12)
    assert_same_r(found[2:], all_pearson(step[:, None], a))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(2, 60),
    exponent=st.integers(-20, 20),
    mean=st.sampled_from([0.0, 1.0, -1e3]),
    sparse=st.booleans(),
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=6),
)
def test_any_data_in_any_batches(
    seed: int, n: int, exponent: int, mean: float, sparse: bool, sizes: list[int]
) -> None:
    rng = seeded(seed)
    x = torch.randint(-3, 4, (n, 5), generator=rng).float() + mean
    x = (x.relu() if sparse else x) * 10.0**exponent
    a = torch.randint(-1, 2, (n,), generator=rng).float()
    assert_same_r(streamed(x, a, sizes), all_pearson(x, a))


def test_batching_and_order_do_not_matter() -> None:
    x, a = related(3000)
    whole = streamed(x + 100, a, (3000,))
    order = torch.randperm(3000, generator=seeded(5))
    for found in (
        streamed(x + 100, a, (1, 999, 7)),
        streamed(x[order] + 100, a[order], (64,)),
        streamed(x.flip(0) + 100, a.flip(0), (500,)),
    ):
        assert_same_r(found, whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_of_folds_against_the_samples_in_them(dtype: torch.dtype) -> None:
    x, a = related(700)
    x = (x.relu() + 3 * (x > 1)).to(dtype)
    fold = torch.randint(0, 3, (700,), generator=seeded(3))
    group = torch.randint(0, 4, (700,), generator=seeded(4))
    columns = torch.stack([group == g for g in range(3)], 1).double()
    metric = NeuronAdvantageCorrelation(D, num_covariates=3, folds=3, count_active=True)
    parts = {"activations": x, "advantage": a, "covariates": columns, "fold": fold}
    for batch in split(parts, (1, 2, 90)):
        metric.update(**batch)
    total, folds = metric.moments()
    for moments, inside in [(total, fold >= 0), *((folds[i], fold == i) for i in range(3))]:
        w = torch.cat([a[:, None].double(), columns], 1)[inside].numpy()
        y = x[inside].double().numpy()
        assert float(moments.n) == len(y)
        np.testing.assert_allclose(moments.w, w.mean(0), atol=1e-12)
        np.testing.assert_allclose(moments.ww, np.cov(w.T, bias=True) * len(w), atol=1e-9)
        np.testing.assert_allclose(moments.mean, y.mean(0), atol=1e-6)
        np.testing.assert_allclose(moments.m2, y.var(0) * len(y), rtol=1e-6)
        np.testing.assert_allclose(moments.active, (y != 0).sum(0))
        c = (w - w.mean(0)).T @ (y - y.mean(0))
        np.testing.assert_allclose(moments.c, c, atol=1e-4)
        for g in range(3):
            mean = y[group[inside].numpy() == g].mean(0)
            np.testing.assert_allclose(F.group_means(moments, 1 + g), mean, atol=1e-6)


def test_active_samples_are_counted_on_request_only() -> None:
    x, a = related(100)
    assert not filled(x, a).moments()[0].active.any()
    assert filled(x > 0, a, count_active=True).moments()[0].active.equal((x > 0).double().sum(0))


@pytest.mark.parametrize("scale", [1.0, 1e20])
def test_more_neurons_than_a_chunk_and_a_block_hold(scale: float) -> None:
    x, a = related(9, 70_000)
    x = x * scale
    found = streamed(x, a, (4,), folds=2)
    some = torch.tensor([0, 1, 4095, 4096, 32_767, 32_768, 65_535, 65_536, 65_537, 69_999])
    assert_same_r(found[some], all_pearson(x[:, some], a))
    assert not np.isnan(found).any()


def test_more_samples_than_a_block_holds() -> None:
    x, a = related(700, 5000)
    found = streamed(x + 100, a, (700,), folds=2, count_active=True)
    assert_same_r(found[::99], all_pearson(x[:, ::99] + 100, a))


def test_autocast_does_not_round() -> None:
    x, a = related(700)
    with torch.autocast("cpu", torch.bfloat16):
        found = streamed(x + 10, a, (100,))
    assert_same_r(found, all_pearson(x + 10, a))


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that is made."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and made.untyped_storage().data_ptr() not in self.known:
                self.bytes = max(self.bytes, made.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("scale", [1.0, 1e20])
def test_no_temporary_is_nearly_as_large_as_the_batch(scale: float) -> None:
    x, a = torch.randn(128, 100_000, generator=seeded()) * scale, torch.arange(128.0)
    metric = NeuronAdvantageCorrelation(100_000, folds=2, count_active=True)
    with Largest(x, metric.state) as largest:
        for _ in range(2):
            metric.update(x, a)
    assert 0 < largest.bytes < 0.1 * x.nbytes


def test_first_batches_are_exact_for_each_of_many_neurons() -> None:
    """Of many neurons some have unlikely first samples; the bound is that of the docs."""
    x, a = related(500, 60_000)
    wide, r = x.double(), streamed(x, a, (500,))
    wide, b = wide - wide.mean(0), a.double() - a.double().mean()
    assert_same_r(r, (b @ wide) / (b.norm() * wide.norm(dim=0)), 1e-6)
