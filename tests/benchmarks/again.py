"""Running samples again: calls, forwards and seconds of attribution, ablation and the second pass.

    python -m tests.benchmarks.again [--fast]

A small CNN with random weights (330 neurons), images of 28 × 28. The baseline misses 15 % of what
the model gets right. Calls say what a GPU has to be asked for: where kernels are small, a call of
the model costs the same whatever its batch. The last table is a network of 54 layers whose
arithmetic is next to nothing: what is left is the work of the host, and how often it asks for
something.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import Ablation, Attribution, BatchBaseline, SecondPass, compare
from tests.benchmarks.timing import machine, table, turns
from tests.launches import Launches

_AT_ONCE = 256


def network() -> nn.Sequential:
    """32 + 64 + 96 + 128 + 10 neurons."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 96, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(96 * 9, 128), nn.ReLU(), nn.Linear(128, 10),
    ).eval()  # fmt: skip


def data(model: nn.Sequential, count: int, side: int = 28) -> TensorDataset:
    """Images, what is right about them (mostly what the model says), what the baseline says."""
    x = torch.randn(count, 1, side, side)
    with torch.no_grad():
        logits = torch.cat([model(part) for part in x.split(_AT_ONCE)])
        model[-1].bias.sub_(logits.mean(0))  # type: ignore[operator,union-attr]
        said = (logits - logits.mean(0)).argmax(1)  # or all images would get one answer
    right = torch.where(torch.rand(count) < 0.9, said, (said + 1) % 10)
    missed = torch.rand(count) < 0.15
    return TensorDataset(x, right, torch.where(missed, (right + 1) % 10, right))


def run(model: nn.Module, made: TensorDataset, size: int, **asked: Any) -> tuple[float, list[int]]:
    """CPU seconds of a comparison, and the samples of each call of the model."""
    sizes: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    start = time.process_time()
    compare(model, DataLoader(made, size), BatchBaseline(2), target=1, **asked)
    handle.remove()
    return time.process_time() - start, sizes


def attribution(fast: bool) -> str:
    """Attribution of 450 samples, by the size of the loader's batches."""
    rows = []
    for size in (16, 64, 256):
        model = network()
        made = data(model, 640 if fast else 2560)
        bare, before = run(model, made, size, attribution=False)
        most = 50 if fast else 225
        seconds, calls = run(model, made, size, attribution=Attribution(max_samples=most))
        again = (Counter(calls) - Counter(before)).elements()
        rows.append([size, ", ".join(map(str, again)), f"{seconds - bare:.2f}"])
    return table(["batch of the loader", "samples in further calls", "CPU seconds"], rows)


def studies(fast: bool) -> str:
    """Ablation and the second pass, each on top of a validation."""
    model = network()
    made = data(model, 500 if fast else 2000)
    bare, before = run(model, made, 256, attribution=False)
    small: dict[str, Any] = {"sizes": (1,), "random_sets": 2, "singles": 1} if fast else {}
    variants: dict[str, dict[str, Any]] = {
        "ablation, 64 samples per group": {
            "ablation": Ablation(by="r", max_samples=64, time_budget_s=None, **small)
        },
        "second pass": {"second_pass": SecondPass()},
    }
    rows = []
    for name, asked in variants.items():
        seconds, calls = run(model, made, 256, attribution=False, **asked)
        further = [len(calls) - len(before), sum(calls) - sum(before)]
        rows.append([name, *(f"{count:,}" for count in further), f"{seconds - bare:.1f}"])
    return table(["study", "calls of the model", "samples in them", "CPU seconds"], rows)


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.relu(self.norms[0](self.first(x)))
        return self.relu(x + self.norms[1](self.second(hidden)))


def deep() -> nn.Sequential:
    """54 layers of next to no arithmetic."""
    torch.manual_seed(0)
    stem = (nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(
        *stem, *(Block() for _ in range(26)), nn.Flatten(), nn.Linear(16, 10)
    ).eval()


def host(fast: bool) -> str:
    """What attribution adds to a validation of 54 tiny layers, beside forward and backward."""
    model, most, count = deep(), 50 if fast else 225, 640 if fast else 2560
    made = data(model, count, side=2)
    # As on a GPU: passes of 256, and inputs that have room for so many samples.
    settings = Attribution(max_samples=most, samples_per_pass=256, input_bytes=most * 2 * 56)

    def floor() -> None:
        for part in made.tensors[0][: 2 * most].split(256):
            start = model[0](part).detach().requires_grad_()
            torch.autograd.grad(model[1:](start).amax(1).sum(), start)

    def compared(size: int, attribution: Attribution | bool) -> None:
        compare(model, DataLoader(made, size), BatchBaseline(2), target=1, attribution=attribution)

    ways: dict[str, Callable[[], None]] = {"floor": floor}
    for size in (64, 256):
        ways[f"without {size}"] = partial(compared, size, False)
        ways[f"with {size}"] = partial(compared, size, settings)
    seconds = turns(ways, 2 if fast else 21)
    operators = {}
    for name, way in ways.items():
        with Launches() as launches:
            way()
        operators[name] = launches.found.total()
    alone = 1e3 * median(seconds["floor"])
    rows = [["forward and backward alone", operators["floor"], "", f"{alone:.0f}"]]
    for size in (64, 256):
        names = (f"with {size}", f"without {size}")
        more = operators[names[0]] - operators[names[1]]
        pairs = zip(*(seconds[name] for name in names), strict=True)
        longer = 1e3 * median(one - other for one, other in pairs)
        rows.append([f"batches of {size}", more, more - operators["floor"], f"{longer:.0f}"])
    return table(["attribution", "operators", "beyond these", "CPU ms"], rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="small sizes, to see that it runs")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(attribution(options.fast), flush=True)
    print(studies(options.fast), flush=True)
    print(host(options.fast), flush=True)
    print(machine())


if __name__ == "__main__":
    main()
