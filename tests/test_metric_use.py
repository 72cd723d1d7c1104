"""The metric as a metric: merged, copied, cast, plotted, in a collection, misused."""

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics import MeanMetric, MetricCollection

from lightning_neurocorr.functional import correlation
from lightning_neurocorr.metric import NeuronAdvantageCorrelation
from tests.helpers import GROUP_NAMES, all_pearson, assert_same_r, split
from tests.neurons import D, filled, related


@pytest.mark.filterwarnings("ignore:.*updated_called.*:DeprecationWarning")  # torchmetrics' own
@pytest.mark.parametrize("updated", [False, True])
def test_torchscript_takes_it_as_torchmetrics_own_tester_asks(updated: bool) -> None:
    metric = filled(*related(50)) if updated else NeuronAdvantageCorrelation(D)
    assert isinstance(torch.jit.script(metric), torch.jit.ScriptModule)


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
    torch.distributed.barrier()  # or the one that leaves first can leave the other waiting
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


def test_a_state_of_other_neurons_or_folds_is_not_loaded() -> None:
    metric = NeuronAdvantageCorrelation(3)
    metric.persistent(mode=True)
    metric.update(torch.randn(4, 3), torch.randn(4))
    for other in (NeuronAdvantageCorrelation(2), NeuronAdvantageCorrelation(3, folds=2)):
        other.persistent(mode=True)
        with pytest.raises(ValueError, match="`state_dict` to hold a state of shape"):
            other.load_state_dict(metric.state_dict())
    same = NeuronAdvantageCorrelation(3)
    same.persistent(mode=True)
    same.load_state_dict(metric.state_dict())
    torch.testing.assert_close(same.state, metric.state)


@pytest.mark.filterwarnings("error")
def test_r_is_that_of_the_state_now() -> None:
    """An answer that was given before another state came is not given again."""
    x, a = related(200)
    other = filled(x[100:], a[100:])
    other.persistent(mode=True)
    for loaded in (filled(x[:100], a[:100]), NeuronAdvantageCorrelation(x.shape[1])):
        loaded.update(x[:100], a[:100])
        loaded.compute()
        loaded.persistent(mode=True)
        loaded.load_state_dict(other.state_dict())
        torch.testing.assert_close(loaded.compute(), other.compute())


def test_a_metric_that_counted_nothing_is_not_merged_into_one_that_counts() -> None:
    counts = NeuronAdvantageCorrelation(3, count_active=True)
    counts_not = NeuronAdvantageCorrelation(3)
    for metric in (counts, counts_not):
        metric.update(torch.ones(4, 3), torch.randn(4))
    with pytest.raises(ValueError, match="with active samples counted, but got"):
        counts.merge_state(counts_not)


@pytest.mark.parametrize("name", ["advantage", "covariates", "fold"])
def test_what_comes_with_activations_is_real_tensors(name: str) -> None:
    given = {"advantage": torch.randn(4), "covariates": torch.randn(4, 1)}
    given |= {"fold": torch.zeros(4, dtype=torch.long)}
    metric, array = NeuronAdvantageCorrelation(3, num_covariates=1), given[name].numpy()
    with pytest.raises(TypeError, match=f"`{name}` to be a tensor, but got ndarray"):
        metric.update(torch.randn(4, 3), **{**given, name: array})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"`{name}` to be real"):
        metric.update(torch.randn(4, 3), **{**given, name: given[name] + 0j})


def test_activations_are_dense() -> None:
    metric, x = NeuronAdvantageCorrelation(3), torch.randn(4, 3)
    with pytest.raises(ValueError, match="to be a dense tensor, but got a sparse one"):
        metric.update(x.to_sparse(), torch.randn(4))


def test_activations_of_eight_bits_are_read_as_they_are() -> None:
    x, a = torch.randn(40, 3).to(torch.float8_e4m3fn), torch.randn(40)
    metric = NeuronAdvantageCorrelation(3)
    metric.update(x, a)
    columns = torch.cat([x.double(), a.double()[:, None]], 1).numpy()
    expected = np.corrcoef(columns, rowvar=False)[-1, :-1]
    np.testing.assert_allclose(metric.compute().numpy(), expected, atol=1e-6)


def test_no_activations_at_all_are_named() -> None:
    with pytest.raises(ValueError, match=r"3 neurons in all, but got \[\]"):
        NeuronAdvantageCorrelation(3).update([], torch.randn(4))


def test_a_large_batch_is_as_exact_as_many_small_ones() -> None:
    """Float32 sums of many positive numbers lose digits: 1e-5 of r in a batch of 20,000."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 48, generator=draw).relu()
    a = (torch.rand(20_000, generator=draw) < 0.3).double() - 0.1 * x[:, 0]
    metric = filled(x, a)
    np.testing.assert_allclose(metric.compute(), all_pearson(x, a), atol=3e-7)
    total, _ = metric.moments()
    wide = x.double()
    spread = wide.std(0)
    assert ((total.mean - wide.mean(0)) / spread).abs().max() < 5e-6
    assert ((total.m2 / 19_999).sqrt() / spread - 1).abs().max() < 1e-5


@pytest.mark.parametrize("constant", [0.0, -1.0, 5.0])
def test_a_neuron_that_is_constant_in_a_fold_has_no_r_there(constant: float) -> None:
    """A batch is added around one number for all folds: rounding would leave a spread."""
    x, a = related(300)
    x = x.clone()
    fold = torch.arange(300) % 2
    x[fold == 1] = constant
    for sizes in ((300,), (1,), (7,)):
        metric = NeuronAdvantageCorrelation(D, folds=2)
        for batch in split({"activations": x, "advantage": a, "fold": fold}, sizes):
            metric.update(**batch)
        total, (first, second) = metric.moments()
        assert not second.m2.any()
        assert correlation(second).isnan().all()
        assert_same_r(correlation(first), all_pearson(x[fold == 0], a[fold == 0]))
        assert_same_r(correlation(total), all_pearson(x, a))


def test_a_small_spread_of_a_fold_beside_a_large_one_is_kept() -> None:
    """The halves lie 1,000 apart, and one of them varies by a hundredth."""
    x, a = related(300)
    x, fold = x.double(), torch.arange(300) % 2
    x[fold == 1] = 1000 + 1e-2 * x[fold == 1]
    x = x.float()
    for sizes in ((300,), (7,)):
        metric = NeuronAdvantageCorrelation(D, folds=2)
        for batch in split({"activations": x, "advantage": a, "fold": fold}, sizes):
            metric.update(**batch)
        for index, half in enumerate(metric.moments()[1]):
            assert_same_r(correlation(half), all_pearson(x[fold == index], a[fold == index]))
