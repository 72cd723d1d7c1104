"""Which neurons to show first."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest

import numpy as np

from lightning_neurocorr.report import rules


def worth_showing(columns: Mapping[str, np.ndarray], k: int) -> tuple[list[int], dict[str, int]]:
    """Which ``k`` neurons to look at, and how many there are of each kind: see ``report.shown``.

    Args:
        columns: Arrays ``(D,)``; ``r`` and ``attribution`` have to be there.
        k: How many, at most.
    """
    kind, evidence = rules.standing(columns)
    *passed, other = (np.flatnonzero(kind == which) for which in range(len(rules.KINDS)))
    chosen = [int(i) for members in passed for i in largest_of(evidence, members, k)]
    # Neither score may hide the other: r misses knowledge that is spread over many neurons,
    # attribution misses detectors.
    scores = (evidence, columns["attribution"])
    turns = (largest_of(score, other[score[other] > 0], k).tolist() for score in scores)
    pairs = zip_longest(*turns)
    chosen = list(dict.fromkeys([*chosen, *(i for pair in pairs for i in pair if i is not None)]))
    counts = np.bincount(kind, minlength=len(rules.KINDS)).tolist()
    return chosen[:k], dict(zip(rules.KINDS, counts, strict=True))


def largest_of(values: np.ndarray, members: np.ndarray, k: int) -> np.ndarray:
    """Which ``k`` of the members have the largest values, in order; of equals the first."""
    keys = -values[members]
    keys[np.isnan(keys)] = np.inf
    if 0 < k < len(keys):  # sorting a million neurons for ten rows is the slow way
        near = np.flatnonzero(keys <= np.partition(keys, k - 1)[k - 1])
        members, keys = members[near], keys[near]
    return members[np.argsort(keys, kind="stable")[:k]]
