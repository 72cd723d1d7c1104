"""How many samples *encodes* takes: does it hold on as many others, and on many more?

    python -m tests.benchmarks.replication_sizes [--seeds N] [--first-seed N] [--sizes 1000 2000]

Fashion-MNIST, with the networks and the half-blind baseline of ``replication.py`` (and its cache).
40,000 images that none of them saw: 10,000 to test on, and half of those to train on. Of each
network's images, in an order drawn by its seed, the second half is kept back. The first half is
cut into parts of each size, eight at most. What is called on a part is looked at

- on the other parts of its size: does it hold there (every number that *encodes* asks for above 0
  by its own 95 % interval)?
- on what is kept back: does it hold there, or has one of these numbers the other sign?

*Expected* is how often it would hold on other samples of this size, were each number what it is on
those kept back and its Fisher z off by chance only: what a claim that is true can reach.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import special
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import NeuronReport, TableBaseline, compare
from lightning_neurocorr.report import rules
from tests.benchmarks import replication_cases as real_data
from tests.benchmarks.replication import CACHE, LAYERS, asked, holds
from tests.benchmarks.replication_cases import Case
from tests.benchmarks.timing import machine, table

PARTS = 8  # of a size
SIZES = (1000, 2000, 5000, 10_000)
EDGE = special.ndtri(0.975)


class Found(NamedTuple):
    """What a part of the samples called, ``(D,)`` bool where not said otherwise.

    Attributes:
        called: Which neurons.
        again: Share of the other parts on which each holds, ``(D,)``.
        expected: Chance that each holds on other samples as many as these, ``(D,)``.
        kept: Whether each holds on those kept back.
        turned: Whether a number that is asked for has the other sign there.
        neither: Samples of that outcome group, a number.
    """

    called: np.ndarray
    again: np.ndarray
    expected: np.ndarray
    kept: np.ndarray
    turned: np.ndarray
    neither: float


def expected(truth: NeuronReport, part: NeuronReport) -> np.ndarray:
    """Chance that each neuron holds on samples like those of ``part``, were ``truth`` true."""
    pairs = zip(asked(truth), asked(part), strict=True)
    z = [np.arctanh(r) * np.sqrt(max(n - 3, 0)) for (r, _), (_, n) in pairs]
    return np.prod([np.where(np.isnan(each), 1, special.ndtr(each - EDGE)) for each in z], 0)


def judged(parts: list[NeuronReport], truth: NeuronReport) -> Iterator[Found]:
    """Every part beside the others of its size, and beside the samples kept back."""
    there = [holds("encodes", part) for part in parts]
    turned = np.any([r < 0 for r, _ in asked(truth)], 0)
    for i, part in enumerate(parts):
        again = np.mean(there[:i] + there[i + 1 :], 0)
        called = rules.encodes({"r": part.column("r"), **part.columns})
        kept = holds("encodes", truth)
        yield Found(called, again, expected(truth, part), kept, turned, part.outcomes.neither)


def report(case: Case, rows: Tensor) -> NeuronReport:
    """What is found on some images."""
    loader = DataLoader(TensorDataset(case.x[rows], case.y[rows]), batch_size=250)
    return compare(case.model, loader, TableBaseline(case.answers[rows]), LAYERS, attribution=False)


def one_case(case: Case, sizes: Sequence[int]) -> dict[int, list[Found]]:
    """What the parts of each size find."""
    order = torch.randperm(len(case.y), generator=torch.Generator().manual_seed(case.seed))
    rows, kept = (half.sort().values for half in order.tensor_split(2))
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(case.seed))]
    truth = report(case, kept)
    return {
        size: list(judged([report(case, part) for part in _parts(rows, size)], truth))
        for size in sizes
    }


def _parts(rows: Tensor, size: int) -> list[Tensor]:
    return [part for part in rows.split(size)[:PARTS] if len(part) == size]


def row(size: int, found: list[Found]) -> list[str]:
    """The row of a size."""
    called = [each.called for each in found]
    count = sum(int(each.sum()) for each in called)

    def share(name: str) -> str:
        values = [getattr(each, name)[each.called] for each in found]
        return f"{np.concatenate(values).mean():.2f}" if count else ""

    neither = np.mean([each.neither for each in found])
    return [
        f"{size:,}", f"{neither:.0f}", f"{count / len(found):.2f} ({count} in {len(found)} parts)",
        share("again"), share("expected"), share("kept"), share("turned"),
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="networks")
    parser.add_argument("--first-seed", type=int, default=40, help="of these networks")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="of the parts")
    parser.add_argument("--only", choices=("digits", "fashion"), default="fashion")
    parser.add_argument("--data", type=Path, default=real_data.FASHION, metavar="FOLDER")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where networks are kept")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    fashion = options.only != "digits"
    data = real_data.fashion(options.data, unseen=True) if fashion else real_data.digits()
    if data is None:
        print(f"No Fashion-MNIST: expected its four gzipped IDX files in {options.data}.\n")
        return
    most = len(data.test_y) // 4  # two parts in the first half
    if not all(0 < size <= most for size in options.sizes):
        parser.error(f"Expected `--sizes` to be from 1 to {most}, but got {options.sizes}")
    found: dict[int, list[Found]] = {size: [] for size in options.sizes}
    seeds = range(options.first_seed, options.first_seed + options.seeds)

    def say(*words: str) -> None:
        print(*words, sep="  ", file=sys.stderr, flush=True)

    for case in real_data.cases(data, seeds, options.cache, say):
        for size, parts in one_case(case, options.sizes).items():
            found[size] += parts
            say(f"seed {case.seed}:", *row(size, parts))
    kept = len(data.test_y) - len(data.test_y) // 2
    many = f"{kept:,} others"
    print(f"{data.name}, seeds {seeds[0]} to {seeds[-1]}.\n")
    head = ["samples of a part", "of these *neither*", "neurons called on a part"]
    head += ["hold on as many others", "expected of true claims", f"hold on {many}"]
    print(table([*head, f"other sign on {many}"], (row(*each) for each in found.items())))
    print(machine("scikit-learn"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
