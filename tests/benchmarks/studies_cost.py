"""What the five studies cost beside a validation epoch: CPU and memory, one by one and together.

    python -m tests.benchmarks.studies_cost [--only clothes resnet] [--rounds 3]

An *epoch* is one forward of the model over the data, nothing else. What a study costs is the CPU
time of `compare` with it less that without any, in epochs; the baseline is a network of the same
size and answers either way. One thread, medians of rounds that take turns.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import (
    Groups,
    ImageStatistics,
    Matches,
    ModuleBaseline,
    Readout,
    Slices,
    Words,
    compare,
)
from lightning_neurocorr.studies import doing
from tests.benchmarks.fashion_world import NAMES, fashion_world
from tests.benchmarks.timing import forget_peak, machine, peak, table


@dataclass(frozen=True)
class Case:
    """Two networks, data, and what is known of them.

    Attributes:
        what: In words.
    """

    what: str
    model: nn.Module
    other: nn.Module
    loader: DataLoader[Any]
    metadata: dict[str, Any]
    class_names: list[str] | None

    def epoch(self) -> None:
        """The model over the data."""
        with torch.no_grad():
            for batch in self.loader:
                self.model(batch[0])

    def compared(self, studies: list[Any]) -> Any:
        """The report with some studies."""
        return compare(
            self.model, self.loader, ModuleBaseline(self.other, inputs=0), target=1,
            metadata=[ImageStatistics(), self.metadata], class_names=self.class_names,
            attribution=False, studies=studies,
        )  # fmt: skip


def clothes() -> Case:
    """The small CNN on 10,000 photographs: an epoch takes a second."""
    world = fashion_world(10)
    return Case(
        "four layers, 154 neurons, 10,000 images of 28 x 28",
        world.model, world.other, world.loader, world.metadata, list(NAMES),
    )  # fmt: skip


def resnet(n: int = 3000, size: int = 64) -> Case:
    """A ResNet-18 of random weights; labels are its answers, and another network misses some."""
    torch.manual_seed(0)
    x = torch.randn(n, 3, 8, 8).repeat_interleave(size // 8, 2).repeat_interleave(size // 8, 3)
    model = torchvision.models.resnet18(weights=None, num_classes=10).eval()
    with torch.no_grad():
        logits = torch.cat([model(part) for part in x.split(100)])
        model.fc.bias -= logits.mean(0)
        y = (logits - logits.mean(0)).argmax(1)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.fc.weight += 0.3 * other.fc.weight.std() * torch.randn_like(other.fc.weight)
    metadata = {f"word {i}": torch.rand(n) < 0.1 for i in range(40)}
    return Case(
        f"ResNet-18, 4,810 neurons, {n:,} images of {size} x {size}", model, other,
        DataLoader(TensorDataset(x, y), 50), metadata, None,
    )  # fmt: skip


def every() -> dict[str, list[Any]]:
    """What is compared, by name."""
    one = {"words": Words(), "slices": Slices(), "groups": Groups(), "readout": Readout()}
    one["matches"] = Matches()
    alone = {name: [study] for name, study in one.items()}
    return {"none": [], **alone, "together": list(one.values())}


def cpu(run: Callable[[], Any]) -> float:
    """CPU seconds of a call."""
    began = time.process_time()
    run()
    return time.process_time() - began


def finds(case: Case) -> tuple[dict[str, float], int]:
    """CPU seconds of each `find` of all five, and the peak of memory in bytes."""
    spent: dict[str, float] = {}
    real = doing._done

    def timed(study: Any, *rest: Any) -> Any:
        began = time.process_time()
        try:
            return real(study, *rest)
        finally:
            spent[study.name] = time.process_time() - began

    doing._done = timed
    try:
        forget_peak()
        case.compared(every()["together"])
        return spent, peak()
    finally:
        doing._done = real


def measure(case: Case, rounds: int) -> Iterator[tuple[str, str, str, str]]:
    """Rows: what, seconds beyond the validation, epochs, seconds when it is over."""
    spent: dict[str, list[float]] = {}
    case.epoch()
    for _ in range(rounds):
        spent.setdefault("epoch", []).append(cpu(case.epoch))
        for name, studies in every().items():
            spent.setdefault(name, []).append(cpu(lambda s=studies: case.compared(s)))
    median = {name: statistics.median(times) for name, times in spent.items()}
    epoch, none = median.pop("epoch"), median.pop("none")
    forget_peak()
    case.compared([])
    low = peak()
    over, high = finds(case)
    yield "epoch", f"{epoch:.2f}", "1", ""
    yield "validation without studies, two networks", f"{none:.2f}", f"{none / epoch:.2f}", ""
    for name, seconds in median.items():
        after = f"{over[name]:.2f}" if name in over else f"{sum(over.values()):.2f}"
        yield name, f"+{seconds - none:.2f}", f"+{(seconds - none) / epoch:.2f}", after
    yield "memory together, MB beyond that without", f"{(high - low) / 2**20:.0f}", "", ""


CASES = {"clothes": clothes, "resnet": resnet}


def main() -> None:
    """Print a table for each case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in args.only:
        case = CASES[name]()
        header = [case.what, "s of CPU", "epochs", "of them when the validation is over, s"]
        print(table(header, measure(case, args.rounds)), flush=True)
    print(machine("scikit-learn", "torchvision"))


if __name__ == "__main__":
    main()
