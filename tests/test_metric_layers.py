"""Layers updated together against each of them updated alone."""

import pytest
import torch
from helpers import all_pearson, assert_same_r, seeded
from torch import Tensor

from lightning_neurocorr.metric import NeuronAdvantageCorrelation, update_layers
from tests.neurons import related

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
