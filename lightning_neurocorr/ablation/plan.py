"""Which sets of neurons an ablation study silences: the top lists and their random controls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lightning_neurocorr.ablation.results import FEWEST_SAMPLES, Ablation

_TRIES = 10  # draws for each random set, before the layer is taken to have no more


class SilencedSet(NamedTuple):
    """Units of a layer, chosen on one half and therefore measured on the other."""

    layer: str
    fold: int
    units: tuple[int, ...]


class Extent(NamedTuple):
    """How far a study goes, decided before the first forward.

    Attributes:
        layers: How many layers, the most telling first.
        samples: Samples per group, ``only_model`` and ``both``.
        forwards: Samples that go through the model with something silenced, at most.
    """

    layers: int
    samples: int
    forwards: int


def extent(settings: Ablation, layers: int) -> Extent:
    """What ``settings.max_forwards`` allows: fewer samples for every layer, then fewer layers.

    To stop where a bound on an effect decides would cost less, but what is reported would no longer
    be what it says: effects would be of those samples that happened to decide, and random sets too
    few to compare with. So the bound is on samples, which are told by their hashes alone.
    """
    each = 2 * settings.most_sets  # forwards of a layer for one sample per group
    wanted = min(settings.max_samples, settings.max_forwards // (each * max(layers, 1)))
    samples = max(wanted, min(settings.max_samples, FEWEST_SAMPLES))
    affordable = min(layers, settings.max_forwards // (each * samples))
    return Extent(affordable, samples, affordable * each * samples)


Pair = tuple[SilencedSet, ...]  # the same choice in the directions in which it is measured


class Plan:
    """Every set to silence, drawn before the first forward by a generator of our own.

    Attributes:
        curves: By layer and size: the top list, then the random sets.
        singles: By layer and unit: the neuron alone, then random neurons.
        sets: All of them once, layer by layer.
    """

    def __init__(
        self,
        ranking: Mapping[int, Mapping[str, Sequence[int]]],
        live: Mapping[str, np.ndarray],
        settings: Ablation,
    ) -> None:
        self.curves: dict[tuple[str, int], list[Pair]] = {}
        self.singles: dict[tuple[str, int], list[Pair]] = {}
        self.skipped: dict[str, str] = {}
        self._random = np.random.default_rng(settings.seed)
        self._settings = settings
        for layer, units in live.items():
            tops = [[int(unit) for unit in ranking[fold].get(layer, ())] for fold in (0, 1)]
            for size in settings.sizes:
                self._add_curve(layer, size, tops, units)
            if len(units) > 1:
                self._add_singles(layer, [top[: settings.singles] for top in tops], units)
            if not any(layer == planned for planned, _ in [*self.curves, *self.singles]):
                self.skipped[layer] = f"only {len(units)} of its neurons vary, or none is ranked"
        ordered = [*self.curves.items(), *self.singles.items()]
        ordered.sort(key=lambda item: list(live).index(item[0][0]))
        sets = (one for _, pairs in ordered for pair in pairs for one in pair)
        self.sets = list(dict.fromkeys(sets))

    def _add_curve(self, layer: str, size: int, tops: list[list[int]], live: np.ndarray) -> None:
        others = [np.setdiff1d(live, top[:size]) for top in tops]
        if min(map(len, tops)) < size or min(map(len, others)) < size:
            return
        top = tuple(SilencedSet(layer, f, _sorted(tops[f][:size])) for f in (0, 1))
        # A small layer has few sets, and p must not count one of them twice.
        controls: dict[Pair, None] = {}
        for _ in range(_TRIES * self._settings.random_sets):
            drawn = [self._random.choice(pool, size, replace=False) for pool in others]
            controls[tuple(SilencedSet(layer, f, _sorted(drawn[f])) for f in (0, 1))] = None
            if len(controls) == self._settings.random_sets:
                break
        self.curves[layer, size] = [top, *controls]

    def _add_singles(self, layer: str, tops: list[list[int]], live: np.ndarray) -> None:
        drawn = self._random.integers(len(live), size=(self._settings.random_sets, 2))
        for unit in dict.fromkeys(u for both in zip(*_padded(tops), strict=True) for u in both):
            if unit < 0:
                continue
            folds = [fold for fold in (0, 1) if unit in tops[fold]]
            pairs = [tuple(SilencedSet(layer, fold, (unit,)) for fold in folds)]
            for draw in drawn:
                # Drawing the neuron itself would be no control: take the next one.
                others = [live[(d + (live[d] == unit)) % len(live)] for d in draw]
                pairs.append(
                    tuple(SilencedSet(layer, fold, (int(others[fold]),)) for fold in folds)
                )
            self.singles[layer, unit] = pairs


def _sorted(units: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(int(unit) for unit in units))


def _padded(tops: list[list[int]]) -> list[list[int]]:
    """Both lists at the length of the longer one, filled up with -1."""
    longest = max(map(len, tops))
    return [top + [-1] * (longest - len(top)) for top in tops]
