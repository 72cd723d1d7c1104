"""CPU time of a validation epoch with the callback, against the same epoch without it.

    python -m tests.benchmarks.validation_epoch [--fast] [--rounds N]

ResNet-18 at 224 x 224 with random weights, every convolution and the head watched (4,800 and 1,000
neurons), random images, a baseline in the batch, 1,000 classes. CPU time of one thread, medians of
epochs that take turns, and the time spent inside the callback. 15 % of the samples are advantage
samples. Attribution takes the share of samples that it takes of 4,267 or more inside a fit; of
fewer it takes more, up to 256 of each group.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import pytorch_lightning as pl
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import Attribution, BatchBaseline, NeuronAdvantage, Placebo
from lightning_neurocorr.activations import recording
from lightning_neurocorr.attribution import SampleChoice, match_by_class
from lightning_neurocorr.functional import BOTH, ONLY_MODEL
from lightning_neurocorr.functional.hashing import hashed
from tests.benchmarks.timing import machine, table, turns

# Left to itself, glibc gives the memory of every large feature map back and the kernel clears its
# pages anew: a fifth of the epoch, and most of the noise.
MALLOC = {
    "as it is": {},
    "malloc keeps memory": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)},
}


class Classifier(pl.LightningModule):
    """ResNet-18; labels are its own answers, so that it is always right."""

    def __init__(self, small: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model: nn.Module = torchvision.models.resnet18(weights=None)
        if small:
            self.model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))


def data(module: Classifier, n: int, size: int, batch: int) -> DataLoader[Any]:
    """Images, the module's answers, and a baseline that misses 15 % of them."""
    x = torch.randn(n, 3, size, size)
    module.eval()
    with torch.no_grad():
        answers = torch.cat([module(part).argmax(1) for part in x.split(32)])
    baseline = torch.where(torch.rand(n) < 0.15, (answers + 1) % 8, answers)
    return DataLoader(TensorDataset(x, answers, baseline), batch_size=batch)


def epoch(module: Classifier, loader: DataLoader[Any], *callbacks: Any) -> None:
    """One validation."""
    trainer = pl.Trainer(
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.validate(module, loader, verbose=False)


def as_in_a_large_set(loader: DataLoader[Any]) -> tuple[Attribution, int]:
    """Settings that take the default's share of these few samples, and how many these are.

    Samples are taken by their hash, so that of a hundred it can be a few more or less.
    """
    _, target, baseline = loader.dataset.tensors  # type: ignore[attr-defined]
    outcome = torch.where(target == baseline, BOTH, ONLY_MODEL)
    seen = torch.bincount(4 * target + outcome, minlength=4000).reshape(-1, 4)
    draw = hashed(torch.arange(len(target)), seed=1).double() / 2**63

    def taken(settings: Attribution) -> int:
        """Those that are chosen, of ``both`` as many as find a partner."""
        choice = SampleChoice(settings, len(target), seen)
        rows, group, _ = choice(target, outcome, draw)
        wins = rows[group == 0][: choice.wanted[0]]
        chosen = torch.full_like(outcome, -1)
        chosen[wins], chosen[rows[group == 1]] = ONLY_MODEL, BOTH
        return len(wins) + int((match_by_class(target, chosen) >= 0).sum())

    wanted = round(Attribution().max_share * len(target))
    choices = [Attribution(max_samples=n) for n in range(1, wanted + 1)]
    best = min(choices, key=lambda settings: abs(taken(settings) - wanted))
    return best, taken(best)


def inside(run: Callable[[], Any], callback: NeuronAdvantage) -> dict[str, float]:
    """CPU seconds that a callback spends in its hooks, for feature maps and for all else.

    These are much less noisy than differences between epochs, but miss what caches lose by us.
    """
    spent = {"pool": 0.0, "rest": 0.0}

    def clocked(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def clock(*arguments: Any, **options: Any) -> Any:
            start = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                spent[part] += time.process_time() - start

        return clock

    hooks = [name for name in dir(pl.Callback) if name.startswith("on_validation")]
    with ExitStack() as stack:
        reading = clocked("pool", recording.position_mean)
        stack.enter_context(patch.object(recording, "position_mean", reading))
        for name in ("setup", *hooks, "teardown"):
            hook = clocked("rest", getattr(callback, name))
            stack.enter_context(patch.object(callback, name, hook))
        run()
    return spent


def against(times: list[float], bare: list[float]) -> str:
    """Ratio of medians, and the standard error of the mean of neighbours' ratios."""
    ratios = [one / other for one, other in zip(times, bare, strict=True)]
    error = statistics.stdev(ratios) / len(ratios) ** 0.5
    return f"{statistics.median(times) / statistics.median(bare):.3f} ± {error:.3f}"


def measure(fast: bool, rounds: int) -> dict[str, str]:
    """The cells of a column of the table."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for package in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(package).setLevel(logging.ERROR)
    module = Classifier(small=fast)
    loader = data(module, 64 if fast else 320, 16 if fast else 224, 32)
    capped, taken = as_in_a_large_set(loader)
    # The same callback from epoch to epoch: it knows the classes from the first one on.
    alone, both, tried = (
        NeuronAdvantage(
            BatchBaseline(2), target=1, attribution=used, placebo=placebo, visualizer=None
        )
        for used, placebo in ((False, False), (capped, False), (False, Placebo(draws=3)))
    )
    found = turns(
        {
            "without": lambda: epoch(module, loader),
            "correlation": lambda: epoch(module, loader, alone),
            "attribution": lambda: epoch(module, loader, both),
            "placebo": lambda: epoch(module, loader, tried),
        },
        2 if fast else rounds,
    )
    bare = found["without"]
    seconds = statistics.median(bare)
    own = inside(lambda: epoch(module, loader, alone), alone)
    images = len(loader.dataset)  # type: ignore[arg-type]
    return {
        f"{images} images without us, s of CPU": f"{seconds:.1f}",
        "with correlation": against(found["correlation"], bare),
        f"and attribution of {taken} of them": against(found["attribution"], bare),
        "with correlation and a placebo of three draws": against(found["placebo"], bare),
        "timed inside us: reading feature maps": f"{100 * own['pool'] / seconds:.1f} %",
        "timed inside us: all else": f"{100 * own['rest'] / seconds:.1f} %",
    }


def in_a_process(fast: bool, rounds: int, environment: dict[str, str]) -> dict[str, str]:
    """What :func:`measure` gives in a fresh process."""
    code = (
        "import json; from tests.benchmarks.validation_epoch import measure; "
        f"print(json.dumps(measure({fast}, {rounds})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="a tiny network, to see that it runs")
    parser.add_argument("--rounds", type=int, default=7, help="epochs of each kind")
    given = parser.parse_args()
    columns = [in_a_process(given.fast, given.rounds, around) for around in MALLOC.values()]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    print(table(["", *MALLOC], rows))
    print(machine("torchvision", "pytorch-lightning"))


if __name__ == "__main__":
    main()
