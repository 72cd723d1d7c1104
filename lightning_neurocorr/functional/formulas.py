"""Two words that fit a neuron better than one (Mu and Andreas 2020).

They are found on one half of the samples, and kept where they hold on the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_neurocorr.functional.pairwise import correlations
from lightning_neurocorr.functional.words import is_binary, usable_words

# A formula has to be so much better than its best word, on samples that it was not chosen on: as a
# ratio, and in standard errors of r, which count where samples are few.
_GAIN, _GAIN_ERRORS = 1.1, 1.64

# And go with the neuron at all, for the best of many formulas of a neuron without a word.
_SCORE_ERRORS = 3.0

_BEAM = 8
_FORMULA_SAMPLES = 20
_FORMULA_SHARE = 0.6


@dataclass(frozen=True)
class Formula:
    """Two words that fit a neuron better than one.

    Attributes:
        first: Index of the first word.
        joined: ``"and"``, ``"and not"`` or ``"or"``.
        second: Index of the second word.
        score: r on the half that it was not chosen on.
        single: r of the best word on that half.
    """

    first: int
    joined: str
    second: int
    score: float
    single: float


def find_formulas(
    activations: np.ndarray, words: np.ndarray, second_half: np.ndarray
) -> list[Formula | None]:
    """The best formula of two words of each neuron, if it holds on samples it was not chosen on.

    Args:
        activations: ``(N, D)``.
        words: ``(N, V)``, scores and words with unknown samples are left out.
        second_half: ``(N,)`` bool.
    """
    whole = np.flatnonzero(is_binary(words) & usable_words(words) & np.isfinite(words).all(0))
    if len(whole) < 2:
        return [None] * activations.shape[1]
    w = words[:, whole] > 0
    fair = _fair(w)
    first = _Half(w[~second_half])
    found: list[Formula | None] = []
    for a in activations.T:
        best = _best(first, a[~second_half], fair)
        found.append(best and _held(best, a[second_half], w[second_half], whole))
    return found


# One of the best words, how it is joined, another word, and the best word alone.
_Candidate = tuple[int, str, int, int]
_JOINED = ("and", "and not", "or")


class _Half:
    """Words of the samples that formulas are chosen on, and how many samples two of them share.

    Args:
        words: ``(N, V)`` bool.
    """

    def __init__(self, words: np.ndarray) -> None:
        self.words = words.astype(np.float32)
        self.both = (self.words.T @ self.words).astype(np.float64)
        self.n = len(words)

    def r(self, sums: np.ndarray, sizes: np.ndarray, length: float) -> np.ndarray:
        """Pearson's r from sums of the centred activation over the samples of a formula."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return sums / (length * np.sqrt(sizes * (1 - sizes / self.n)))


def _fair(w: np.ndarray) -> dict[str, np.ndarray]:
    """Formulas with neither too few nor too many of all samples, ``(V, V)`` bool by kind."""
    counted = w.astype(np.float32)  # whole numbers below 2^24 are exact
    sizes = _combined((counted.T @ counted).astype(np.float64))
    fair = {}
    for joined, size in sizes.items():
        fair[joined] = (size >= _FORMULA_SAMPLES) & (size <= _FORMULA_SHARE * len(w))
        np.fill_diagonal(fair[joined], val=False)
    return fair


def _combined(
    both: np.ndarray, one: np.ndarray | None = None, other: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Sums over the samples of each formula, from sums over those of both words and of each."""
    one = np.diag(both) if one is None else one
    other = np.diag(both) if other is None else other
    return {
        "and": both,
        "and not": one[:, None] - both,
        "or": one[:, None] + other - both,
    }


def _best(half: _Half, a: np.ndarray, fair: dict[str, np.ndarray]) -> _Candidate | None:
    """The formula with the largest r; None where no word alone is beaten."""
    a = a.astype(np.float64) - a.mean(dtype=np.float64)
    length = float(np.linalg.norm(a))
    alone = half.words.T @ a
    counts = np.diag(half.both)
    r = np.nan_to_num(half.r(alone, counts, length), nan=-2.0)
    beam = np.argsort(-r, kind="stable")[:_BEAM]
    both = (half.words[:, beam] * a[:, None]).T @ half.words
    sums = _combined(both, alone[beam], alone)
    sizes = _combined(half.both[beam], counts[beam], counts)
    scores = np.stack(
        [
            np.where(fair[joined][beam], half.r(sums[joined], sizes[joined], length), np.nan)
            for joined in _JOINED
        ],
        1,
    )
    scores = np.nan_to_num(scores, nan=-2.0)
    i, joined, j = np.unravel_index(int(scores.argmax()), scores.shape)
    if not scores[i, joined, j] > r[beam[0]] + 1e-6:
        return None
    return int(beam[i]), _JOINED[int(joined)], int(j), int(beam[0])


def _held(best: _Candidate, a: np.ndarray, w: np.ndarray, names: np.ndarray) -> Formula | None:
    """The formula with its r on these samples; None where it is hardly better than one word."""
    i, joined, j, alone = best
    one, other = w[:, i], w[:, j]
    pair = {"and": one & other, "and not": one & ~other, "or": one | other}[joined]
    both = np.stack([pair, w[:, alone]], 1).astype(np.float64)
    score, single = correlations(a[:, None], both)[:, 0]
    error = 1 / np.sqrt(len(a))
    least = max(_GAIN * max(single, 0.0), single + _GAIN_ERRORS * error, _SCORE_ERRORS * error)
    if not score > least:
        return None
    return Formula(int(names[i]), joined, int(names[j]), float(score), float(single))
