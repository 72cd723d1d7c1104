"""On a GPU: the validation epoch, the metric's bandwidth, pictures, and waiting for the device.

    python -m tests.benchmarks.gpu [--device cpu] [--fast]

ResNet-50 with random weights at 224 x 224, bfloat16 autocast, channels_last, batches of 256 on the
device. Wall-clock time between synchronisations, medians of runs that take turns.
``--device cpu --fast`` runs everything small, to see that it works where there is no GPU.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from lightning_neurocorr import (
    Attribution,
    BatchBaseline,
    FeatureVisualizer,
    ImagePrior,
    NeuronAdvantageCorrelation,
    choose_layers,
    compare,
)
from lightning_neurocorr.samples import LoaderPositions
from lightning_neurocorr.validation.collector import Collector, Settings
from lightning_neurocorr.validation.options import Options
from lightning_neurocorr.visualization import Target
from tests.benchmarks.timing import machine, table


@dataclass(frozen=True)
class Sizes:
    """What is run; ``small`` is for a CPU."""

    batch: int = 256
    batches: int = 20
    side: int = 224
    neurons: tuple[int, ...] = (100_000, 1_000_000)
    pictures: int = 16
    steps: int = 64
    repeats: int = 5

    @classmethod
    def small(cls) -> Sizes:
        return cls(8, 2, 32, (1000,), 2, 2, 1)


def wait(device: torch.device) -> None:
    """Until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(
    variants: dict[str, Callable[[], Any]], device: torch.device, repeats: int
) -> dict[str, float]:
    """Median wall-clock seconds of each variant; one run of each goes first to warm up."""
    spent: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats + 1):
        for name, run in variants.items():
            wait(device)
            start = time.perf_counter()
            run()
            wait(device)
            if repeat:
                spent[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in spent.items()}


def network(device: torch.device, small: bool) -> nn.Module:
    torch.manual_seed(0)
    make = torchvision.models.resnet18 if small else torchvision.models.resnet50
    model: Any = make(weights=None)  # the overloads of `to` do not know memory formats
    return model.to(device, memory_format=torch.channels_last).eval()


def batches(model: nn.Module, sizes: Sizes, device: torch.device) -> list[tuple[Tensor, ...]]:
    """Four different batches in turn; the baseline misses 15 % of what the model gets right."""
    made = []
    for _ in range(min(4, sizes.batches)):
        x = torch.randn(sizes.batch, 3, sizes.side, sizes.side, device=device)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            target = model(x).argmax(1)
        missed = torch.rand(len(x), device=device) < 0.15
        made.append((x, target, torch.where(missed, (target + 1) % 8, target)))
    return [made[i % len(made)] for i in range(sizes.batches)]


def epoch(sizes: Sizes, device: torch.device, small: bool) -> str:
    """A validation against the bare loop."""
    model = network(device, small)
    loader = batches(model, sizes, device)
    samples = sizes.batch * sizes.batches
    capped = Attribution(max_samples=max(1, int(Attribution().max_share / 1.5 * samples)))

    def bare() -> None:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            for x, _, _ in loader:
                model(x)

    def ours(attribution: Attribution | bool) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            compare(model, loader, BatchBaseline(2), target=1, attribution=attribution)

    variants = {
        "bare loop": bare,
        "correlation": lambda: ours(False),
        "and attribution": lambda: ours(capped),
    }
    found = timed(variants, device, sizes.repeats)
    rows = [
        [name, f"{samples / seconds:,.0f}", f"{seconds / found['bare loop']:.3f}"]
        for name, seconds in found.items()
    ]
    return table(["validation epoch", "images per second", "of the bare loop"], rows)


def update(sizes: Sizes, device: torch.device) -> str:
    """The metric's update in bytes of the batch per second, against reading and copying it."""
    rows = []
    for neurons in sizes.neurons:
        x = torch.randn(sizes.batch, neurons, device=device)
        a = torch.randint(-1, 2, (sizes.batch,), device=device).float()
        groups = torch.rand(sizes.batch, 3, device=device)
        fold = torch.randint(0, 2, (sizes.batch,), device=device)
        plain = NeuronAdvantageCorrelation(neurons).to(device)
        full = NeuronAdvantageCorrelation(neurons, num_covariates=3, folds=2, count_active=True)
        full, target = full.to(device), torch.empty_like(x)

        variants = {
            "copy": partial(target.copy_, x),
            "X.sum(0)": partial(x.sum, 0),
            "r alone": partial(plain.update, x, a),
            "profile and two folds": partial(full.update, x, a, groups, fold),
        }
        found = timed(variants, device, 4 * sizes.repeats)
        limit = 2 * x.nbytes / found["copy"]  # it reads and writes
        for name, seconds in found.items():
            moved = (2 if name == "copy" else 1) * x.nbytes / seconds
            shown = [f"{moved / 1e9:,.0f}", f"{moved / limit:.0%}"]
            rows.append([f"{sizes.batch} × {neurons:,}", name, *shown])
    return table(["batch × neurons", "", "GB/s", "of the bandwidth of a copy"], rows)


def pictures(sizes: Sizes, device: torch.device, small: bool) -> str:
    """Pictures of neurons of layer2, against forward and gradient alone."""
    model = network(device, small).requires_grad_(False)
    prior = ImagePrior.fit([torch.randn(64, 3, sizes.side, sizes.side)])
    targets = [Target("layer2", unit) for unit in range(sizes.pictures)]
    visualizer = FeatureVisualizer(steps=sizes.steps, start="noise", time_budget_s=None)
    stem = nn.Sequential(*list(model.children())[:6])  # up to layer2
    units = torch.arange(sizes.pictures, device=device)

    def bare() -> None:
        x = torch.randn(sizes.pictures, 3, sizes.side, sizes.side, device=device)
        x.requires_grad_()
        for _ in range(sizes.steps):
            torch.autograd.grad(stem(x)[units, units].mean((1, 2)).sum(), x)

    variants = {
        "forward and gradient": bare,
        "pictures": lambda: visualizer.render(model, None, targets, prior),
    }
    found = timed(variants, device, sizes.repeats)
    rows = [
        [name, f"{seconds:.2f}", f"{seconds / found['forward and gradient']:.2f}"]
        for name, seconds in found.items()
    ]
    title = f"{sizes.pictures} neurons of layer2, {sizes.steps} steps"
    return table([title, "seconds", "of forward and gradient"], rows)


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


def waits(sizes: Sizes, device: torch.device, small: bool) -> str:
    """Whether reading a batch waits for the device, after the first batch."""
    model = network(device, small)
    loader = batches(model, sizes, device)
    settings = Settings(Options(BatchBaseline(2), target=1), choose_layers(model, None), model)
    positions, said = LoaderPositions(loader), "no batch waits for the device"
    with torch.no_grad(), Collector(model, settings) as collector:
        for i, batch in enumerate(loader):
            outputs = model(batch[0])
            try:
                with no_waiting(device if i else torch.device("cpu")):
                    collector.update(outputs, batch, positions)
            except RuntimeError as error:
                said = f"a batch waits for the device: {str(error).splitlines()[0]}"
                break
    checked = "" if device.type == "cuda" else " (not checked: PyTorch can tell on CUDA only)"
    return f"Correlation: {said}{checked}.\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--fast", action="store_true", help="small sizes, to see that it runs")
    options = parser.parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit(
            "Expected a GPU that PyTorch can use, but there is none here. Run this where there is "
            "one, or try the script with --device cpu --fast."
        )
    warnings.simplefilter("ignore")
    device, sizes = torch.device(options.device), Sizes.small() if options.fast else Sizes()
    print(epoch(sizes, device, options.fast), flush=True)
    print(update(sizes, device), flush=True)
    print(pictures(sizes, device, options.fast), flush=True)
    print(waits(sizes, device, options.fast), flush=True)
    there = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
    print(machine("torchvision", threads=there))


if __name__ == "__main__":
    main()
