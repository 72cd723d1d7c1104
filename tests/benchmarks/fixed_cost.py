"""CPU time that a validation costs whatever its tensors hold: a batch of tiny ones, and the ends.

    python -m tests.benchmarks.fixed_cost [--fast] [--rounds N]

Every convolution and linear layer is watched. A batch is of 64 samples and layers are so small that
arithmetic is nothing: what is left is the host's. Hooks, merging and report do not depend on the
batches; their activations are random numbers, made outside the clock. What a GPU leaves to the host
is put together: of as many tiny layers what is asked of a device, and of all neurons what is worked
out beside it. CPU time of one thread; malloc keeps memory.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from lightning_neurocorr import BatchBaseline, choose_layers
from lightning_neurocorr.activations import SitesFound
from lightning_neurocorr.functional import stratified
from lightning_neurocorr.samples import LoaderPositions
from lightning_neurocorr.validation import Batch, ValidationPass
from lightning_neurocorr.validation.collector import Collector
from lightning_neurocorr.validation.finished import report_of
from lightning_neurocorr.validation.options import Options
from lightning_neurocorr.validation.settings import Settings
from tests.benchmarks import gpu_epoch
from tests.benchmarks.gpu_table import Bench, Sizes
from tests.benchmarks.timing import machine, table
from tests.benchmarks.validation_epoch import MALLOC
from tests.launches import Launches

NETWORKS = {"ResNet-50": "resnet50", "ViT-B/16": "vit_b_16"}
KEEPS_MEMORY = MALLOC["malloc keeps memory"]  # else new pages are most of the noise
_CPU = torch.device("cpu")
_SAMPLES = 64


class Clock:
    """CPU milliseconds of the parts of a validation, over rounds."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = {}

    def __call__(self, part: str, run: Callable[[], Any]) -> Any:
        start = time.process_time()
        found = run()
        self.spent.setdefault(part, []).append(1000 * (time.process_time() - start))
        return found

    def medians(self) -> dict[str, float]:
        """Median of each part, and of whole rounds."""
        found = {part: statistics.median(times) for part, times in self.spent.items()}
        whole = map(sum, zip(*self.spent.values(), strict=True))
        return {**found, "together": statistics.median(whole)}


class Convolutions(nn.Module):
    """53 layers and a head, as in a ResNet-50, four neurons each."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [
            nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(53)
        ]
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean((2, 3)))


class Batches:
    """CPU seconds of the same batches without us, with a mean for each layer, and with us."""

    def __init__(self, model: nn.Module, *shape: int) -> None:
        self.model = model.eval()
        answers = torch.randint(0, 10, (2, _SAMPLES))
        self.batches = [(torch.randn(_SAMPLES, *shape), *answers) for _ in range(20)]
        self.found: SitesFound | None = None
        self.spent: dict[str, list[float]] = {}

    def _timed(self, part: str, run: Callable[[], Any]) -> Any:
        start = time.thread_time()
        found = run()
        self.spent.setdefault(part, []).append(time.thread_time() - start)
        return found

    def without(self, part: str) -> None:
        for x, *_ in self.batches:
            self._timed(part, partial(self.model, x))

    def with_us(self) -> None:
        options = Options(BatchBaseline(2), target=1, num_classes=10)
        layers = choose_layers(self.model, None)
        settings, positions = Settings(options, layers, self.model, self.found), LoaderPositions([])
        with Collector(self.model, settings) as collector:
            for batch in self.batches:
                outputs = self._timed("forward", partial(self._begun, collector, batch))
                self._timed("update", partial(collector.update, outputs, batch, positions))
            self.found = collector.recorder.found

    def _begun(self, collector: Collector, batch: Any) -> Any:
        collector.begin(batch)
        return self.model(batch[0])

    @torch.no_grad()
    def measured(self, rounds: int) -> list[str]:
        """Milliseconds per batch; of each the tenth that was least disturbed."""
        self.with_us()  # finds where neurons are read
        self.spent = {}
        for _ in range(rounds):
            self.without("bare")
            with gpu_epoch.means(self.model):
                self.without("floor")
            self.with_us()
        found = {part: 1000 * float(np.quantile(all_, 0.1)) for part, all_ in self.spent.items()}
        more = found["forward"] + found["update"] - found["floor"]
        return [f"{value:.2f}" for value in (*found.values(), more)]


def width(layer: Any) -> int:
    """Number of neurons."""
    return layer.embed_dim if isinstance(layer, nn.MultiheadAttention) else len(layer.weight)


def batches(widths: Mapping[str, int], classes: int, size: int) -> list[tuple[Batch, Any]]:
    """Two batches of random answers and activations; a third of the neurons are often 0."""
    made = []
    for start in (0, size):
        target = torch.randint(classes, (size,))
        model, baseline = (
            torch.where(torch.rand(size) < share, (target + 1) % classes, target)
            for share in (0.3, 0.5)
        )
        activations = {name: torch.randn(size, width) for name, width in widths.items()}
        for name in list(activations)[::3]:
            activations[name].relu_()
        number = torch.arange(start, start + size)
        made.append((Batch(model, baseline, target, number), activations))
    return made


def validation(
    clock: Clock,
    model: nn.Module,
    known: SitesFound | None,
    classes: int,
    passed: list[tuple[Batch, dict[str, Tensor]]],
) -> None:
    """A validation after the first one of a run, which knows where neurons are read."""

    def open_and_close() -> None:
        options = Options(BatchBaseline(2), target=1, num_classes=classes)
        settings = Settings(options, choose_layers(model, None), model, known)
        with Collector(model, settings):
            pass

    clock("hooks on and off", open_and_close)
    running = ValidationPass(num_classes=classes)
    for batch, activations in passed:
        running.add(batch, activations, {})
    found = clock("merging", partial(running.finish, _CPU))
    clock("report", partial(report_of, found))


def passing(passed: list[tuple[Batch, dict[str, Tensor]]]) -> ValidationPass:
    """A pass of 8 classes whose batches have come."""
    running = ValidationPass(num_classes=8)
    for batch, activations in passed:
        running.add(batch, activations, {})
    return running


def left_to_the_host(
    clock: Clock,
    passed: list[tuple[Batch, dict[str, Tensor]]],
    tiny: list[tuple[Batch, dict[str, Tensor]]],
) -> None:
    """The end of a validation as the host of a GPU has it, which holds the sums by class."""
    found = clock("merging, tiny layers", partial(passing(tiny).finish, _CPU))
    cells = [] if found.neurons is None else found.neurons.cells
    clock("sums by class, tiny layers", partial(stratified.stratify, cells))
    found = passing(passed).finish(_CPU)
    known = stratified.stratify([] if found.neurons is None else found.neurons.cells)
    with patch.object(stratified, "stratify", lambda _: known):
        clock("the rest of the report", partial(report_of, found))


def asked(tiny: list[tuple[Batch, dict[str, Tensor]]]) -> int:
    """How many operators the end of a validation asks for."""
    running = passing(tiny)
    with Launches() as launches:
        report_of(running.finish(_CPU))
    return launches.found.total()


def measured(name: str, classes: int, size: int, rounds: int) -> dict[str, str]:
    """CPU milliseconds of each part, and what they are of."""
    torch.manual_seed(0)
    model: nn.Module = getattr(torchvision.models, name)(weights=None).eval()
    layers = choose_layers(model, None)
    widths = {name: width(layer) for name, layer in layers.items()}
    passed, clock = batches(widths, classes, size), Clock()
    images = [(torch.randn(2, 3, 224, 224), torch.arange(2), torch.zeros(2, dtype=torch.long))]
    known = gpu_epoch.validation(Bench(_CPU, Sizes()), model, images)
    for _ in range(2):  # to warm up
        validation(Clock(), model, known, classes, passed)
    for _ in range(rounds):
        validation(clock, model, known, classes, passed)
    spent = {part: f"{value:.1f}" for part, value in clock.medians().items()}
    return {"layers": f"{len(widths)}", "neurons": f"{sum(widths.values()):,}", **spent}


def beside_a_gpu(name: str, size: int, rounds: int) -> dict[str, str]:
    """CPU milliseconds of what a GPU leaves to the host, but for hooks."""
    torch.manual_seed(0)
    layers = choose_layers(getattr(torchvision.models, name)(weights=None), None)
    widths = {name: width(layer) for name, layer in layers.items()}
    passed, tiny = batches(widths, 8, size), batches(dict.fromkeys(widths, 4), 8, size)
    for clock in (Clock(), found := Clock()):
        for _ in range(rounds):
            left_to_the_host(clock, passed, tiny)
    spent = {part: f"{value:.1f}" for part, value in found.medians().items()}
    return {**spent, "operators": f"{asked(tiny)}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="a small network, to see that it runs")
    parser.add_argument("--rounds", type=int, default=25)
    given = parser.parse_args()
    if not KEEPS_MEMORY.items() <= os.environ.items():  # it has to be so from the beginning
        command = [sys.executable, "-m", "tests.benchmarks.fixed_cost", *sys.argv[1:]]
        environment = {**os.environ, **KEEPS_MEMORY}
        sys.exit(subprocess.run(command, env=environment, check=False).returncode)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    networks = {"ResNet-18": "resnet18"} if given.fast else NETWORKS
    size, turns = (32, 1) if given.fast else (512, given.rounds)
    rows: list[Any] = []
    header: list[str] = []
    for title, name in networks.items():
        for classes in (8, 1000):
            found = measured(name, classes, size, turns)
            rows.append([title, classes, *found.values()])
            header = ["CPU ms of", "classes", *found]
    print(table(header, rows))
    found = {title: beside_a_gpu(name, size, turns) for title, name in networks.items()}
    header = [*next(iter(found.values()))]
    rows = [[title, *parts.values()] for title, parts in found.items()]
    print(table(["left to the host of a GPU, CPU ms", *header], rows))
    vit = torchvision.models.VisionTransformer(16, 8, 12, 2, 16, 32, num_classes=10)
    tiny = {"53 convolutions": (Convolutions(), 4, 2, 2), "ViT of 12 blocks": (vit, 3, 16, 16)}
    parts = ["bare", "floor: means", "forward with us", "our update", "ours over the floor"]
    rows = [[name, *Batches(*given).measured(turns)] for name, given in tiny.items()]
    print(table(["ms per batch, tiny layers", *parts], rows))
    print(machine("torchvision"))


if __name__ == "__main__":
    main()
