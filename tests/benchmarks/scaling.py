"""What cost grows with: neurons, samples, layers, batch size, image size, classes, shown neurons.

    python -m tests.benchmarks.scaling [--fast] [--image PATH]

The metric's update is compared with ``X.sum(0)``; everything else with the same loop over the same
batches without us, a ResNet-18 with random weights at 64 x 64 where nothing else is said. CPU time
of one thread, medians of runs that take turns. Memory is the peak of a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import torchvision
from torch import Tensor, nn

from lightning_neurocorr import (
    Attribution,
    BatchBaseline,
    NeuronAdvantageCorrelation,
    NeuronReport,
    compare,
)
from lightning_neurocorr.activations import choose_layers
from lightning_neurocorr.report.history import HistoryEntry
from lightning_neurocorr.show.tensorboard import Writer, draw_report
from lightning_neurocorr.validation import Batch as ValidationBatch
from lightning_neurocorr.validation import ValidationPass, report_of
from tests.benchmarks.scaling_plot import Panel, draw
from tests.benchmarks.timing import forget_peak, machine, medians, peak, table


@dataclass(frozen=True)
class Case:
    """A validation set and what is watched of the network."""

    samples: int = 128
    batch: int = 32
    size: int = 64
    classes: int = 10
    layers: int | None = None

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        return torchvision.models.resnet18(num_classes=self.classes).eval()

    def batches(self, model: nn.Module) -> list[tuple[Tensor, ...]]:
        """Images, the model's own answers as targets, and a baseline that misses 15 % of them."""
        x = torch.randn(self.samples, 3, self.size, self.size)
        with torch.no_grad():
            target = torch.cat([model(part).argmax(1) for part in x.split(32)])
        baseline = torch.where(torch.rand(len(x)) < 0.15, (target + 1) % self.classes, target)
        parts = (tensor.split(self.batch) for tensor in (x, target, baseline))
        return list(zip(*parts, strict=True))

    def watched(self, model: nn.Module) -> list[str]:
        """Evenly spread layers, from the first convolution to the head."""
        names = list(choose_layers(model, None))
        count = len(names) if self.layers is None else self.layers
        return [names[round(i * (len(names) - 1) / max(1, count - 1))] for i in range(count)]


def update_ratios(neurons: int, repeats: int) -> dict[str, float]:
    """An update of 256 samples, in multiples of ``X.sum(0)``."""
    x, a = torch.randn(256, neurons).relu_(), torch.randint(-1, 2, (256,)).float()
    groups, fold = torch.rand(256, 3), torch.randint(0, 2, (256,))
    plain = NeuronAdvantageCorrelation(neurons)
    full = NeuronAdvantageCorrelation(neurons, num_covariates=3, folds=2, count_active=True)
    variants = {
        "r alone": lambda: plain.update(x, a),
        "profile and two folds": lambda: full.update(x, a, groups, fold),
    }
    return ratios(lambda: x.sum(0), variants, repeats)


def epoch_ratios(case: Case, repeats: int, top_k: int | None = None) -> dict[str, float]:
    """A validation in multiples of the same loop without us; drawn, where ``top_k`` is given."""
    model = case.network()
    batches, layers = case.batches(model), case.watched(model)
    # the share of samples that is taken of a large validation set, also of this small one
    share = Attribution().max_share / 1.5
    capped = Attribution(max_samples=max(1, int(share * case.samples)))

    def bare() -> None:
        with torch.no_grad():
            for x, _, _ in batches:
                model(x)

    def ours(attribution: Attribution | bool) -> NeuronReport:
        return compare(model, batches, BatchBaseline(2), layers, target=1, attribution=attribution)

    def drawn(top_k: int) -> None:
        report, writer = ours(False), cast(Writer, Nowhere())
        draw_report(report, [HistoryEntry.from_report(report, None, top_k)], writer, top_k)

    variants = {"correlation": lambda: ours(False), "and attribution": lambda: ours(capped)}
    if top_k is not None:
        variants = {"correlation, drawn": lambda: drawn(top_k)}
    return ratios(bare, variants, repeats)


def ratios(
    floor: Callable[[], Any], variants: dict[str, Callable[[], Any]], repeats: int
) -> dict[str, float]:
    """Median times of the variants in multiples of the floor's."""
    found = medians({"floor": floor, **variants}, repeats)
    return {name: found[name] / found["floor"] for name in variants}


class Nowhere:
    """A TensorBoard writer that keeps nothing."""

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *_, **__: None


def peaks(neurons: int) -> dict[str, float]:
    """Megabytes by which two batches of 64, and then the report, raise the peak of a process."""
    code = f"from tests.benchmarks.scaling import rise; rise({neurons})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    validation, report = (int(part) / 1e6 for part in done.stdout.split())
    batch = 64 * 4 * neurons / 1e6
    return {"one batch of 64": batch, "validation": validation, "and its report": report}


def rise(neurons: int) -> None:
    """Print by how many bytes the peak has risen after the batches and after the report."""
    torch.set_num_threads(1)
    whole_validation(8, lambda: None)  # loads and allocates what is needed once
    batch = torch.randn(64, neurons)
    forget_peak()
    before = peak()
    whole_validation(batch, lambda: print(peak() - before))
    print(peak() - before)


def whole_validation(activations: Tensor | int, between: Callable[[], None]) -> None:
    """Two batches of one layer, then ``between``, then the report."""
    x = torch.randn(64, activations) if isinstance(activations, int) else activations
    result, y = ValidationPass(num_classes=10), torch.arange(64) % 10
    for start in (0, 64):
        batch = ValidationBatch(y, torch.where(y < 2, 0, y), y, torch.arange(start, start + 64))
        result.add(batch, {"layer": x}, {})
    between()
    report_of(result.finish(torch.device("cpu")), name="", baseline="", advantage="")


def panels(fast: bool, repeats: int) -> Iterator[Panel]:
    """Everything that is measured, one panel after the other."""
    metric, loop = "of the time of X.sum(0)", "of the bare loop"
    case = Case(samples=32, batch=8, size=32) if fast else Case()

    def swept(title: str, field: str, values: Sequence[int], **more: int) -> Panel:
        cases = [replace(case, **{**more, field: value}) for value in values]
        return Panel(title, loop, values, [epoch_ratios(each, repeats) for each in cases])

    neurons = (1000, 4000) if fast else (1000, 10_000, 100_000, 1_000_000)
    yield Panel(
        "neurons, one update of 256", metric, neurons, [update_ratios(d, repeats) for d in neurons]
    )
    neurons = neurons[1:] if not fast else neurons[:1]
    yield Panel("neurons, peak memory", "MB", neurons, [peaks(d) for d in neurons])
    yield swept(
        "samples (32 × 32)", "samples", (16, 32) if fast else (64, 256, 1024, 4096), size=32
    )
    yield swept("watched layers", "layers", (1, 3) if fast else (1, 5, 10, 21))
    yield swept("batch size", "batch", (4, 8) if fast else (1, 4, 16, 64))
    size = {"samples": 16 if fast else 32}
    yield swept("image side", "size", (32, 48) if fast else (32, 64, 128, 224), **size)
    yield swept("classes", "classes", (2, 10) if fast else (2, 10, 100, 1000))
    top = (4, 8) if fast else (4, 16, 64, 256)
    yield Panel("shown neurons (top_k)", loop, top, [epoch_ratios(case, repeats, k) for k in top])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--image", type=Path, help="where to draw it, a PNG")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = []
    for panel in panels(options.fast, 1 if options.fast else 3):
        found.append(panel)
        print(table([panel.title, *panel.names], panel.rows()), flush=True)
    print(machine("torchvision"))
    if options.image is not None:
        draw(found, options.image)


if __name__ == "__main__":
    main()
