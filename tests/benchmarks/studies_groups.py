"""Groups on planted sources: made-up neurons with few and many classes, and convolutions.

    python -m tests.benchmarks.studies --only sources channels [--seeds 5]

Of every bed: how often there are as many groups as sources, purity where there are groups, and how
often columns shuffled within class make some.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from lightning_neurocorr.functional.groups import find_groups
from tests.planted_sources import Planted, hand_wired, made_up, trained

Row = tuple[str, str, str]  # what, goal, measured


def sources(seeds: int) -> Iterator[Row]:
    """Made-up neurons: 2 to 100 classes, also of unequal size; sources of 1, 2 and 6 numbers."""
    dims = (1, 2, 6)
    for classes in (2, 3, 5, 10, 100, -10):
        weights = [2.0**-c for c in range(-classes)] if classes < 0 else None
        for planted in (1, 2, 3):
            beds = [
                made_up(
                    seed, planted, n=800, classes=abs(classes), weights=weights, dims=dims[seed % 3]
                )
                for seed in range(500, 500 + 2 * seeds)
            ]
            often = "unequal " if classes < 0 else ""
            yield from _rows(f"{abs(classes)} {often}classes", planted, beds)


def channels(seeds: int) -> Iterator[Row]:
    """Hand-wired kernels, and both convolutions of trained networks."""
    for cross in (0.0, 0.1):
        for planted in (1, 2, 3):
            beds = [hand_wired(seed, planted, cross=cross) for seed in range(500, 500 + 2 * seeds)]
            yield from _rows(f"kernels, {cross:.0%} of other sources", planted, beds)
    for towers in (True, False):
        for planted in (1, 2, 3):
            found = [trained(500 + seed, planted, towers=towers) for seed in range(2 * seeds)]
            for layer, said in (("1", "first"), ("4", "second")):
                kind = "one source a channel" if towers else "free channels"
                beds = [one[layer] for one in found]
                yield from _rows(f"trained, {kind}, {said} convolution", planted, beds)


def _rows(name: str, planted: int, beds: Iterable[Planted]) -> Iterator[Row]:
    right, purity, shuffled, main = [], [], [], []
    for bed in beds:
        found = find_groups(bed.activations, bed.classes, bed.half)
        right.append(found.label.max() + 1 == (planted if planted > 1 else 0))
        live = bed.activations.std(0) > 0
        main.append(float(np.median(bed.share.max(0)[live])))
        if not found.why:
            purity.append(bed.purity(found.label))
        mixed = bed.shuffled()
        shuffled.append(not find_groups(mixed.activations, mixed.classes, mixed.half).why)
    n, what = len(right), f"{name}, {planted} source{'s' * (planted > 1)}"
    if planted == 1:
        yield f"{what}: groups in", "0", f"{len(purity)} of {n}"
    else:
        pure = f"{np.mean(purity):.2f}, lowest {np.min(purity):.2f}" if purity else "n/a"
        mostly = f"neurons have {np.mean(main):.2f} of their main source"
        yield f"{what} ({mostly}): groups in", "", f"{len(purity)} of {n}"
        yield f"{what}: as many groups as sources in", "", f"{sum(right)} of {n}"
        yield f"{what}: purity", "≥ .9", pure
    yield f"{what}, columns shuffled: groups in", "0", f"{sum(shuffled)} of {n}"


GROUP_PARTS: dict[str, Callable[[int], Iterator[Row]]] = {"sources": sources, "channels": channels}
