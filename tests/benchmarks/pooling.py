"""Which pooling finds what neurons encode: the mean over places, or the largest value?

    python -m tests.benchmarks.pooling [--seeds N] [--draws N] [--data FOLDER]

The networks of the replication benchmark, four layers with places, read after their ReLU: there the
mean of the positive part is the mean. *Called* is *encodes* on each half of the held-out images,
*again* how many of those are called on the other half too, *placebo* the share that is called
against the baseline's answers shuffled within classes. Then the ring X-ray: how r ranks the ring
detectors, which are those that tell rings from all else by their largest value.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import NeuronReport, TableBaseline, compare
from tests.benchmarks import replication_cases as real_data
from tests.benchmarks.replication import CACHE, Tally, percent, placebo
from tests.benchmarks.timing import machine, table

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

POOLINGS = ("mean", "max")
LAYERS = [f"relu{i}" for i in range(4)]


def report(
    case: real_data.Case, loader: DataLoader, given: torch.Tensor, pooling: str
) -> NeuronReport:
    """Of the network against given answers."""
    baseline = TableBaseline(given)
    return compare(case.model, loader, baseline, LAYERS, pooling=pooling, attribution=False)


def tallies(data: real_data.Data, options: argparse.Namespace) -> dict[tuple[str, str], Tally]:
    """By pooling and control."""
    found = {(pooling, about): Tally() for pooling in POOLINGS for about in ("real", "placebo")}
    for case in real_data.cases(data, range(options.seeds), options.cache, print):
        for number, rows in enumerate(case.halves()):
            x, y, answers = case.x[rows], case.y[rows], case.answers[rows]
            loader = DataLoader(TensorDataset(x, y), batch_size=250)
            draws = [
                placebo(answers, y, 1000 * case.seed + 2 * d + number) for d in range(options.draws)
            ]

            for pooling in POOLINGS:
                found[pooling, "real"].add(report(case, loader, answers, pooling))
                for given in draws:
                    found[pooling, "placebo"].add(report(case, loader, given, pooling))
    return found


def rows(found: dict[tuple[str, str], Tally]) -> Iterator[list[str]]:
    """One for each pooling."""
    for pooling in POOLINGS:
        real, shuffled = found[pooling, "real"], found[pooling, "placebo"]
        numbers = [int(called.sum()) for called in real.called["encodes"]]
        again, called = real.replicated("encodes", real.called)
        yield [
            pooling,
            ", ".join(map(str, numbers)),
            f"{again // 2} of {called / 2:.0f}",
            f"{again / called:.2f}" if called else "",
            percent(float(np.mean(shuffled.shares("encodes")))),
        ]


def rings(seeds: int) -> Iterator[list[str]]:
    """AUROC of r for ring detectors, and how many of them are said to encode."""
    ring_xray = import_module("ring_xray")

    for seed in range(400, 400 + seeds):
        model, _ = ring_xray.train(seed)
        truth = ring_xray.ring_detectors(model, seed)
        (x, shows), (x_val, shows_val) = (
            ring_xray.xrays(3000, seed),
            ring_xray.xrays(2000, seed + 1000),
        )
        bright = ring_xray._best_threshold(ring_xray.brightness(x), shows != ring_xray.NONE)
        answers = TableBaseline((ring_xray.brightness(x_val) > bright).long())
        loader = DataLoader(TensorDataset(x_val, (shows_val != ring_xray.NONE).long()), 200)

        for pooling in POOLINGS:
            found = compare(
                model, loader, answers, ring_xray.LAYERS, pooling=pooling, attribution=False
            )
            r = np.nan_to_num(found.column("r"), nan=-1)
            said = [row.verdict for row, true in zip(found.rows, truth, strict=True) if true]
            encoded = sum("encodes the advantage" in verdict for verdict in said)
            score = ring_xray.auroc(r, truth) if truth.any() else np.nan
            yield [str(seed), pooling, f"{score:.3f}", f"{encoded} of {int(truth.sum())}"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="networks per data set")
    parser.add_argument("--draws", type=int, default=2, help="placebos per half and network")
    parser.add_argument("--fast", action="store_true", help="digits, one seed, one draw")
    parser.add_argument("--data", type=Path, default=real_data.FASHION, metavar="FOLDER")
    parser.add_argument(
        "--cache",
        type=Path,
        default=CACHE,
        help="where trained networks are kept",
    )
    options = parser.parse_args(arguments)
    if options.fast:
        options.seeds, options.draws = 1, 1
    warnings.simplefilter("ignore")
    head = ["pooling", "called in each half", "again on the other", "share", "placebo"]
    for data in (real_data.digits(), None if options.fast else real_data.fashion(options.data)):
        if data is not None:
            half = len(data.test_y) // 2
            print(
                f"{data.name}, {half:,} and {half:,} held-out images, {options.seeds} networks.\n"
            )
            print(table(head, rows(tallies(data, options))), flush=True)
    if not options.fast:
        print(
            table(
                ["seed", "pooling", "AUROC of r", "ring detectors that encode"],
                rings(options.seeds),
            )
        )
    print(machine("scikit-learn"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
