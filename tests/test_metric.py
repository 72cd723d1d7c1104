"""The streaming metric against two passes over everything in float64."""

import copy
import math
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import GROUP_NAMES, all_pearson, assert_same_r, seeded, split, streamed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchmetrics import MeanMetric, MetricCollection

from lightning_neurocorr import functional as F
from lightning_neurocorr.metric import NeuronAdvantageCorrelation, reduction, update_layers
from lightning_neurocorr.metric import fused as fusing

N, D = 20_000, 12


def related(n: int = N, d: int = D, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Standard normal neurons, some of which go with an advantage in {-1, 0, 1}."""
    rng = seeded(seed)
    a = torch.randint(-1, 2, (n,), generator=rng).float()
    x = torch.randn(n, d, generator=rng)
    return x + torch.linspace(-0.5, 0.5, d) * a[:, None], a


def spikes(x: Tensor) -> Tensor:
    keep = torch.rand(x.shape, generator=seeded(1)) < 5 / len(x)
    keep[torch.randperm(len(x), generator=seeded(2))[: x.shape[1]], torch.arange(x.shape[1])] = True
    return x * keep


def with_outlier(x: Tensor) -> Tensor:
    return torch.cat([torch.full_like(x[:1], 1e9), x[1:]])


ROWS = {
    "normal": lambda x: x,
    "mean 1e4": lambda x: x + 1e4,
    "mean 1e6": lambda x: x + 1e6,
    "5 spikes in 20,000": spikes,
    "spikes and noise": lambda x: spikes(x) + 1e-3 * x.roll(1, 1),
    "sparse ReLU": lambda x: (x - 2).relu(),
    "bfloat16, mean 30": lambda x: (x + 30).bfloat16(),
    "half, mean 30": lambda x: (x + 30).half(),
    "drift": lambda x: x + torch.linspace(50, 1050, len(x))[:, None],
    "scale 1e-20": lambda x: x * 1e-20,
    "scale 1e-20, ReLU": lambda x: (x * 1e-20).relu(),
    "scale 1e18": lambda x: x * 1e18,
    "scale 1e20": lambda x: x * 1e20,
    "scale 1e37": lambda x: x * 1e37,
    "first sample 1e9": with_outlier,
    "sorted": lambda x: x.sort(0).values,
    "integers": lambda x: (10 * x).long(),
    "large integers": lambda x: (10 * x).long() + 10**9,
    "int8": lambda x: (10 * x).to(torch.int8),
    "bool": lambda x: x > 1.5,
}


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


def filled(x: Tensor, a: Tensor, **more) -> NeuronAdvantageCorrelation:
    metric = NeuronAdvantageCorrelation(x.shape[1], **more)
    metric.update(x, a)
    return metric


def test_states_of_ranks_merge_to_that_of_one_process() -> None:
    x, a = related(1580)
    x = x + 100
    x[:, 0] = 100  # constant, also across ranks
    cuts = [(0, 1), (1, 1), (1, 900), (900, 1580)]  # one rank is empty
    ranks = [filled(x[start:end], a[start:end]) for start, end in cuts]
    states = torch.stack([rank.state for rank in ranks])
    merged = copy.deepcopy(ranks[0])
    merged.state = merged._reductions["state"](states)
    assert_same_r(merged.compute(), all_pearson(x, a))
    assert merged.compute()[0].isnan()


def test_merge_state_of_metrics_and_of_dicts() -> None:
    x, a = related(900)
    total = NeuronAdvantageCorrelation(D)
    total.merge_state(filled(x[:500], a[:500]))
    first = total.compute()
    total.merge_state({"state": filled(x[500:], a[500:]).state})
    assert_same_r(first, all_pearson(x[:500], a[:500]))
    assert_same_r(total.compute(), all_pearson(x, a))
    with pytest.raises(ValueError, match="Expected incoming state to be an instance of"):
        total.merge_state(MeanMetric())


def test_forward_gives_r_of_the_batch_and_goes_on_with_all() -> None:
    x, a = related(600)
    metric = NeuronAdvantageCorrelation(D)
    for batch in split({"activations": x, "advantage": a}, (200,)):
        expected = all_pearson(batch["activations"], batch["advantage"])
        assert_same_r(metric(**batch), expected)
    assert_same_r(metric.compute(), all_pearson(x, a))
    metric.reset()
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert metric.compute().isnan().all()


def test_in_a_collection_with_and_without_compute_groups() -> None:
    x, a = related(600)
    for groups in (True, False):
        collection = MetricCollection(
            {
                "one": NeuronAdvantageCorrelation(D),
                "other": NeuronAdvantageCorrelation(D),
                "folds": NeuronAdvantageCorrelation(D, folds=2, count_active=True),
            },
            compute_groups=groups,
        )
        for batch in split({"activations": x, "advantage": a}, (100,)):
            collection.update(**batch)
        for r in collection.compute().values():
            assert_same_r(r, all_pearson(x, a))
        collection.reset()
        collection.update(x[:100], a[:100])
        assert_same_r(collection.compute()["other"], all_pearson(x[:100], a[:100]))


@pytest.mark.parametrize(
    "copied",
    [
        lambda metric: metric.clone(),
        copy.deepcopy,
        lambda metric: pickle.loads(pickle.dumps(metric)),
    ],
    ids=["clone", "deepcopy", "pickle"],
)
def test_copies_go_on_alone(copied) -> None:
    x, a = related(400)
    metric = filled(x[:200], a[:200])
    other = copied(metric)
    other.update(x[200:], a[200:])
    assert_same_r(metric.compute(), all_pearson(x[:200], a[:200]))
    assert_same_r(other.compute(), all_pearson(x, a))


def test_state_dict_when_persistent() -> None:
    x, a = related(300)
    metric = filled(x, a)
    assert not metric.state_dict()
    metric.persistent(True)
    other = NeuronAdvantageCorrelation(D)
    other.persistent(True)
    other.load_state_dict(metric.state_dict())
    assert other.state.equal(metric.state)


@pytest.mark.parametrize(
    "cast",
    [
        lambda m: m.to(torch.bfloat16),
        lambda m: m.half(),
        lambda m: m.bfloat16(),
        lambda m: m.float(),
        lambda m: m.to("cpu", torch.float16),
        lambda m: m.type(torch.float32),
    ],
    ids=["to bfloat16", "half", "bfloat16", "float", "to half", "type"],
)
def test_casts_leave_counts_and_moments_alone(cast) -> None:
    x, a = related(3001)
    parent = nn.ModuleDict({"metric": filled(x[:2000] + 30, a[:2000])})
    parent["metric"].compute()  # cached
    metric = cast(parent)["metric"]
    assert metric.state.dtype == metric._defaults["state"].dtype == torch.float64
    assert_same_r(metric.compute(), all_pearson(x[:2000] + 30, a[:2000]))
    metric.update(x[2000:] + 30, a[2000:])
    assert_same_r(metric.compute(), all_pearson(x + 30, a))
    metric.reset()
    metric.update(x, a)
    assert_same_r(metric.compute(), all_pearson(x, a))


def test_updates_in_and_out_of_inference_mode() -> None:
    x, a = related(300)
    metric = NeuronAdvantageCorrelation(D)
    with torch.inference_mode():
        metric.update(x[:100] * 1, a[:100])
        metric.reset()  # leaves an inference tensor
        metric.update(x[:100] * 1, a[:100])
    metric.update(x[100:], a[100:].requires_grad_())
    with torch.inference_mode():
        assert_same_r(metric.compute(), all_pearson(x, a.detach()))
    assert not metric.state.requires_grad


def test_plot_gives_figure_and_axes() -> None:
    x, a = related(50)
    metric = filled(x, a)
    figure, axes = metric.plot()
    assert axes.figure is figure
    assert sum(bar.get_height() for bar in axes.patches) == D
    assert metric.plot([metric.compute()] * 2, ax=axes) == (figure, axes)
    assert sum(bar.get_height() for bar in axes.patches) == 3 * D
    assert metric.plot(torch.tensor([math.nan, 0.0]))[1].patches


def test_neurons_that_are_not_finite_are_nan_and_said_once() -> None:
    x, a = related(600)
    x[10, 1], x[300, 2], x[0, 3], x[599, 4] = math.nan, math.inf, -math.inf, math.nan
    metric = NeuronAdvantageCorrelation(D, folds=2)
    for batch in split({"activations": x, "advantage": a}, (100,)):
        metric.update(**batch, fold=torch.arange(100) % 2)
    with pytest.warns(UserWarning, match="4 of 12 neurons had activations that are not finite"):
        found = metric.compute()
    assert_same_r(found, all_pearson(x, a))
    metric.update(x[:1] * 0 + 1, a[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metric.compute()[1:5].isnan().all()
        assert metric.moments()[0].mean[5:].isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_advantage_that_is_not_finite_is_an_error(value: float) -> None:
    x, a = related(20)
    metric = filled(x, a)
    a[3] = value
    with pytest.raises(ValueError, match="Expected `advantage` to be finite"):
        metric.update(x, a)
    assert_same_r(metric.compute(), all_pearson(x, related(20)[1]))
    metric._computed = None
    metric.state[:, 1] = value  # as an accelerator would leave it
    with pytest.raises(ValueError, match="but a batch held NaN or infinity"):
        metric.compute()


def test_empty_batches_change_nothing() -> None:
    x, a = related(50)
    metric = NeuronAdvantageCorrelation(D)
    metric.update(x[:0], a[:0])
    assert metric.compute().isnan().all()
    metric.update(x, a)
    state = metric.state.clone()
    metric.update(x[:0], a[:0])
    assert metric.state.equal(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activations": torch.zeros(4, 2)}, r"`activations` to have shape \(N, 3\), but got \(4"),
        ({"activations": torch.zeros(4, 3, 2)}, "Pool space and tokens away first"),
        ({"activations": torch.tensor(1.0)}, r"`activations` to have shape \(N, 3\), but got \(\)"),
        ({"activations": torch.zeros(4, 3, dtype=torch.cfloat)}, "Pass their magnitude"),
        ({"advantage": torch.zeros(4, 1)}, r"`advantage` to have shape \(4,\), but got \(4, 1\)"),
        ({"advantage": torch.zeros(3)}, r"`advantage` to have shape \(4,\), but got \(3,\)"),
        ({"covariates": None}, r"`covariates` to have shape \(4, 2\), but got \(4, 0\)"),
        ({"covariates": torch.zeros(4, 1)}, r"`covariates` to have shape \(4, 2\), but got \(4, 1"),
        ({"fold": torch.zeros(3)}, r"`fold` to have shape \(4,\), but got \(3,\)"),
        ({"fold": torch.tensor([0, 1, 2, 0])}, r"`fold` to hold integers in \[0, 2\)"),
    ],
)
def test_wrong_shapes_are_errors(change: dict, message: str) -> None:
    metric = NeuronAdvantageCorrelation(3, num_covariates=2, folds=2)
    right = {
        "activations": torch.zeros(4, 3),
        "advantage": torch.zeros(4),
        "covariates": torch.zeros(4, 2),
        "fold": torch.tensor([0, 1, 0, 1]),
    }
    metric.update(**right)
    with pytest.raises(ValueError, match=message):
        metric.update(**right | change)
    assert float(metric.moments()[0].n) == 4


@pytest.mark.parametrize("name", ["num_neurons", "num_covariates", "folds"])
@pytest.mark.parametrize("value", [-1, 1.5, True, "3"])
def test_wrong_settings_are_errors(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"Expected `{name}` to be an integer of at least"):
        NeuronAdvantageCorrelation(**{"num_neurons": 3, name: value})


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


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A kernel that is traced but not compiled; gives the numbers of samples that went its way."""
    monkeypatch.setattr(fusing, "BACKEND", "eager")
    taken: list[int] = []
    add = reduction.add_fused_
    monkeypatch.setattr(
        reduction, "add_fused_", lambda *parts: taken.append(add(*parts)) or taken[-1]
    )
    torch.compiler.reset()
    compiled = fusing._compiled
    compiled.cache_clear()
    yield taken
    compiled.cache_clear()
    torch.compiler.reset()


@pytest.mark.parametrize("row", ROWS)
def test_a_fused_sum_is_exact_to_1e_6(row: str, fused: list[int]) -> None:
    x, a = related(2000)
    x = ROWS[row](x)
    assert_same_r(streamed(x, a, (300,), compile=True), all_pearson(x, a))
    assert fused == [288] * 6 + [192]


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e9, 3e38])
def test_constant_neurons_are_nan_fused_too(constant: float, fused: list[int]) -> None:
    x, a = torch.full((300, 3), constant), torch.randn(300, generator=seeded())
    assert np.isnan(streamed(x, a, (100,), compile=True)).all()
    assert fused == [96] * 3


def test_fused_moments_are_those_of_blocks(fused: list[int]) -> None:
    x, a = related(700, 40_000)
    x = x.relu() * (torch.arange(40_000) % 5)
    columns = torch.rand(700, 2, generator=seeded(3)).double()
    settings = {"num_covariates": 2, "count_active": True}
    whole, blocks = (
        NeuronAdvantageCorrelation(40_000, compile=on, **settings) for on in (True, False)
    )
    update_layers([whole], [x[:650]], a[:650], columns[:650])
    whole.update(x[650:], a[650:], columns[650:])
    blocks.update(x, a, columns)
    assert fused == [640, 48]
    torch.testing.assert_close(whole.state, blocks.state, rtol=1e-5, atol=1e-3)


def test_many_columns_and_few_samples_are_not_fused(fused: list[int]) -> None:
    x, a = related(60)
    columns = torch.rand(60, 9, generator=seeded(3))
    metric = NeuronAdvantageCorrelation(D, num_covariates=9, compile=True)
    metric.update(x, a, columns)
    few = NeuronAdvantageCorrelation(D, compile=True)
    few.update(x[:15], a[:15])
    assert fused == []
    assert_same_r(metric.compute(), all_pearson(x, a))


def test_without_a_compiler_the_metric_goes_on(
    fused: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*parts: object) -> None:
        raise OSError("no g++ here")

    monkeypatch.setattr(fusing, "_compiled", lambda: failing)
    monkeypatch.setattr(fusing, "_unable", [])
    x, a = related(400)
    metric = NeuronAdvantageCorrelation(D, compile=True)
    with pytest.warns(UserWarning, match="but got OSError: no g\\+\\+ here. The metric goes on"):
        metric.update(x[:200], a[:200])
    metric.update(x[200:], a[200:])
    assert fused == [0]
    assert_same_r(metric.compute(), all_pearson(x, a))


@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
def test_the_compiled_kernel_is_exact() -> None:
    """In a process of its own: the compiler leaves threads and variables behind."""
    code = """if True:
        import torch
        from helpers import all_pearson, assert_same_r, streamed
        from lightning_neurocorr.metric import fused
        x, a = torch.randn(300, 12), torch.randint(-1, 2, (300,)).float()
        x += 1e4 + torch.linspace(-1, 1, 12) * a[:, None]
        assert_same_r(streamed(x, a, (300,), compile=True), all_pearson(x, a))
        assert not fused._unable, fused._unable
    """
    path = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert not done.returncode, done.stderr


def test_first_batches_are_exact_for_each_of_many_neurons() -> None:
    """Of many neurons some have unlikely first samples."""
    x, a = related(500, 60_000)
    wide, r = x.double(), streamed(x, a, (500,))
    wide, b = wide - wide.mean(0), a.double() - a.double().mean()
    assert_same_r(r, (b @ wide) / (b.norm() * wide.norm(dim=0)), 5e-7)


SIZES = [3, 1, 6_000, 40, 2]


def layers(n: int = 400) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Activations of layers with traps, an advantage, groups and folds."""
    x, a = related(n, sum(SIZES))
    x[:, 0], x[:, 1], x[:, 2] = 7.5, x[:, 1] * 1e20, x[:, 2] + 1e6
    group = torch.randint(0, 4, (n,), generator=seeded(4))
    columns = torch.stack([group == g for g in range(3)], 1).double()
    parts = list(x.split(SIZES, 1))
    parts[3] = parts[3].bfloat16()
    return parts, a, columns, torch.randint(0, 2, (n,), generator=seeded(5))


def test_layers_updated_together_are_as_updated_alone() -> None:
    xs, a, columns, fold = layers()
    settings = {"num_covariates": 3, "folds": 2, "count_active": True}
    alone, together = (
        [NeuronAdvantageCorrelation(size, **settings) for size in SIZES] for _ in range(2)
    )
    for start in range(0, 400, 80):
        batch = slice(start, start + 80)
        late = int(start == 80)  # a layer that missed a batch has other counts than the rest
        some = [x[batch] for x in xs][late:]
        for metric, x in zip(alone[late:], some, strict=True):
            metric.update(x, a[batch], columns[batch], fold[batch])
        update_layers(together[late:], some, a[batch], columns[batch], fold[batch])
    for metric, other, x in zip(together, alone, xs, strict=True):
        torch.testing.assert_close(metric.state, other.state, rtol=1e-6, atol=1e-6, equal_nan=True)
        assert metric._update_count == other._update_count
        if len(x[0]) != SIZES[0]:
            assert_same_r(metric.compute(), all_pearson(x, a))
    assert together[0].compute()[0].isnan()
    update_layers(together, [x[:0] for x in xs], a[:0], columns[:0], fold[:0])
    assert together[1].state.equal(together[1].state.clone())


def test_layers_of_different_settings_and_a_cached_r() -> None:
    xs, a, _, _ = layers()
    xs = [xs[1], xs[4], xs[3], xs[1]]
    metrics = [
        NeuronAdvantageCorrelation(1),
        NeuronAdvantageCorrelation(2, folds=2),
        NeuronAdvantageCorrelation(40, count_active=True),
        NeuronAdvantageCorrelation(1),
    ]
    for batch in (slice(0, 150), slice(150, 400)):
        update_layers(metrics, [x[batch] for x in xs], a[batch])
        for metric, x in zip(metrics, xs, strict=True):
            assert_same_r(metric.compute(), all_pearson(x[: batch.stop], a[: batch.stop]))


def test_a_wrong_layer_leaves_all_others_as_they_were() -> None:
    metrics = [NeuronAdvantageCorrelation(3), NeuronAdvantageCorrelation(2)]
    x, a = related(20, 3)
    with pytest.raises(ValueError, match=r"`activations` to have shape \(N, 2\), but got \(20, 3"):
        update_layers(metrics, [x, x], a)
    with pytest.raises(ValueError, match="one tensor for each of 2 metrics, but got 1"):
        update_layers(metrics, [x], a)
    with pytest.raises(ValueError, match=r"`advantage` to have shape \(20,\), but got \(5,\)"):
        update_layers(metrics, [x, x[:, :2]], a[:5])
    assert not any(metric.state.any() or metric.update_called for metric in metrics)


def test_metrics_that_do_not_fit_are_not_merged() -> None:
    x, a = related(50)
    metric = filled(x, a)
    for other in (
        NeuronAdvantageCorrelation(D + 1),
        NeuronAdvantageCorrelation(D, num_covariates=1),
        NeuronAdvantageCorrelation(D, folds=2),
    ):
        with pytest.raises(ValueError, match="metric of 12 neurons, 0 covariates and 1 folds, but"):
            metric.merge_state(other)
        with pytest.raises(ValueError, match=r"a state of shape \(1, 51\), but got \("):
            metric.merge_state({"state": other.state})
    with pytest.raises(ValueError, match=r"to hold a `state`, but got \['other'\]"):
        metric.merge_state({"other": metric.state})
    assert_same_r(metric.compute(), all_pearson(x, a))


def test_bytes_of_state_per_neuron() -> None:
    d = 10_000
    plain = NeuronAdvantageCorrelation(d).state
    full = NeuronAdvantageCorrelation(
        d, num_covariates=len(GROUP_NAMES) - 1, folds=2, count_active=True
    ).state
    assert plain.nbytes / d <= 64
    assert full.nbytes / d <= 160


SHARES = ([41, 260], [0, 100])  # uneven, and one rank without samples


def _rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    results = []
    for sizes in SHARES:
        x, a = related(sum(sizes))
        mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        metric = NeuronAdvantageCorrelation(D, folds=2)
        metric.update(x[mine] + 100, a[mine], fold=(a[mine] > 0).long())
        r, (total, folds) = metric.compute(), metric.moments()
        results.append([r, total.n, folds[1].n, metric.state[:, 0].sum()])
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_with_uneven_and_empty_shares(tmp_path) -> None:
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for sizes, (r, n, n_up, n_own) in zip(SHARES, results, strict=True):
            x, a = related(sum(sizes))
            assert_same_r(r, all_pearson(x + 100, a))
            assert (n, n_up) == (sum(sizes), int((a > 0).sum()))
            assert n_own == sizes[rank]  # each has its own samples again
