"""Read raw or behind the ReLU: which finds the planted neurons of the three scenarios?

    python -m tests.benchmarks.reading_scenarios [--seeds N] [--fast]

The networks of ``examples/``, trained twice for each seed with the callback at one place and at the
other; that it watches changes no weight, so both reports are of the same network. The digits'
networks join two linear layers before their ReLU, so raw is the two layers, and activation the
ReLU. The ring X-ray names its convolutions and says ``at``. AUROC, and precision at 10 (of the ring
X-ray at the number of its ring detectors), of r and of attribution; mean over networks ± standard
deviation, and how much more the activation gives, mean ± standard error over the pairs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import NeuronReport, compare
from tests.benchmarks.timing import machine, table

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import half_blind_digits
import older_checkpoint
import ring_xray
from half_blind_digits import PLANTED, auroc, precision

PLACES: dict[str, Any] = {"raw": ["left", "right"], "activation": "neurons"}
Pair = tuple[dict[str, NeuronReport], np.ndarray]  # reports by place, and the truth


def digits(seed: int, deep: bool) -> Pair:
    """The baseline sees left halves."""
    found = {
        at: half_blind_digits.train(seed, deep, layers=layers).report
        for at, layers in PLACES.items()
    }
    return {at: report for at, report in found.items() if report is not None}, PLANTED


def checkpoint(seed: int, deep: bool) -> Pair:
    """The baseline is the model's own past."""
    with tempfile.TemporaryDirectory() as folder:
        found = {
            at: older_checkpoint.train(seed, deep, Path(folder), layers=layers).report
            for at, layers in PLACES.items()
        }
    return {at: report for at, report in found.items() if report is not None}, PLANTED


def rings(seed: int, pooling: str) -> Pair:
    """The baseline sees brightness."""
    model, _ = ring_xray.train(seed)
    x, shows = ring_xray.xrays(2000, seed + 1000)
    ill = (shows != ring_xray.NONE).long()
    loader = DataLoader(TensorDataset(x, ill), batch_size=200)
    brightness = ring_xray.brightness(x)
    threshold = ring_xray.best_threshold(brightness, shows != ring_xray.NONE)
    convolutions = ["features.0", "features.2", "features.5"]
    reports = {
        at: compare(
            model,
            loader,
            lambda batch: (ring_xray.brightness(batch[0]) > threshold).long(),
            convolutions,
            at=at,
            pooling=pooling,
        )
        for at in ("raw", "activation")
    }
    return reports, ring_xray.ring_detectors(model, seed)


SCENARIOS: dict[str, tuple[Callable[[int], Pair], int]] = {
    "half-blind digits": (lambda seed: digits(seed, deep=False), 200),
    "half-blind digits, deep": (lambda seed: digits(seed, deep=True), 200),
    "older checkpoint": (lambda seed: checkpoint(seed, deep=False), 300),
    "older checkpoint, deep": (lambda seed: checkpoint(seed, deep=True), 300),
    "ring X-ray, max": (lambda seed: rings(seed, "max"), 400),
    "ring X-ray, mean": (lambda seed: rings(seed, "mean"), 400),
}


def numbers(report: NeuronReport, truth: np.ndarray) -> list[float]:
    """AUROC and precision of r, then of attribution."""
    k = 10 if truth is PLANTED else int(truth.sum())
    found = []
    for column in ("r", "attribution"):
        score = np.nan_to_num(report.column(column), nan=-1e9)
        found += [auroc(score, truth), precision(score, truth, k)]
    return found


def rows(seeds: int, names: list[str]) -> Iterator[list[str]]:
    """Per scenario one for each place, and one for the difference."""
    for name in names:
        build, first = SCENARIOS[name]
        pairs = [build(seed) for seed in range(first, first + seeds)]
        pairs = [(reports, truth) for reports, truth in pairs if truth.sum() > 1]
        found = {
            at: np.array([numbers(reports[at], truth) for reports, truth in pairs]) for at in PLACES
        }
        for at, values in found.items():
            means = zip(values.mean(0), values.std(0), strict=True)
            yield [name, str(len(pairs)), at, *(f"{m:.3f} ± {s:.3f}" for m, s in means)]
        more = found["activation"] - found["raw"]
        error = more.std(0, ddof=min(1, len(more) - 1)) / len(more) ** 0.5
        difference = (f"{m:+.3f} ± {e:.3f}" for m, e in zip(more.mean(0), error, strict=True))
        yield ["", "", "difference", *difference]


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=6, help="networks per scenario")
    parser.add_argument("--fast", action="store_true", help="one network of the first scenario")
    parser.add_argument("--only", nargs="*", choices=list(SCENARIOS), default=list(SCENARIOS))
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    seeds, names = (1, options.only[:1]) if options.fast else (options.seeds, options.only)
    head = ["scenario", "networks", "read", "r: AUROC", "r: precision"]
    head += ["attribution: AUROC", "attribution: precision"]
    print(table(head, rows(seeds, names)), flush=True)
    print(machine("scikit-learn"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
