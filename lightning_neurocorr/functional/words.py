"""Which words go with a neuron, which with its advantage, and whether any does: pure functions.

Shapes: ``N`` samples, ``D`` neurons, ``V`` words. A word is a column ``(N,)``: 1 where it fits a
sample and 0 where it does not, or a score; NaN where nobody knows. The word of a neuron is the one
with the largest Pearson r, over all samples: exemplars alone name whatever rare word one of them
happens to have. The exemplars then have to have it more often than chance allows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from lightning_neurocorr.functional.inference import p_value
from lightning_neurocorr.functional.pairwise import (
    complete_columns,
    correlations,
    less_means,
    standardised,
    with_halves,
)

# A word with fewer samples, or samples without it, tells nothing.
MIN_SAMPLES = 5

# An r within class counts from so many standard errors on: of neuron and word, and word and
# advantage; of neuron and advantage.
_WORD_ERRORS, _NEURON_ERRORS = 4.0, 3.0

# A word that explains less of what goes with the advantage is none of its words.
_LEAST_EXPLAINED = 0.05


@dataclass(frozen=True)
class Named:
    """The word of each neuron, ``(D,)`` each.

    Attributes:
        word: Index of the word with the largest r; -1 where there is none.
        score: Its r over all samples that have a value.
        held_out: r of the word that one half of the samples names, on the other half; the mean of
            both ways.
        null: The r that the best word reaches by chance in one of twenty neurons.
        p: Of the word among the exemplars, or of r on the other half for a word that is a score.
        share: Share of the exemplars that have the word; NaN for a score.
        base: Share of all samples that have it; NaN for a score.
    """

    word: np.ndarray
    score: np.ndarray
    held_out: np.ndarray
    null: np.ndarray
    p: np.ndarray
    share: np.ndarray
    base: np.ndarray


def name_neurons(
    activations: np.ndarray,
    words: np.ndarray,
    second_half: np.ndarray,
    *,
    shuffles: int = 20,
    seed: int = 0,
) -> Named:
    """The word of each neuron, and what it would be by chance.

    Args:
        activations: ``(N, D)``.
        words: ``(N, V)``: 0, 1 or a score; NaN where unknown.
        second_half: Which samples are of the second half, ``(N,)`` bool.
        shuffles: How often words are shuffled among samples for ``null``.
        seed: Of the shuffles.
    """
    usable = usable_words(words)
    found = with_halves(activations, words, second_half)
    r, *halves = (_masked(part, usable) for part in found)
    word, score = _best(r)
    named = [_best(half)[0] for half in halves]
    rows = np.arange(len(word))
    crossed = [np.where(named[i] >= 0, halves[1 - i][named[i], rows], np.nan) for i in (0, 1)]
    binary = is_binary(words)
    share, base, p = _exemplar_test(activations, words, word, binary, int(usable.sum()))
    scored = (word >= 0) & ~binary[word]
    told = np.isfinite(words[second_half]).sum(0)
    p = np.where(scored, _held_out_p(word, named[0], halves[1], told), p)
    return Named(
        word,
        score,
        held_out=(crossed[0] + crossed[1]) / 2,
        null=_chance(activations, words[:, usable], shuffles, seed),
        p=np.where(word < 0, np.nan, p),
        share=np.where(scored, np.nan, share),
        base=np.where(scored, np.nan, base),
    )


@dataclass(frozen=True)
class AdvantageWords:
    """What goes with a neuron and with the advantage inside the class, ``(D,)`` each.

    Attributes:
        word: Index of the word; -1 where none does.
        score: r(neuron, word) x r(word, advantage), both within class.
        share: How much of the neuron's covariance with the advantage within class the word
            explains: 1 - cov(a, d | class, word) / cov(a, d | class).
    """

    word: np.ndarray
    score: np.ndarray
    share: np.ndarray


def advantage_words(
    activations: np.ndarray, words: np.ndarray, advantage: np.ndarray, classes: np.ndarray
) -> AdvantageWords:
    """The word of the advantage of each neuron.

    Three r within class must stand out: neuron and advantage, neuron and word, word and advantage.
    Without the first, any word that the advantage goes with would be said of every neuron.

    Args:
        activations: ``(N, D)``.
        words: ``(N, V)``; words of the class itself say nothing here.
        advantage: ``(N,)``.
        classes: Class ids, ``(N,)``.
    """
    error = 1 / np.sqrt(len(advantage))
    own = correlations(activations, advantage[:, None].astype(float), classes)[0]
    with_neuron = _masked(correlations(activations, words, classes), usable_words(words))
    with_advantage = correlations(advantage[:, None].astype(float), words, classes)[:, 0]
    known = np.isfinite(words).mean(0).clip(1e-9)[:, None]
    least = _WORD_ERRORS * error / np.sqrt(known)
    fits = (with_neuron > least) & (with_advantage[:, None] > least)
    fits &= own > _NEURON_ERRORS * error
    product = np.where(fits, with_neuron * with_advantage[:, None], np.nan)
    word, score = _best(product)
    share = np.full(len(word), np.nan)
    _, classes = np.unique(classes, return_inverse=True)
    for d in np.flatnonzero(word >= 0):
        share[d] = _explained(activations[:, d], words[:, word[d]], advantage, classes)
    enough = share >= _LEAST_EXPLAINED
    return AdvantageWords(
        np.where(enough, word, -1), np.where(enough, score, np.nan), np.where(enough, share, np.nan)
    )


def usable_words(words: np.ndarray) -> np.ndarray:
    """Words that some samples have and some lack, ``(V,)`` bool."""
    known = np.isfinite(words)
    with np.errstate(invalid="ignore"):
        has = (known & (words > 0)).sum(0)
    enough = (has >= MIN_SAMPLES) & (known.sum(0) - has >= MIN_SAMPLES)
    high = np.where(known, words, -np.inf).max(0, initial=-np.inf)
    varied = high > np.where(known, words, np.inf).min(0, initial=np.inf)
    return np.where(is_binary(words), enough, varied & (known.sum(0) >= 2 * MIN_SAMPLES))


def is_binary(words: np.ndarray) -> np.ndarray:
    """Words that are 0 or 1 wherever they are known, ``(V,)`` bool."""
    return ((words == 0) | (words == 1) | np.isnan(words)).all(0)


def _masked(r: np.ndarray, usable: np.ndarray) -> np.ndarray:
    return np.where(usable[:, None], r, np.nan)


def _best(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The word with the largest positive score of each neuron, -1 and NaN where there is none."""
    filled = np.nan_to_num(scores, nan=-2.0)
    if not len(filled):
        return np.full(scores.shape[1], -1), np.full(scores.shape[1], np.nan)
    word = filled.argmax(0)
    score = filled[word, np.arange(filled.shape[1])]
    return np.where(score > 0, word, -1), np.where(score > 0, score, np.nan)


def _exemplar_test(
    activations: np.ndarray, words: np.ndarray, word: np.ndarray, binary: np.ndarray, tried: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of exemplars with the word, share of samples, and p: hypergeometric, times words.

    Exemplars are the samples with the largest activation: one in a hundred, 25 at least, but none
    on which the neuron is at its lowest.
    """
    # Of each neuron: samples, those that have the word, exemplars, those of them that have it.
    n, having, exemplars, hits = np.zeros((4, len(word)), dtype=int)
    for d in np.flatnonzero((word >= 0) & binary[word]):
        column = words[:, word[d]]
        rows = np.flatnonzero(np.isfinite(column))
        a, has = activations[rows, d], column[rows] > 0
        k = min(max(25, len(rows) // 100), int((a > a.min()).sum()))
        if k < 1:
            continue
        n[d], having[d], exemplars[d] = len(rows), has.sum(), k
        hits[d] = has[_largest(a, k)].sum()
    with np.errstate(invalid="ignore"):  # 0 / 0: nothing is known of a neuron
        share, base = hits / exemplars, having / n
    tail = stats.hypergeom.sf(hits - 1, n, having, exemplars)
    return share, base, np.where(n > 0, np.minimum(1.0, tried * tail), np.nan)


def _largest(a: np.ndarray, k: int) -> np.ndarray:
    """Where the k largest are; of equal ones the first."""
    least = -np.partition(-a, k - 1)[k - 1]
    above = np.flatnonzero(a > least)
    return np.append(above, np.flatnonzero(a == least)[: k - len(above)])


def _held_out_p(word: np.ndarray, named: np.ndarray, r: np.ndarray, told: np.ndarray) -> np.ndarray:
    """One-sided p of r on the second half; 1 where the first half named another word.

    Args:
        word: Of each neuron, over all samples ``(D,)``.
        named: By the first half.
        r: Of words and neurons on the second half ``(V, D)``.
        told: How many samples of the second half each word is known for ``(V,)``.
    """
    found, n, two = r[word, np.arange(len(word))], told[word], np.full(len(word), np.nan)
    for samples in np.unique(n):
        two[n == samples] = p_value(found[n == samples], float(samples))
    p = np.where(found > 0, two / 2, 1 - two / 2)
    return np.where(named == word, p, 1.0)


def _chance(activations: np.ndarray, words: np.ndarray, shuffles: int, seed: int) -> np.ndarray:
    """The 95th percentile of the best word's r when words are shuffled, ``(D,)``.

    A Gumbel distribution through mean and spread of the shuffles: the limit of a largest value.
    """
    if not words.shape[1]:
        return np.full(activations.shape[1], np.nan)
    draw = np.random.default_rng(seed)
    orders = [draw.permutation(len(words)) for _ in range(shuffles)]
    best = np.full((shuffles, activations.shape[1]), -2.0)
    for rows, columns in complete_columns(words):
        whole = isinstance(rows, slice)  # then a shuffle changes neither mean nor length
        a = standardised(activations, None).astype(np.float32) if whole else activations
        w = standardised(words[:, columns], None).astype(np.float32) if whole else words[:, columns]
        for i, order in enumerate(orders):
            r = w[order].T @ a if whole else correlations(a, w[order])
            best[i] = np.maximum(best[i], np.nan_to_num(r, nan=-2.0).max(0))
    best[best < -1] = np.nan
    scale = best.std(0, ddof=1) * np.sqrt(6) / np.pi
    return best.mean(0) - scale * (np.euler_gamma + np.log(-np.log(0.95)))


def _explained(
    a: np.ndarray, word: np.ndarray, advantage: np.ndarray, classes: np.ndarray
) -> float:
    """1 - cov(a, d | class, word) / cov(a, d | class) over the samples with a known word."""
    rows = np.isfinite(word)
    both = np.stack([a[rows], advantage[rows]], 1).astype(np.float64)
    word, classes = word[rows], classes[rows]
    total = less_means(both, classes)
    if bool(((word == 0) | (word == 1)).all()):
        rest = less_means(both, 2 * classes + word.astype(np.int64))
    else:
        w = less_means(word[:, None].astype(np.float64), classes)[:, 0]
        rest = total - w[:, None] * ((w @ total) / (w @ w))
    whole = total[:, 0] @ total[:, 1]
    return float(1 - rest[:, 0] @ rest[:, 1] / whole) if whole else float("nan")
