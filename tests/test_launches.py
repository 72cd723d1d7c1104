"""What a validation asks of a GPU, counted where there is none: an operator is one launch."""

from typing import Any

import numpy as np
import pytest
import torch
from launches import RESNET50, counted, on_meta
from torch import Tensor

from lightning_neurocorr.metric import Cells, NeuronAdvantageCorrelation
from lightning_neurocorr.validation.columns import correlation_columns
from tests.neurons import related

N, D = 256, sum(RESNET50)


def metric(**settings: Any) -> NeuronAdvantageCorrelation:
    return NeuronAdvantageCorrelation(D, count_active=True, **settings).to("meta")


def layers(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [on_meta(N, width, dtype=dtype) for width in RESNET50]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_update_of_54_layers_is_four_launches(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(RESNET50) == 54
    found, parts, advantage = metric(folds=2), layers(dtype), on_meta(N)
    fold = on_meta(N, dtype=torch.int64)
    with counted(monkeypatch) as launches:
        found.update(parts, advantage, fold=fold)
    assert launches.found == {"cat": 1, "prepare": 1, "add_up": 1, "merge": 1}
    activations = sum(part.nbytes for part in parts)
    # Written together and read; state and sums are a twentieth of that.
    assert launches.bytes < 5 * activations


def test_one_matrix_is_read_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    found, x, advantage = metric(num_covariates=3), on_meta(N, D), on_meta(N)
    with counted(monkeypatch) as launches:
        found.update(x, advantage, on_meta(N, 3))
    assert launches.found == {"prepare": 1, "add_up": 1, "merge": 1}


def test_without_kernels_launches_do_not_grow_with_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    # There is no autocast on meta tensors.
    monkeypatch.setattr("torch.is_autocast_enabled", lambda *_: False)
    counts = []
    for parts in (layers(), [on_meta(N, D)]):
        found = metric(folds=2)
        with counted(monkeypatch, kernels=False) as launches:
            found.update(parts, on_meta(N), fold=on_meta(N, dtype=torch.int64))
        counts.append(launches.found.total())
    assert counts[0] == counts[1] + 1  # they are copied together
    assert counts[1] < 90


def test_sums_by_class_are_five_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    cells, x = Cells(D, 20, "meta"), on_meta(N, D)
    row, group, half = (on_meta(N, dtype=torch.int64) for _ in range(3))
    counts = []
    for _ in range(2):
        with counted(monkeypatch) as launches:
            cells.add([x], on_meta(N, dtype=torch.float64), row, group, half)
        counts.append(launches.found)
    first, later = counts
    assert first.total() <= later.total() + 2  # the first batch gives the shift
    assert later == {"add": 2, "add_": 1, "sort_cells": 1, "add_cells": 1}


def test_what_is_by_class_and_neuron_stays_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    x, a = related(300)
    metric = NeuronAdvantageCorrelation(x.shape[1], folds=2, count_active=True)
    cells = Cells(x.shape[1], 5)
    group, half = torch.where(a > 0, 1, torch.arange(300) % 4), torch.arange(300) // 4 % 2
    metric.update(x, a, fold=half)
    cells.add([x], a, torch.arange(300) % 5, group, half)
    left: list[int] = []
    cpu = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda values: left.append(values.numel()) or cpu(values))
    total, halves = metric.moments()
    by_class = cells.moments(range(5), by_class=True)
    found = correlation_columns(total, halves, 0.5, cells=by_class)
    assert np.isfinite(found["q_only_model"]).all()
    assert max(left) <= 5 * 4 * 2 * 2  # samples and advantage of each class, group and half
