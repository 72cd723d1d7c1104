"""What it changes to read neurons behind their activation function, and what finding them costs.

    python -m tests.benchmarks.reading [--seeds N] [--data FOLDER] [--fast]

The networks of the replication benchmark, against a baseline that sees left halves, read raw and
behind the ReLU. *Values of |r|* counts those that differ by more than 0.002 among the neurons of
the first convolution. *Encodes* and *used* are called on each half of the held-out images, *again*
how many of those are called on the other half too; *placebo* is the share of neurons called against
the baseline's answers shuffled within classes. The second table is the first batch of a
validation, whose tensors are followed.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torchvision
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import NeuronReport, TableBaseline, compare
from lightning_neurocorr.activations import SiteFinder, choose_layers
from lightning_neurocorr.report import rules
from tests.benchmarks import replication_cases as real_data
from tests.benchmarks.replication import CACHE, placebo
from tests.benchmarks.timing import machine, table

KINDS: tuple[Literal["raw", "activation"], ...] = ("raw", "activation")
LAYERS = [*(f"conv{i}" for i in range(4)), "linear"]
MODELS = ("resnet50", "densenet121", "swin_t", "mobilenet_v3_large")


def called(report: NeuronReport) -> dict[str, np.ndarray]:
    """By claim, which neurons are called."""
    columns = {"r": report.column("r"), **report.columns}
    return {"encodes": rules.encodes(columns), "used": rules.used(columns)}


def differing(values: np.ndarray, by: float = 0.002) -> int:
    """How many values differ."""
    ordered = np.sort(values[np.isfinite(values)])
    return int(1 + (np.diff(ordered) > by).sum()) if len(ordered) else 0


def changes(data: real_data.Data, options: argparse.Namespace) -> Iterator[list[str]]:
    """A row for each claim and kind of reading."""
    kinds: dict[tuple[str, str], list[np.ndarray]] = {}
    shuffled: dict[tuple[str, str], list[float]] = {}
    values: dict[str, list[int]] = {at: [] for at in KINDS}
    for case in real_data.cases(data, range(options.seeds), options.cache, print):
        for number, rows in enumerate(case.halves()):
            x, y, answers = case.x[rows], case.y[rows], case.answers[rows]
            loader = DataLoader(TensorDataset(x, y), batch_size=250)
            dealt = placebo(answers, y, 1000 * case.seed + number)
            for at in KINDS:
                report = compare(case.model, loader, TableBaseline(answers), LAYERS, at=at)
                values[at].append(differing(np.abs(report.column("r")[: report.sizes[0]])))
                null = compare(case.model, loader, TableBaseline(dealt), LAYERS, at=at)
                for claim, found in called(report).items():
                    kinds.setdefault((claim, at), []).append(found)
                    shuffled.setdefault((claim, at), []).append(float(called(null)[claim].mean()))
    for (claim, at), found in kinds.items():
        both = [int((a & b).sum()) for a, b in zip(found[::2], found[1::2], strict=True)]
        total = sum(int(each.sum()) for each in found)
        yield [
            at,
            ", ".join(map(str, values[at])),
            claim,
            ", ".join(str(int(each.sum())) for each in found),
            f"{2 * sum(both)} of {total}",
            f"{100 * np.mean(shuffled[claim, at]):.1f} %",
        ]


def costs(rounds: int) -> Iterator[list[str]]:
    """A row per model: a forward as it is, and one that is followed."""
    for name in MODELS:
        model = getattr(torchvision.models, name)().eval()
        x = torch.randn(8, 3, 224, 224)
        plain, followed = [], []
        with torch.inference_mode():
            model(x)
            for _ in range(rounds):
                start = time.perf_counter()
                model(x)
                plain.append(time.perf_counter() - start)
                finder = SiteFinder(model, choose_layers(model))
                start = time.perf_counter()
                with finder:
                    finder.restart(x)
                    model(x)
                finder.found()
                followed.append(time.perf_counter() - start)
        extra = min(followed) - min(plain)
        yield [name, f"{1000 * min(plain):.0f} ms", f"{1000 * extra:.0f} ms"]


def main(arguments: list[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=2, help="networks per data set")
    parser.add_argument("--fast", action="store_true", help="digits, one seed")
    parser.add_argument("--data", type=Path, default=real_data.FASHION, metavar="FOLDER")
    parser.add_argument(
        "--cache",
        type=Path,
        default=CACHE,
        help="where trained networks are kept",
    )
    options = parser.parse_args(arguments)
    options.seeds = 1 if options.fast else options.seeds
    warnings.simplefilter("ignore")
    head = ["read", "values of |r|, first layer", "claim", "called in each half", "again"]
    for data in (real_data.digits(), None if options.fast else real_data.fashion(options.data)):
        if data is not None:
            print(f"{data.name}, {options.seeds} networks.\n")
            print(table([*head, "placebo"], changes(data, options)), flush=True)
    if not options.fast:
        print(table(["model, 8 images", "a forward", "followed, more"], costs(3)))
    print(machine("scikit-learn"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
