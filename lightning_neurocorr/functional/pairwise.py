"""Correlations of neurons and words, where a word need not be known for every sample.

Shapes: ``N`` samples, ``D`` neurons, ``V`` words. A word is a column ``(N,)``; NaN is unknown.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse


def correlations(
    activations: np.ndarray, words: np.ndarray | None, classes: np.ndarray | None = None
) -> np.ndarray:
    """Pearson's r of every word and neuron, over the samples for which the word is known.

    Args:
        activations: ``(N, D)``.
        words: ``(N, V)``, NaN where unknown; None is the neurons themselves.
        classes: Class ids ``(N,)``: means of a class are taken out of both.

    Returns:
        ``(V, D)``; NaN where one of the two is constant or too few samples are known.
    """
    if words is None and len(activations) > 2:
        a = standardised(activations, classes)
        return a.T @ a
    words = activations if words is None else words
    r = np.full((words.shape[1], activations.shape[1]), np.nan)
    for rows, columns in complete_columns(words):
        a = standardised(activations[rows], None if classes is None else classes[rows])
        w = standardised(words[rows][:, columns], None if classes is None else classes[rows])
        r[columns] = w.T @ a
    return r


def with_halves(activations: np.ndarray, words: np.ndarray, second_half: np.ndarray) -> np.ndarray:
    """:func:`correlations` over all samples, the first half and the second: ``(3, V, D)``.

    The products of the halves add up to that of all samples.
    """
    r = np.full((3, words.shape[1], activations.shape[1]), np.nan)
    for rows, columns in complete_columns(words):
        a, w = standardised(activations[rows], None), standardised(words[rows][:, columns], None)
        halves = [(w[half], a[half]) for half in (~second_half[rows], second_half[rows])]
        products = [one.T @ other for one, other in halves]
        r[0, columns] = products[0] + products[1]
        for i, (product, half) in enumerate(zip(products, halves, strict=True), 1):
            if (n := len(half[0])) > 2:
                means = [part.mean(0) for part in half]
                lengths = np.multiply.outer(*(_length(part) for part in half))
                r[i, columns] = (product - n * np.multiply.outer(*means)) / lengths
    return r


def _length(values: np.ndarray) -> np.ndarray:
    """Of columns that are centred elsewhere, less their own means; NaN where constant."""
    squares = (values**2).sum(0) - len(values) * values.mean(0) ** 2
    constant = squares <= 1e-14 * len(values) * np.abs(values).max(0) ** 2
    return np.sqrt(np.where(constant, np.nan, squares))


def within(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Columns ``(N, k)`` less the means of the group that each sample is of, ``(N,)``."""
    return less_means(values, np.unique(groups, return_inverse=True)[1])


def _means(values: np.ndarray, group: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Means of columns ``(N, k)`` over the samples of each group."""
    of_group = (np.ones(len(group)), (group, np.arange(len(group))))
    sums = sparse.csr_matrix(of_group, shape=(len(counts), len(group))) @ values
    return sums / np.maximum(counts, 1)[:, None]


def complete_columns(words: np.ndarray) -> Iterator[tuple[np.ndarray | slice, np.ndarray]]:
    """Columns that are known for the same samples: those rows, those columns."""
    known = np.isfinite(words)
    everywhere = known.all(0)
    if everywhere.any() and len(words) > 2:
        yield slice(None), np.flatnonzero(everywhere)
    alike: dict[bytes, list[int]] = {}
    for column in np.flatnonzero(~everywhere).tolist():
        alike.setdefault(np.packbits(known[:, column]).tobytes(), []).append(column)
    for columns in alike.values():
        rows = np.flatnonzero(known[:, columns[0]])
        if len(rows) > 2:
            yield rows, np.array(columns)


def standardised(values: np.ndarray, classes: np.ndarray | None) -> np.ndarray:
    """Columns less their means, or those of each class, at length 1; NaN where constant."""
    values = values.astype(np.float64)
    size = np.abs(values).max(0)
    centred = values - values.mean(0) if classes is None else within(values, classes)
    length = np.sqrt((centred**2).sum(0))
    # What rounding leaves of a constant column is no spread.
    constant = length <= 1e-7 * np.sqrt(len(values)) * size
    with np.errstate(invalid="ignore", divide="ignore"):
        return centred / np.where(constant, np.nan, length)


def less_means(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Columns less the means of groups 0, 1 and so on."""
    return values - _means(values, group, np.bincount(group))[group]
