"""What a batch costs: each feature map is read once, the baseline asked once, nothing waits."""

from collections import Counter
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from lightning_neurocorr import Attribution
from lightning_neurocorr import functional as F
from lightning_neurocorr.activations import choose_layers
from lightning_neurocorr.functional.guesses import GuessCheck
from lightning_neurocorr.samples import LoaderPositions
from lightning_neurocorr.validation.collector import Collector
from lightning_neurocorr.validation.options import Options
from lightning_neurocorr.validation.rerun import Rerun
from lightning_neurocorr.validation.rerun.arguments import Axis
from lightning_neurocorr.validation.settings import Settings
from lightning_neurocorr.validation.waiting import Waiting

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
    """Reads of images in a validation, with or without a collector.

    The first batch does not count: there it is looked where layers are read, and tried out whether
    their rows are the samples.
    """
    first, *loader = batches(4)
    positions = LoaderPositions(loader)
    with torch.no_grad():
        if baseline is None:
            with ReadsOfImages() as mode:
                for x, _ in loader:
                    model(x)
            return mode.found
        settings = Settings(Options(baseline, at="raw"), choose_layers(model, None), model)
        with Collector(model, settings) as collector:
            collector.update(model(first[0]), first, positions)
            with ReadsOfImages() as mode:
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
    assert len(asked) == 4
    assert len({id(batch) for batch in asked}) == 4


def test_a_baseline_that_runs_the_watched_model_is_not_recorded():
    model = network()
    extra = reads(model, lambda batch: model(batch[0]))
    extra.subtract(reads(model))
    assert extra["mean"] == 3 * 4


class Waits(TorchFunctionMode):
    """Names the copies between devices that wait for the device.

    Meta tensors stand for those on a device: they hold no values, so that reading one, or choosing
    rows by one, is an error already.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = {arg.device.type for arg in args[:2] if isinstance(arg, Tensor)}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        copies = name in ("to", "copy_", "cpu", "double", "float", "new_tensor")
        if copies and not kwargs.get("non_blocking") and len(before | {result.device.type}) > 1:
            self.found.append(name)
        return result


@pytest.mark.parametrize("attributed", [False, True])
def test_no_batch_waits_for_a_device(monkeypatch, attributed):
    # There is no autocast on meta tensors.
    monkeypatch.setattr("lightning_neurocorr.metric.correlation.exact_arithmetic", nullcontext)
    model = network().to("meta")
    loader = LoaderPositions(DataLoader(range(3 * N), batch_size=N))
    options = Options(lambda batch: batch[1], attribution=Attribution() if attributed else None)
    settings = Settings(options, choose_layers(model, None), model)
    chosen: list[Tensor] = []
    if attributed:  # what meta tensors do not hold: of each batch the first two are `only_model`
        told = torch.tensor([F.ONLY_MODEL, F.ONLY_MODEL, *[F.NEITHER] * (N - 2)])
        zeros = torch.zeros(N).long()
        arrived = torch.stack([told, zeros, torch.ones(N).long(), zeros])
        on_its_way = "lightning_neurocorr.validation.attributing.on_its_way"
        monkeypatch.setattr(on_its_way, lambda values: lambda: arrived)
        monkeypatch.setattr(Rerun, "hear", lambda *_: None)
        monkeypatch.setattr(Rerun, "prepare", prepare)
        monkeypatch.setattr(Waiting, "add", lambda _, piece: chosen.append(piece.arguments[0][0]))
    settings.randomness = lambda *_: nullcontext()  # type: ignore[assignment]
    monkeypatch.setattr(GuessCheck, "__call__", lambda *_: None)  # looks at the first batch
    found = []
    with Collector(model, settings) as collector, torch.no_grad():
        for _ in range(3):
            x, y = torch.zeros(N, 3, 8, 8, device="meta"), torch.zeros(N, device="meta").long()
            outputs = model(x)
            with Waits() as waits:
                collector.update(outputs, (x, y), loader)
            found.append(waits.found)
    assert found[0]  # metrics are made and moved: the check can see something
    assert found[1:] == [[], []]
    # Those of the last batch are not known yet.
    assert [tuple(x.shape) for x in chosen] == [(2, 3, 8, 8)] * 2 * attributed


def prepare(rerun: Rerun, *_: Any) -> bool:
    """The layout of the arguments, which is found by numbers."""
    rerun.layout = (Axis(0),)
    return True
