"""Two words that fit a neuron better than one (Mu and Andreas 2020).

They are found on one half of the samples, and kept where they hold on the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lightning_neurocorr.functional.words import correlations, is_binary, usable_words

# A formula has to be so much better than its best word, on samples that it was not chosen on: as a
# ratio, and in standard errors of r, which count where samples are few.
_GAIN, _GAIN_ERRORS = 1.1, 1.64
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


def find_formula(
    activation: np.ndarray, words: np.ndarray, second_half: np.ndarray
) -> Formula | None:
    """The best formula of two words, if it holds on samples that it was not chosen on.

    Args:
        activation: Of one neuron, ``(N,)``.
        words: ``(N, V)``, scores and words with unknown samples are left out.
        second_half: ``(N,)`` bool.
    """
    whole = np.flatnonzero(is_binary(words) & usable_words(words) & np.isfinite(words).all(0))
    if len(whole) < 2:
        return None
    w = words[:, whole] > 0
    first = ~second_half
    r = correlations(activation[first, None], w[first].astype(float))[:, 0]
    order = np.argsort(-np.nan_to_num(r, nan=-2.0), kind="stable")
    best = _Candidate(float(r[order[0]]), int(order[0]), "", int(order[0]))
    for i in order[:_BEAM]:
        for joined, columns in _joined(w[:, i], w):
            size = columns.sum(0)
            fair = (size >= _FORMULA_SAMPLES) & (size <= _FORMULA_SHARE * len(w))
            fair[i] = False
            if not fair.any():
                continue
            score = np.full(len(size), np.nan)
            part = columns[first][:, fair].astype(float)
            score[fair] = correlations(activation[first, None], part)[:, 0]
            j = int(np.argmax(np.nan_to_num(score, nan=-2.0)))
            if score[j] > best.score:
                best = _Candidate(float(score[j]), int(i), joined, j)
    if not best.joined:
        return None
    pair = dict(_joined(w[:, best.first], w[:, [best.second]]))[best.joined]
    half = second_half
    both = np.concatenate([pair, w[:, [int(order[0])]]], 1)[half].astype(float)
    score, single = correlations(activation[half, None], both)[:, 0]
    gain = _GAIN_ERRORS / np.sqrt(half.sum())
    if not score > max(_GAIN * max(single, 0.0), single + gain):
        return None
    names = whole[best.first], whole[best.second]
    return Formula(int(names[0]), best.joined, int(names[1]), float(score), float(single))


@dataclass(frozen=True)
class _Candidate:
    score: float
    first: int
    joined: str
    second: int


def _joined(one: np.ndarray, others: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    yield "and", one[:, None] & others
    yield "and not", one[:, None] & ~others
    yield "or", one[:, None] | others
