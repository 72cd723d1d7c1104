"""Several layers in one metric, against each of them alone."""

import pytest
import torch
from torch import Tensor

from lightning_neurocorr.exemplars import Exemplars
from lightning_neurocorr.functional.side_by_side import read_parts, side_by_side
from lightning_neurocorr.metric import NeuronAdvantageCorrelation
from tests.helpers import all_pearson, assert_same_r, seeded
from tests.neurons import related

SIZES = [3, 1, 6_000, 40, 2]
# By default; every layer on its own; and two runs of layers that are small and one that is not.
LIMITS = [(1 << 18, 1 << 22), (0, 0), (80 * 40, 80 * 6_020)]


def layers(n: int = 400) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Activations of layers with traps, an advantage, groups and folds."""
    x, a = related(n, sum(SIZES))
    x[:, 0], x[:, 1], x[:, 2] = 7.5, x[:, 1] * 1e20, x[:, 2] + 1e6
    group = torch.randint(0, 4, (n,), generator=seeded(4))
    columns = torch.stack([group == g for g in range(3)], 1).double()
    parts = list(x.split(SIZES, 1))
    parts[3] = parts[3].bfloat16()
    return parts, a, columns, torch.randint(0, 2, (n,), generator=seeded(5))


@pytest.fixture(params=LIMITS)
def limits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(("_SMALL", "_TOGETHER"), request.param, strict=True):
        monkeypatch.setattr(f"lightning_neurocorr.functional.side_by_side.{name}", value)


@pytest.mark.usefixtures("limits")
def test_r_of_layers_in_one_metric_is_that_of_each_alone() -> None:
    xs, a, columns, fold = layers()
    settings = {"num_covariates": 3, "folds": 2, "count_active": True}
    alone = [NeuronAdvantageCorrelation(size, **settings) for size in SIZES]
    together = NeuronAdvantageCorrelation(sum(SIZES), **settings)
    for start in range(0, 400, 80):
        batch = slice(start, start + 80)
        some = [x[batch] for x in xs]
        for metric, x in zip(alone, some, strict=True):
            metric.update(x, a[batch], columns[batch], fold[batch])
        together.update(some, a[batch], columns[batch], fold[batch])
    rows = torch.cat([metric.layout.rows(metric.state) for metric in alone], -1)
    found = together.layout.rows(together.state)
    torch.testing.assert_close(found, rows, rtol=1e-6, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(
        together.layout.head(together.state), alone[0].layout.head(alone[0].state)
    )
    r = together.compute().split(SIZES)
    assert r[0][0].isnan()
    for part, x in zip(r[1:], xs[1:], strict=True):
        assert_same_r(part, all_pearson(x, a))
    before = together.state.clone()
    together.update([x[:0] for x in xs], a[:0], columns[:0], fold[:0])
    assert together.state.equal(before)


@pytest.mark.usefixtures("limits")
def test_exemplars_of_layers_kept_together_are_those_of_each_alone() -> None:
    xs, a, columns, _ = layers()
    alone, together = [Exemplars(size, 3) for size in SIZES], Exemplars(sum(SIZES), 3)
    outcome, target = columns.argmax(1), (a > 0).long()
    for rows in torch.randperm(400).split(80):
        rest = (rows, outcome[rows], target[rows])
        together.update([x[rows] for x in xs], *rest)
        for kept, x in zip(alone, xs, strict=True):
            kept.update(x[rows], *rest)
    assert together.state.equal(torch.cat([kept.state for kept in alone], 2))


def test_small_neighbours_are_copied_together() -> None:
    xs, *_ = layers(32)
    (slot, x), *rest = side_by_side(xs)
    assert (slot, x.dtype, rest) == (slice(0, 6046), torch.float32, [])  # bfloat16 fits in
    assert x[:, 6004:6044].equal(xs[3].float())
    large = torch.zeros(64, 5000)
    found = list(side_by_side([xs[0], xs[1], large, xs[4]]))
    assert [(slot.start, x.shape[1]) for slot, x in found] == [(0, 4), (4, 5000), (5004, 2)]
    assert found[1][1] is large
    whole = [xs[0].long(), xs[1].double(), xs[3], xs[3]]  # what float32 does not hold stays apart
    dtypes = [x.dtype for _, x in side_by_side(whole)]
    assert dtypes == [torch.int64, torch.float64, torch.bfloat16]


def test_a_layer_without_neurons_is_passed_over() -> None:
    x, a = related(20, 3)
    alone, together = NeuronAdvantageCorrelation(3), NeuronAdvantageCorrelation(3)
    alone.update(x, a)
    together.update([x[:, :0].double(), x, x[:, :0]], a)
    assert together.state.equal(alone.state)
    # On a device an empty part would be gone over in steps of 0.
    assert [part.shape[1] for part in read_parts([x[:, :0], x, x[:, :0]], 3)] == [3]


def test_parts_that_do_not_fit_leave_the_metric_as_it_was() -> None:
    metric, kept = NeuronAdvantageCorrelation(5), Exemplars(5)
    x, a = related(20, 3)
    shapes = r"shapes \(N, D\) with one N and 5 neurons in all, but got "
    for parts, message in (
        ([x, x], shapes + r"\[\(20, 3\), \(20, 3\)\]"),
        ([x, x[:9, :2]], shapes),
        ([x, x[0, :2]], shapes),
        ([x], r"shape \(N, 5\), but got \(20, 3\)"),
        ([], shapes + r"\[\]. Give those of every layer"),
        ([x, x[:, :2].cfloat()], "to be real"),
        ([x, x[:, :2].to("meta")], r"on one device, but got \['cpu', 'meta'\]. Move them"),
    ):
        with pytest.raises(ValueError, match=message):
            metric.update(parts, a)
        with pytest.raises(ValueError, match=message):
            kept.update(parts, torch.arange(20))
    with pytest.raises(TypeError, match="`activations` to be a tensor, but got ndarray"):
        metric.update([x, x[:, :2].numpy()], a)
    with pytest.raises(ValueError, match=r"`advantage` to have shape \(20,\), but got \(5,\)"):
        metric.update([x, x[:, :2]], a[:5])
    assert not metric.state.any()
    assert not kept.state[1:].any()
