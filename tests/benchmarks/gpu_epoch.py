"""Validation epochs and attribution on a GPU, against the bare loop and the least that reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from lightning_neurocorr import Attribution, BatchBaseline, choose_layers, compare
from lightning_neurocorr.activations import SitesFound
from lightning_neurocorr.samples import LoaderPositions
from lightning_neurocorr.validation.collector import Collector, make_reader
from lightning_neurocorr.validation.finished import report_of
from lightning_neurocorr.validation.options import Options
from lightning_neurocorr.validation.settings import Settings
from tests.benchmarks.gpu_table import Bench, Row

Batch = tuple[Tensor, Tensor, Tensor]


@cache
def network(name: str, device: torch.device, small: bool) -> nn.Module:
    """A network of torchvision with random weights; small ones stand in for it in a test."""
    torch.manual_seed(0)
    if small and name == "vit_b_16":
        model: Any = torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=10)
    else:
        model = getattr(torchvision.models, "resnet18" if small else name)(weights=None)
    if name == "vit_b_16":  # its head begins as zeros: every image would get the same answer
        nn.init.normal_(model.heads.head.weight, std=0.02)
    return model.to(device, memory_format=torch.channels_last).eval()


def batches(bench: Bench, model: nn.Module, size: int, count: int) -> list[Batch]:
    """Up to four different batches in turn; the baseline misses 15 % of what the model knows."""
    made, side = [], bench.sizes.side
    for _ in range(min(4, count)):
        x = torch.randn(size, 3, side, side, device=bench.device)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), torch.autocast(bench.device.type, torch.bfloat16):
            target = model(x).argmax(1)
        missed = torch.rand(len(x), device=bench.device) < 0.15
        made.append((x, target, torch.where(missed, (target + 1) % 8, target)))
    return [made[i % len(made)] for i in range(count)]


def bare(bench: Bench, model: nn.Module, loader: Sequence[Batch]) -> None:
    """The loop without us."""
    with torch.no_grad(), torch.autocast(bench.device.type, torch.bfloat16):
        for x, _, _ in loader:
            model(x)


@contextmanager
def means(model: nn.Module) -> Iterator[None]:
    """The floor: plain hooks take the mean of each feature map, and do nothing with it."""

    def hook(_: nn.Module, __: Any, output: Tensor) -> None:
        if output.ndim > 2:
            output.mean((2, 3) if output.ndim == 4 else 1)

    kinds = (nn.Conv2d, nn.Linear)
    watched = [module for module in model.modules() if isinstance(module, kinds)]
    handles = [module.register_forward_hook(hook) for module in watched]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def ours(
    bench: Bench, model: nn.Module, loader: Sequence[Batch], attribution: bool | Attribution
) -> None:
    """A validation."""
    with torch.autocast(bench.device.type, torch.bfloat16):
        compare(model, loader, BatchBaseline(2), target=1, attribution=attribution)


def validation(
    bench: Bench, model: nn.Module, loader: Sequence[Batch], found: SitesFound | None = None
) -> SitesFound | None:
    """A validation as the callback runs it, whose first one finds where neurons are read."""
    options = Options(BatchBaseline(2), target=1)
    settings = Settings(
        options,
        choose_layers(model, None),
        model,
        found=found,
        reader=make_reader(options, step=False),
    )
    positions = LoaderPositions(loader)
    # as around the bare loop: autocast keeps the weights that it has cast while it is open
    autocast = torch.autocast(bench.device.type, torch.bfloat16)
    with torch.no_grad(), autocast, Collector(model, settings) as collector:
        for batch in positions.loader:
            collector.begin(batch)
            collector.update(model(batch[0]), batch, positions)
        collector.finish()
    report_of(collector.running_pass.finish(bench.device))
    return collector.recorder.found


def ways(bench: Bench, model: nn.Module, loader: Sequence[Batch]) -> dict[str, Callable[[], Any]]:
    """The epoch in four ways."""
    found = validation(bench, model, loader[:1])

    def floor() -> None:
        with means(model):
            bare(bench, model, loader)

    return {
        "bare": lambda: bare(bench, model, loader),
        "floor": floor,
        "ours": lambda: validation(bench, model, loader, found),
        "first": lambda: validation(bench, model, loader),
    }


def beside(found: Mapping[str, float], floor: str) -> str:
    """What else was measured of an epoch."""
    first, least = (found[name] / found["bare"] for name in ("first", "floor"))
    return (
        f"{floor} and nothing else {least:.3f}; the first validation, which finds where neurons "
        f"are read, {first:.3f}; bare loop {found['bare']:.3f} s"
    )


def resnet(bench: Bench) -> list[Row]:
    """Validation epochs of ResNet-50, short and long."""
    sizes, rows = bench.sizes, []
    model = network("resnet50", bench.device, sizes.small)
    for count, goal, cap, repeats in (
        (sizes.batches, 1.20, 20, sizes.repeats),
        (sizes.many_batches, 1.15, 15, 3),
    ):
        loader = batches(bench, model, sizes.batch, count)
        long = count == sizes.many_batches
        found = bench.medians(ways(bench, model, loader), cap_s=cap, repeats=repeats, warm=not long)
        ratio = found["ours"] / found["bare"]
        rate = sizes.batch * count / found["ours"]
        rows.append(
            Row(
                f"validation epoch, ResNet-50, batch {sizes.batch}, {count} batches",
                f"{ratio:.3f} of the bare loop ({rate:,.0f} images per second)",
                beside(found, "the mean of each feature map"),
                f"≤ {goal:.2f}",
                ratio <= goal,
            )
        )
    return rows


def vit(bench: Bench) -> list[Row]:
    """A validation epoch of a vision transformer."""
    sizes = bench.sizes
    model = network("vit_b_16", bench.device, sizes.small)
    loader = batches(bench, model, sizes.vit_batch, sizes.vit_batches)
    found = bench.medians(ways(bench, model, loader), cap_s=12)
    ratio, floor = (found[name] / found["bare"] for name in ("ours", "floor"))
    return [
        Row(
            f"the same, ViT-B/16, batch {sizes.vit_batch}, {sizes.vit_batches} batches",
            f"{ratio:.3f} of the bare loop",
            beside(found, "the mean over tokens of each layer"),
            f"≤ floor + 0.06 = {floor + 0.06:.3f}",
            ratio <= floor + 0.06,
        )
    ]


def attribution(bench: Bench) -> list[Row]:
    """What attribution adds to a validation, against forward and backward of as many samples."""
    sizes, rows = bench.sizes, []
    model = network("resnet50", bench.device, sizes.small)
    asked = Attribution(max_samples=max(1, sizes.attributed // 2))  # and a partner for each
    images = batches(bench, model, sizes.batch, 1)[0][0]
    parts = [sizes.batch] * (sizes.attributed // sizes.batch) + [sizes.attributed % sizes.batch]

    def forward_and_backward() -> None:
        for part in filter(None, parts):
            x = images[:part].clone().requires_grad_()
            with torch.autocast(bench.device.type, torch.bfloat16):
                top = model(x).amax(1).sum()
            torch.autograd.grad(top, x)

    for size in (sizes.batch, sizes.smaller_batch):
        loader = batches(bench, model, size, sizes.attributed_of // size)
        found = bench.medians(
            {
                "floor": forward_and_backward,
                "correlation": lambda loader=loader: ours(bench, model, loader, False),
                "with": lambda loader=loader: ours(bench, model, loader, asked),
            },
            cap_s=12,
        )
        added = found["with"] - found["correlation"]
        rows.append(
            Row(
                f"attribution of {sizes.attributed} of {sizes.attributed_of:,} samples, "
                f"batches of {size}",
                f"{added:.3f} s",
                f"correlation {found['correlation']:.3f} s, forward and backward of "
                f"{sizes.attributed} in batches of {sizes.batch} {found['floor']:.3f} s",
                "≤ 0.25 s",
                added <= 0.25,
            )
        )
    return rows


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """PyTorch raises where the program waits for the device."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def waits(bench: Bench) -> list[Row]:
    """Whether a batch waits for the device after the first, with attribution and exemplars."""
    sizes, device = bench.sizes, bench.device
    model = network("resnet50", device, sizes.small)
    loader = batches(bench, model, sizes.batch, min(4, sizes.batches))
    options = Options(BatchBaseline(2), target=1, attribution=Attribution())
    settings = Settings(options, choose_layers(model, None), model, exemplars=8)
    positions, said = LoaderPositions(loader), "none"
    with torch.no_grad(), Collector(model, settings) as collector:
        for i, batch in enumerate(loader):
            outputs = model(batch[0])
            try:
                with no_waiting(device if i else torch.device("cpu")):
                    collector.update(outputs, batch, positions)
            except RuntimeError as error:
                said = f"one: {str(error).splitlines()[0]}"
                break
    beside = "" if device.type == "cuda" else "PyTorch can tell on CUDA only"
    return [Row("batches that wait for the device", said, beside, "none", said == "none")]
