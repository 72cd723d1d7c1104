"""CPU time and memory of the metric's update against PearsonCorrCoef and against ``X.sum(0)``.

    python -m tests.benchmarks.metric_update [--fast]

CPU time of one thread, medians of runs that take turns; memory is the rise of the process's peak
over two updates, each measured in a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import torch
from torchmetrics import PearsonCorrCoef

from lightning_neurocorr import NeuronAdvantageCorrelation
from tests.benchmarks.timing import forget_peak, machine, medians, peak, table


def speed(batch: int, neurons: int, repeats: int) -> dict[str, float]:
    """Median seconds of an update by variant; ``floor`` is ``X.sum(0)``."""
    x, a = torch.randn(batch, neurons).relu(), torch.randint(-1, 2, (batch,)).float()
    groups, fold = torch.rand(batch, 3), torch.randint(0, 2, (batch,))
    spread = a[:, None].expand(-1, neurons).contiguous()
    peer = PearsonCorrCoef(num_outputs=neurons)
    plain = NeuronAdvantageCorrelation(neurons)
    profile = NeuronAdvantageCorrelation(neurons, num_covariates=3, count_active=True)
    halves = NeuronAdvantageCorrelation(neurons, num_covariates=3, count_active=True, folds=2)
    return medians(
        {
            "floor": lambda: x.sum(0),
            "r alone": lambda: plain.update(x, a),
            "with outcome profile": lambda: profile.update(x, a, groups),
            "and two folds": lambda: halves.update(x, a, groups, fold),
            "PearsonCorrCoef": lambda: peer.update(x, spread),
        },
        repeats,
    )


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="small sizes, to see that it runs")
    fast = parser.parse_args().fast
    torch.set_num_threads(1)
    sizes = [(32, 2000)] if fast else [(256, 1000), (256, 10_000), (256, 100_000)]
    rows = []
    for batch, neurons in sizes:
        found = speed(batch, neurons, 3 if fast else 9)
        floor = found.pop("floor")
        ratios = [f"{seconds / floor:.1f}" for seconds in found.values()]
        rows.append([f"{batch} × {neurons:,}", *ratios])
    variants = ["r alone", "with outcome profile", "and two folds", "`PearsonCorrCoef`"]
    print(table(["batch × neurons", *variants], rows))
    rows = []
    for neurons in (10_000,) if fast else (100_000, 1_000_000):
        state = NeuronAdvantageCorrelation(neurons).state.nbytes / neurons
        full = NeuronAdvantageCorrelation(neurons, num_covariates=3, folds=2).state.nbytes / neurons
        matrix = 64 * neurons * 4
        ours, peer = (peak_rise(name, 64, neurons) / matrix for name in ("ours", "peer"))
        rows.append([f"{neurons:,}", f"{state:.0f}", f"{full:.0f}", f"{ours:.2f}", f"{peer:.2f}"])
    risen = "peak of two updates of 64 samples, in batch matrices"
    held = ["bytes of state per neuron, r alone", "with profile and two folds"]
    print(table(["neurons", *held, risen, "`PearsonCorrCoef`"], rows))
    print(machine("torchmetrics"))


if __name__ == "__main__":
    main()
