"""What a validation asks of a GPU, counted where there is none: an operator is one launch."""

from collections import Counter
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_neurocorr import choose_layers
from lightning_neurocorr.functional.guesses import GuessCheck
from lightning_neurocorr.metric import Cells, NeuronAdvantageCorrelation
from lightning_neurocorr.samples import LoaderPositions
from lightning_neurocorr.validation import Batch, ValidationPass
from lightning_neurocorr.validation.collector import Collector
from lightning_neurocorr.validation.finished import report_of
from lightning_neurocorr.validation.options import Options
from lightning_neurocorr.validation.settings import Settings
from tests.benchmarks.gpu_update import RESNET50
from tests.launches import Launches, counted, on_meta

N, D = 256, sum(RESNET50)


def metric(**settings: Any) -> NeuronAdvantageCorrelation:
    return NeuronAdvantageCorrelation(D, count_active=True, **settings).to("meta")


def layers(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [on_meta(N, width, dtype=dtype) for width in RESNET50]


@pytest.mark.parametrize("folds", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_update_of_54_layers_is_two_or_three_launches(
    dtype: torch.dtype, folds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(RESNET50) == 54
    found, parts, advantage = metric(folds=folds), layers(dtype), on_meta(N)
    fold = on_meta(N, dtype=torch.int64) if folds == 2 else None
    with counted(monkeypatch) as launches:
        found.update(parts, advantage, fold=fold)
    kernels = {"prepare": 1, "add_in": 1} if folds == 2 else {"add_whole": 1}
    assert launches.found == {"cat": 1, **kernels}
    activations = sum(part.nbytes for part in parts)
    # Written together and read; state and sums are a twentieth of that.
    assert launches.bytes < 5 * activations


def test_few_layers_of_another_dtype_are_a_launch_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several dtypes CUDA's `cat` would copy every layer on its own."""
    found, parts = metric(), layers()
    parts[-1] = parts[-1].bfloat16()  # a head under autocast
    with counted(monkeypatch) as launches:
        found.update(parts, on_meta(N))
    assert launches.found == {"_to_copy": 1, "cat": 1, "add_whole": 1}


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


# --- the collector --------------------------------------------------------------------------------


def network(layers: int, width: int = 6) -> nn.Module:
    blocks = [nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU()) for _ in range(layers)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(16 * width, 3)).to("meta").eval()


def of_a_batch(
    layers: int, monkeypatch: pytest.MonkeyPatch, pooling: str = "mean", **more: Any
) -> tuple[Counter[str], Counter[str]]:
    """What hooks, and what then the collector, ask for in the third batch."""
    model, found = network(layers), []
    options = Options(lambda batch: batch[1], pooling=pooling)
    settings = Settings(options, choose_layers(model, None), model, **more)
    settings.randomness = lambda *_: nullcontext()  # type: ignore[assignment]
    positions = LoaderPositions(DataLoader(range(40), batch_size=8))
    with counted(monkeypatch) as launches:
        model(on_meta(8, 6, 4, 4))
    bare = launches.found
    with Collector(model, settings) as collector, torch.no_grad():
        # the first batch looks at answers, and a meta tensor has none
        monkeypatch.setattr(collector.reader, "check_judged", lambda *_: None)
        monkeypatch.setattr(GuessCheck, "__call__", lambda *_: None)
        for _ in range(3):
            x, y, found = on_meta(8, 6, 4, 4), on_meta(8, dtype=torch.int64), []
            with counted(monkeypatch) as launches:
                outputs = model(x)
            found.append(launches.found)
            with counted(monkeypatch) as launches:
                collector.update(outputs, (x, y), positions)
            found.append(launches.found)
    return found[0] - bare, found[1]


@pytest.mark.parametrize(
    ("pooling", "each"), [("mean", {"mean": 1}), ("max", {"amax": 1, "mean": 1})]
)
def test_a_layer_is_read_in_one_launch(
    pooling: str, each: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks, _ = of_a_batch(5, monkeypatch, pooling)
    del hooks["clone"]  # the head has one position: it is kept as it is
    assert hooks == {name: 5 * count for name, count in each.items()}


@pytest.mark.parametrize("exemplars", [0, 4])
def test_nothing_else_is_asked_for_per_layer(
    exemplars: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, few = of_a_batch(2, monkeypatch, exemplars=exemplars)
    _, many = of_a_batch(7, monkeypatch, exemplars=exemplars)
    assert few == many
    assert {name: many[name] for name in ("cat", "prepare", "add_in", "merge")} == {
        "cat": 3 if exemplars else 1, "prepare": 1, "add_in": 1, "merge": 0,
    }  # fmt: skip
    assert many.total() <= (92 if exemplars else 37)


# --- the end of a validation ----------------------------------------------------------------------


def passed(layers: int, classes: int = 5, n: int = 300) -> ValidationPass:
    """A validation of tiny layers whose batches have come."""
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(n) % classes
    model, baseline = (
        torch.where(torch.rand(n, generator=generator) < share, (target + 1) % classes, target)
        for share in (0.4, 0.5)
    )
    found = ValidationPass(num_classes=classes)
    x = {f"layer {i}": torch.randn(n, 3, generator=generator) for i in range(layers)}
    found.add(Batch(model, baseline, target, torch.arange(n)), x, {})
    return found


def of_the_end(layers: int, classes: int = 5) -> tuple[Counter[str], Counter[str]]:
    """Operators of merging, and of the report."""
    running = passed(layers, classes)
    with Launches() as merging:
        found = running.finish(torch.device("cpu"))
    with Launches() as report:
        columns = report_of(found).columns
    assert np.isfinite(columns["q_only_model"]).all()
    return merging.found, report.found


def test_the_end_asks_for_nothing_per_layer_or_class() -> None:
    assert of_the_end(2) == of_the_end(54) == of_the_end(2, classes=50)


def test_the_end_asks_for_few_operators() -> None:
    """Merging was 77 and the report 295, when each pair of groups was compared by itself.

    Since then, levelling the folds costs 10 operators of merging.
    """
    merging, report = of_the_end(2)
    assert merging.total() <= 81
    assert report.total() <= 205


def test_what_is_by_class_and_neuron_stays_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    cpu = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda values: left.append(values.numel()) or cpu(values))
    layers = 100
    report_of(passed(layers, classes=75).finish(torch.device("cpu")))
    assert max(left) <= 18 * 3 * layers < 75 * 3 * layers
