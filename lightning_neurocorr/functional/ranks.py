"""Statistics that need raw activations: ranks and a permutation null, for a few neurons at a time.

Streaming moments cannot give these. They are exploratory where the neurons were chosen on the same
samples; the permutation test says how far chance alone would have come among just these neurons.

Shapes: ``N`` samples, ``K`` neurons.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from lightning_neurocorr.functional import ONLY_MODEL

MAX_NEURONS = 1024
_BLOCK = 256  # permutations at once


@dataclass(frozen=True)
class SecondPass:
    """Settings of a second pass over the validation samples after a validation.

    Args:
        neurons: How many of the neurons with the largest r are looked at, at most 1024.
        max_samples: At most so many samples, chosen by a hash of their position.
        permutations: Shuffles of the advantage for the max-T test.
        seed: Of the shuffles.

    Raises:
        ValueError: If a setting is out of range.
    """

    neurons: int = 64
    max_samples: int = 20_000
    permutations: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("neurons", "max_samples", "permutations"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(
                    f"Expected `{name}` to be a whole number of at least 1, but got {value!r}."
                )
        if self.neurons > MAX_NEURONS:
            raise ValueError(
                f"Expected `neurons` to be at most {MAX_NEURONS}, but got {self.neurons}."
            )


def auroc(activations: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """How well each neuron tells some samples from the others, ``(K,)``; ties count half.

    The area under the ROC curve is U / (n1 n2) of Mann and Whitney (1947).

    Args:
        activations: ``(N, K)``.
        positive: ``(N,)`` bool, ``only_model`` samples say.
    """
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return np.full(activations.shape[1], np.nan)
    ranks = stats.rankdata(activations, axis=0)
    u = ranks[positive].sum(0) - n_positive * (n_positive + 1) / 2
    return np.where(_varies(activations), u / (n_positive * n_negative), np.nan)


def spearman(activations: np.ndarray, advantage: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of each neuron with the advantage, ``(K,)``."""
    return _pearson(stats.rankdata(activations, axis=0), stats.rankdata(advantage))


def max_t_p_values(
    activations: np.ndarray,
    advantage: np.ndarray,
    strata: np.ndarray | None = None,
    permutations: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """Family-wise p of r of each neuron, ``(K,)`` (Westfall & Young 1993, single step).

    The advantage is shuffled, within strata where there are any; p is the share of shuffles, the
    unshuffled one counted in, whose largest |r| over all neurons reaches the neuron's own |r|.

    Args:
        activations: ``(N, K)``.
        advantage: ``(N,)``.
        strata: ``(N,)`` labels, such as classes, within which samples are exchangeable.
        permutations: Number of shuffles.
        seed: Of a private generator.
    """
    observed = np.abs(_pearson(activations, advantage))
    random = np.random.default_rng(seed)
    groups = [np.arange(len(advantage))]
    if strata is not None:
        groups = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    centred = activations - activations.mean(0)
    spread = np.sqrt((centred**2).sum(0))
    a = advantage - advantage.mean()
    scale = np.sqrt((a**2).sum())
    known = (spread > 0) & (scale > 0)
    centred = centred[:, known] / (spread[known] * scale)
    reached = np.zeros(len(observed))
    for start in range(0, permutations, _BLOCK):
        shuffled = np.empty((min(_BLOCK, permutations - start), len(a)))
        for row in shuffled:
            for group in groups:
                row[group] = a[random.permutation(group)]
        largest = np.abs(shuffled @ centred).max(1, initial=0.0)
        reached += (largest[:, None] >= observed[None] - 1e-12).sum(0)
    return np.where(np.isnan(observed), np.nan, (1 + reached) / (1 + permutations))


def second_pass_columns(
    activations: np.ndarray,
    advantage: np.ndarray,
    outcome: np.ndarray,
    target: np.ndarray,
    settings: SecondPass,
) -> dict[str, np.ndarray]:
    """The columns of a second pass, ``(K,)`` each.

    Args:
        activations: ``(N, K)``.
        advantage: ``(N,)``.
        outcome: ``(N,)`` outcome groups, -1 where there are none.
        target: ``(N,)`` class ids, -1 where there are none.
        settings: See :class:`SecondPass`.
    """
    activations = np.asarray(activations, dtype=np.float64)
    strata = target if (target >= 0).any() else None
    return {
        "auroc": auroc(activations, outcome == ONLY_MODEL),
        "spearman": spearman(activations, advantage),
        "p_max_t": max_t_p_values(
            activations, advantage, strata, settings.permutations, settings.seed
        ),
    }


def _pearson(x: np.ndarray, a: np.ndarray) -> np.ndarray:
    """Pearson's r of each column of ``x`` with ``a``; NaN where either is constant."""
    x, a = x - x.mean(0), a - a.mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (a @ x) / (np.sqrt((x**2).sum(0)) * np.sqrt((a**2).sum()))
    return np.where(_varies(x), r, np.nan)


def _varies(x: np.ndarray) -> np.ndarray:
    return x.max(0) > x.min(0)
