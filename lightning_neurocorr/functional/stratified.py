"""What can be said within classes, from counts, sums and sums of squares per class and outcome.

What has a number per class and neuron stays on its device. What has one per neuron leaves it, all
together: the device is waited for once.

Shapes: ``D`` neurons, ``d`` of a block, ``C`` classes (or pools of classes), 4 outcome groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr.functional.comparing import (
    ROUNDING,
    Comparison,
    Weights,
    compare,
    read_comparisons,
    weights_of,
)

_EXPLAINED = 1e-6  # of a neuron's spread, as for every partial correlation

# So many sums are worked on at once; on the CPU they stay in its cache.
_BLOCK, _DEVICE_BLOCK, _FEWEST = 1 << 17, 1 << 23, 1 << 9


@dataclass(frozen=True)
class CellMoments:
    """Sums of ``y = x - shift`` over the samples of each class and outcome group, float64.

    Attributes:
        counts: Samples, ``(C, 4)``.
        advantage: Sum of their advantage, ``(C, 4)``.
        shift: A provisional mean of each neuron, ``(D,)``.
        sums: Sum of y, ``(C, 4, D)``, where the metric lies, as the next.
        squares: Sum of y squared, ``(C, 4, D)``.
        by_class: Whether rows are classes or pools of like ones; otherwise all is one row, and
            nothing can be said within classes.
    """

    counts: np.ndarray
    advantage: np.ndarray
    shift: np.ndarray
    sums: Tensor
    squares: Tensor
    by_class: bool = True

    def __add__(self, other: CellMoments) -> CellMoments:
        """Those of other samples of the same classes, with the same shift, added."""
        names = ("counts", "advantage", "sums", "squares")
        return replace(self, **{name: getattr(self, name) + getattr(other, name) for name in names})


@dataclass(frozen=True)
class Stratified:
    """What sums by class and outcome group say of every neuron.

    Attributes:
        counts: Samples, ``(C, 4)``.
        advantage: Sum of their advantage, ``(C, 4)``.
        means: Mean activation per outcome group, ``(4, D)``; NaN for an empty one.
        comoment: Co-moment of class means of neuron and advantage, ``(D,)``.
        within: Second moment of the neuron around class means, ``(D,)``.
        compared: By two groups, whether activations are higher in the first: ``only_model`` or
            ``only_baseline``, and ``both`` or ``neither``. Empty, as the two before have no
            meaning, where rows are no classes.
    """

    counts: np.ndarray
    advantage: np.ndarray
    means: np.ndarray
    comoment: np.ndarray
    within: np.ndarray
    compared: Mapping[tuple[int, int], Comparison]


@np.errstate(invalid="ignore", divide="ignore", over="ignore")
def stratify(halves: Sequence[CellMoments]) -> Stratified:
    """Read what sums by class and outcome group say of every neuron.

    Args:
        halves: Those of each half of the samples, with the same classes and shift; or of all.
    """
    counts = np.sum([half.counts for half in halves], 0)
    advantage = np.sum([half.advantage for half in halves], 0)
    first, device = halves[0], halves[0].sums.device
    scopes = [counts, *(half.counts for half in halves)] if len(halves) > 1 else [counts]
    weights = weights_of(scopes, device) if first.by_class else []
    to_class = np.stack([_gaps(counts, advantage), 1 / np.maximum(counts.sum(1), 1)])
    classes = torch.from_numpy(to_class).to(device)
    blocks = [_of_block(block, classes, weights) for block in _blocks(halves)]

    def fetched(index: int) -> np.ndarray:
        return torch.cat([block[index] for block in blocks], 1).cpu().numpy()

    means, (comoment, within), compared = np.split(fetched(0), [4, 6])  # one wait for all
    return Stratified(
        counts,
        advantage,
        first.shift + means / counts.sum(0)[:, None],
        comoment,
        within,
        read_comparisons(compared, partial(fetched, 1), counts) if first.by_class else {},
    )


def _gaps(counts: np.ndarray, advantage: np.ndarray) -> np.ndarray:
    """What the mean advantage of each class has more than that of all, ``(C,)``.

    Weighted by samples they sum to 0, so that no mean of a neuron is needed beside them.
    """
    return advantage.sum(1) / np.maximum(counts.sum(1), 1) - advantage.sum() / counts.sum()


def _blocks(halves: Sequence[CellMoments]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Sums and squares of each half, of some neurons after the other."""
    sums = halves[0].sums
    block = _BLOCK if sums.device.type == "cpu" else _DEVICE_BLOCK
    width = max(_FEWEST, block // (sums.shape[0] * sums.shape[1]))
    for start in range(0, sums.shape[2], width):
        some = slice(start, start + width)
        yield [(half.sums[..., some], half.squares[..., some]) for half in halves]


def _of_block(
    halves: Sequence[tuple[Tensor, Tensor]], classes: Tensor, weights: Sequence[Weights]
) -> tuple[Tensor, ...]:
    """What is known of some neurons, ``(rows, d)``, and what is behind comparisons."""
    sums, squares = whole = tuple(reduce(torch.add, parts) for parts in zip(*halves, strict=True))
    of_class, (to_gap, to_mean) = sums.sum(1), classes
    within = squares.sum((0, 1)) - to_mean @ of_class.square()
    rows = [sums.sum(0), (to_gap @ of_class)[None], within[None]]
    if not weights:
        return (torch.cat(rows),)
    compared, *behind = compare([whole, *halves][: len(weights)], weights)
    return torch.cat([*rows, compared]), *behind


def correlation_within(
    found: Stratified, comoment: np.ndarray, spread: np.ndarray, advantage_spread: float
) -> tuple[np.ndarray, int]:
    """Pearson's r of neuron and advantage with class means taken out, and the classes seen.

    This is the partial correlation given one-hot classes (Frisch-Waugh-Lovell). NaN where the
    class explains all of either but rounding.

    Args:
        found: What is known by class.
        comoment: Centred co-moment of neuron and advantage over all samples, ``(D,)``.
        spread: Centred second moment of the neuron over all samples, ``(D,)``.
        advantage_spread: That of the advantage.
    """
    n, gap = found.counts.sum(1), _gaps(found.counts, found.advantage)
    c, xx = comoment - found.comoment, found.within
    aa = advantage_spread - float((n * gap**2).sum())
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        r = c / (np.sqrt(np.maximum(xx, 0)) * np.sqrt(max(aa, 0.0)))
    explained = ~(xx > _EXPLAINED * spread) | (aa <= ROUNDING * advantage_spread)
    return np.where(explained | ~np.isfinite(r), np.nan, np.clip(r, -1, 1)), int((n > 0).sum())
