"""CPU time and memory of the metric and of exemplars against PearsonCorrCoef and ``X.sum(0)``.

    python -m tests.benchmarks.metric_update [--fast]

CPU time of one thread, medians of runs that take turns; memory is the rise of the process's peak
over two updates, each measured in a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torchmetrics import PearsonCorrCoef

from lightning_neurocorr import NeuronAdvantageCorrelation
from lightning_neurocorr.exemplars import Exemplars
from tests.benchmarks.timing import forget_peak, machine, medians, peak, table

RESNET18 = [64] * 5 + [128] * 5 + [256] * 5 + [512] * 5 + [1000]


def speed(batch: int, neurons: int, repeats: int, compiled: bool) -> dict[str, float]:
    """Median seconds of an update by variant; ``floor`` is ``X.sum(0)``."""
    x, a = torch.randn(batch, neurons).relu(), torch.randint(-1, 2, (batch,)).float()
    groups, fold = torch.rand(batch, 3), torch.randint(0, 2, (batch,))
    spread = a[:, None].expand(-1, neurons).contiguous()
    peer = PearsonCorrCoef(num_outputs=neurons)
    plain = NeuronAdvantageCorrelation(neurons)
    profile = NeuronAdvantageCorrelation(neurons, num_covariates=3, count_active=True)
    halves = NeuronAdvantageCorrelation(neurons, num_covariates=3, count_active=True, folds=2)
    variants = {
        "floor": lambda: x.sum(0),
        "r alone": lambda: plain.update(x, a),
        "with outcome profile": lambda: profile.update(x, a, groups),
        "and two folds": lambda: halves.update(x, a, groups, fold),
        "`PearsonCorrCoef`": lambda: peer.update(x, spread),
    }
    if compiled:
        kernel = NeuronAdvantageCorrelation(neurons, compile=True)
        wide = NeuronAdvantageCorrelation(
            neurons, num_covariates=3, count_active=True, compile=True
        )
        variants["r alone, compiled"] = lambda: kernel.update(x, a)
        variants["with profile, compiled"] = lambda: wide.update(x, a, groups)
    return medians(variants, repeats)


class Layers:
    """Metrics and exemplars of a model's layers: one for each of them, and one for all."""

    def __init__(self, sizes: Sequence[int]) -> None:
        settings = {"num_covariates": 3, "count_active": True, "folds": 2}
        self.sizes = sizes
        self.metrics = [NeuronAdvantageCorrelation(d, **settings) for d in sizes]
        self.metric = NeuronAdvantageCorrelation(sum(sizes), **settings)
        self.exemplars, self.all_exemplars = [Exemplars(d) for d in sizes], Exemplars(sum(sizes))

    def add(self, batch: int, number: int) -> list[float]:
        """Milliseconds of each way for one batch: metrics alone, together, exemplars likewise."""
        xs = [torch.randn(batch, d).relu() for d in self.sizes]
        outcome, fold = (torch.rand(batch) < 0.15).long(), torch.randint(0, 2, (batch,))
        with_metrics = (outcome.float(), torch.rand(batch, 3), fold)
        with_exemplars = (torch.arange(batch) + number * batch, outcome, outcome)

        def alone(updated: Sequence[Any], *rest: Any) -> None:
            for one, x in zip(updated, xs, strict=True):
                one.update(x, *rest)

        ways = (
            lambda: alone(self.metrics, *with_metrics),
            lambda: self.metric.update(xs, *with_metrics),
            lambda: alone(self.exemplars, *with_exemplars),
            lambda: self.all_exemplars.update(xs, *with_exemplars),
        )
        return [1000 * seconds(way) for way in ways]


def many_layers(sizes: Sequence[int], batch: int, batches: int) -> list[float]:
    """Median milliseconds per batch: metrics alone, together, exemplars alone, together."""
    layers = Layers(sizes)
    found = [layers.add(batch, number) for number in range(batches)]
    return [statistics.median(times) for times in zip(*found, strict=True)]


def exemplars(batch: int, neurons: int, batches: int) -> list[float]:
    """Multiples of ``X.sum(0)`` for the first batch, the ten after it and the last ten."""
    kept, floor, spent = Exemplars(neurons), [], []
    for number in range(batches):
        x, outcome = torch.randn(batch, neurons).relu(), (torch.rand(batch) < 0.15).long()
        positions = torch.arange(batch) + number * batch
        floor.append(seconds(lambda x=x: x.sum(0)))
        arguments = (x, positions, outcome, outcome)
        spent.append(seconds(lambda given=arguments: kept.update(*given)))
    parts = (spent[:1], spent[1:11], spent[-10:])
    return [statistics.median(part) / statistics.median(floor) for part in parts]


def seconds(run: Callable[[], Any]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def peak_rise(variant: str, batch: int, neurons: int) -> int:
    """Bytes by which two updates raise the peak of a fresh process."""
    code = (
        f"from tests.benchmarks.metric_update import _rise; _rise({variant!r}, {batch}, {neurons})"
    )
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)


def _rise(variant: str, batch: int, neurons: int) -> None:
    torch.set_num_threads(1)
    x, a = torch.randn(batch, neurons), torch.randn(batch)
    if variant == "ours":
        metric = NeuronAdvantageCorrelation(neurons)
        target = a
    else:
        metric = PearsonCorrCoef(num_outputs=neurons)
        target = a[:, None].expand(-1, neurons)
    forget_peak()
    before = peak()
    for _ in range(2):
        metric.update(x, target)
    print(peak() - before)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="small sizes, to see that it runs")
    fast = parser.parse_args(arguments).fast
    torch.set_num_threads(1)
    sizes = [(32, 2000)] if fast else [(256, 1000), (256, 10_000), (256, 100_000)]
    header, rows = [], []
    for batch, neurons in sizes:
        found = speed(batch, neurons, 3 if fast else 15, compiled=not fast)
        floor = found.pop("floor")
        header = list(found)
        rows.append([f"{batch} × {neurons:,}", *(f"{time / floor:.1f}" for time in found.values())])
    print(table(["batch × neurons", *header], rows))
    print(memory((10_000,) if fast else (100_000, 1_000_000)))
    rows = []
    for label, layers, batch in (("100 × 64", [64] * 100, 256), ("ResNet-18", RESNET18, 32)):
        times = many_layers(layers, batch, 3 if fast else 20)
        rows.append([label, batch, *(f"{time:.1f}" for time in times)])
    ways = ["a metric each, ms", "one for all", "exemplars each", "one for all"]
    print(table(["layers", "batch", *ways], rows))
    ratios = exemplars(256, 1000 if fast else 20_000, 12 if fast else 60)
    header = ["exemplars of 20,000 neurons, batch of 256", "first", "2 to 11", "51 to 60"]
    print(table(header, [["multiples of `X.sum(0)`", *(f"{ratio:.0f}" for ratio in ratios)]]))
    print(machine("torchmetrics"))


def memory(sizes: Sequence[int]) -> str:
    """Bytes of state, and peaks, by number of neurons."""
    rows = []
    for neurons in sizes:
        state = NeuronAdvantageCorrelation(neurons).state.nbytes / neurons
        full = NeuronAdvantageCorrelation(neurons, num_covariates=3, folds=2).state.nbytes / neurons
        matrix = 64 * neurons * 4
        ours, peer = (peak_rise(name, 64, neurons) / matrix for name in ("ours", "peer"))
        rows.append([f"{neurons:,}", f"{state:.0f}", f"{full:.0f}", f"{ours:.2f}", f"{peer:.2f}"])
    risen = "peak of two updates of 64 samples, in batch matrices"
    held = ["bytes of state per neuron, r alone", "with profile and two folds"]
    return table(["neurons", *held, risen, "`PearsonCorrCoef`"], rows)


if __name__ == "__main__":
    main()
