"""What a batch costs: each feature map is read once, the baseline asked once, nothing waits."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_neurocorr.activations import choose_layers
from lightning_neurocorr.collector import Collector, Settings
from lightning_neurocorr.samples import LoaderPositions

N = 8
VIEWS = {"detach", "alias", "view", "t", "transpose", "expand"}


class ReadsOfImages(TorchDispatchMode):
    """Counts the operations that read a batch of feature maps, ``(N, C, H, W)``."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        maps = [arg for arg in args if isinstance(arg, Tensor) and arg.ndim == 4 and len(arg) == N]
        if maps and name not in VIEWS:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def network() -> nn.Module:
    """Three convolutions, the last one called twice, and a head."""
    shared = nn.Conv2d(4, 4, 3, padding=1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4),
        shared, shared, nn.Flatten(), nn.Linear(4 * 4 * 4, 2),
    ).eval()  # fmt: skip


def batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(N, 3, 8, 8), torch.arange(N) % 2) for _ in range(count)]


def reads(model: nn.Module, baseline: Any = None) -> Counter[str]:
    """Reads of images in a validation, with or without a collector."""
    loader = batches()
    positions = LoaderPositions(loader)
    with ReadsOfImages() as mode, torch.no_grad():
        if baseline is None:
            for x, _ in loader:
                model(x)
            return mode.found
        with Collector(model, Settings(baseline, choose_layers(model, None), model)) as collector:
            for batch in loader:
                collector.update(model(batch[0]), batch, positions)
        return mode.found


def test_each_feature_map_is_read_once_and_nothing_else_is():
    model = network()
    asked: list[Any] = []

    def baseline(batch: Any) -> Tensor:
        asked.append(batch)
        return batch[1]

    extra = reads(model, baseline)
    extra.subtract(reads(model))
    assert {name: count for name, count in extra.items() if count} == {"mean": 3 * 4}
    assert len(asked) == 3
    assert len({id(batch) for batch in asked}) == 3


def test_a_baseline_that_runs_the_watched_model_is_not_recorded():
    model = network()
    extra = reads(model, lambda batch: model(batch[0]))
    extra.subtract(reads(model))
    assert extra["mean"] == 3 * 4


def test_no_batch_waits_for_a_device():
    """On a pretended CUDA device, in a process of its own: fake tensors are young."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.pretended_device"], cwd=Path(__file__).parents[1],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    first, second, *more = done.stdout.splitlines()
    assert "Tensor.to" in first  # the metrics are made and moved: the check can see something
    assert [second, *more] == ["batch 1: none", "batch 2: none"]
