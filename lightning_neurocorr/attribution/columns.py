"""From sums to the *used* columns of every layer.

Shapes: ``D`` neurons, ``G`` parts of the pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from lightning_neurocorr.functional.inference import student_p

_ROUNDING = 1e-6  # an error below this part of a number is what arithmetic makes of none


@dataclass(frozen=True)
class AttributionColumns:
    """The *used* columns of a layer, float64 ``(D,)`` arrays; NaN where undefined.

    A neuron's *share* of its layer in a group of samples is its attribution there over the sum of
    |attribution| of all neurons; negative where it speaks for the rival.

    Attributes:
        attribution: Mean contribution over ``only_model`` samples.
        low: Lower end of its 95 % interval over samples (Student's t).
        high: Upper end.
        p_value: Two-sided p of a mean of 0; NaN where nothing varies.
        contrast: Share on the ``only_model`` members of the pairs minus that on their partners of
            ``both``, which have the same class and the same rival.
        contrast_low: Lower end of its 95 % interval (jackknife over parts of the pairs).
        contrast_high: Upper end.
        contrast_p: One-sided p of a share that is no larger on ``only_model``.
        shared: Share on the partners, where "a, not b" counts as much as "b, not a". Below 0
            the neuron speaks against what its activation tells of the class.
        per_fold: ``attribution`` of each fold, ``(2, D)``.
        n: How many ``only_model`` samples were attributed.
        pairs: How many of them had a partner.
    """

    attribution: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p_value: np.ndarray
    contrast: np.ndarray
    contrast_low: np.ndarray
    contrast_high: np.ndarray
    contrast_p: np.ndarray
    shared: np.ndarray
    per_fold: np.ndarray
    n: int
    pairs: int


@np.errstate(invalid="ignore", divide="ignore")
def columns(
    moments: np.ndarray,
    counts: np.ndarray,
    members: np.ndarray,
    pairs: int,
    shared: np.ndarray,
    layers: Mapping[str, slice],
) -> dict[str, AttributionColumns]:
    """Columns of all layers, whose neurons follow one another: worked out for all of them at once.

    Args:
        moments: Sums of k and k^2 over the ``only_model`` samples of each fold, ``(2, 2, D)``.
        counts: How many these are, ``(2,)``.
        members: Sums of k over the two members of the pairs in each part, ``(2, G, D)``.
        pairs: How many pairs there are.
        shared: Weighted sum of k over the partners, ``(D,)``.
        layers: Where the neurons of each layer lie, in order.
    """
    sizes = [span.stop - span.start for span in layers.values()]
    (k, kk), n = moments.sum(1), counts.sum()
    mean = _over(k, n)
    se = np.sqrt(_over(_over(np.maximum(kk - n * mean**2, 0), n - 1), n))
    half = special.stdtrit(max(n - 1, 1), 0.975) * se
    contrast, error, dof = share_contrast(members, sizes)
    reach = special.stdtrit(max(dof, 1), 0.975) * error
    found = {
        "attribution": mean,
        "low": mean - half,
        "high": mean + half,
        "p_value": np.where(
            half > _ROUNDING * np.abs(mean), student_p(mean / se, max(n - 1, 1)), np.nan
        ),
        "contrast": contrast,
        "contrast_low": contrast - reach,
        "contrast_high": contrast + reach,
        "contrast_p": np.where(
            error > _ROUNDING * np.abs(contrast), _above(contrast / error, max(dof, 1)), np.nan
        ),
        "shared": _shares(shared, sizes),
        "per_fold": _over(moments[0], counts[:, None]),
    }
    return {
        name: AttributionColumns(
            **{column: values[..., span] for column, values in found.items()}, n=int(n), pairs=pairs
        )
        for name, span in layers.items()
    }


def _above(t: np.ndarray, dof: int) -> np.ndarray:
    """One-sided p of Student's t."""
    p = student_p(t, dof) / 2
    return np.where(t > 0, p, 1 - p)


def share_contrast(
    members: np.ndarray, sizes: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray, int]:
    """The contrast of shares ``(D,)``, its standard error ``(D,)`` and their degrees of freedom.

    The error is the delete-one-part jackknife's (Shao and Tu 1995, "The Jackknife and Bootstrap",
    2.3): sqrt((G - 1) / G * sum of (contrast without part g - mean of these)^2). Temporaries
    in float64 are a few times ``(2, D)``, whatever G.

    Args:
        members: Sums of k over the members of the pairs in each part, ``(2, G, D)``.
        sizes: Neurons of each layer; by default they are all of one.
    """
    parts, neurons = members.shape[1:]
    sizes = [neurons] if sizes is None else sizes
    undefined = np.full(neurons, np.nan)
    if not parts:
        return undefined, undefined, 0
    total = members.sum(1, dtype=np.float64)
    contrast = _contrast(total, sizes)
    first, second = np.zeros_like(contrast), np.zeros_like(contrast)
    for part in range(parts):
        change = _contrast(total - members[:, part], sizes) - contrast
        first += change
        second += change**2
    if parts < 2:
        return contrast, undefined, 0
    spread = np.maximum(second - first**2 / parts, 0)
    return contrast, np.sqrt((parts - 1) / parts * spread), parts - 1


def _contrast(sums: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Share of the first group minus that of the second, from sums of k ``(2, D)``."""
    shares = _shares(sums, sizes)
    return shares[0] - shares[1]


def _shares(sums: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Each sum over the sum of |sum| in its layer, ``(..., D)``; NaN in layers of zeros."""
    counts = np.array([size for size in sizes if size], dtype=np.intp)
    starts = counts.cumsum() - counts
    whole = np.add.reduceat(np.fmax(np.abs(sums), 0), starts, axis=-1)  # NaN counts as 0
    return sums / np.repeat(whole, counts, axis=-1)


def _over(total: np.ndarray, count: np.ndarray | float) -> np.ndarray:
    """``total / count``, NaN where nothing was counted."""
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
