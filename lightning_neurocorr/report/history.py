"""What earlier validations found, small enough to keep for a whole run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from lightning_neurocorr.report.finding import Finding
from lightning_neurocorr.report.layout import Layout
from lightning_neurocorr.report.outcomes import GROUPS, Outcomes
from lightning_neurocorr.report.table import NeuronReport

# Beyond this many neurons an entry keeps r of the strongest only: 200 validations of a million
# neurons would fill 800 MB otherwise.
MAX_NEURONS = 1 << 17
KEPT = 1 << 12


@dataclass(frozen=True, eq=False)
class HistoryEntry:
    """One validation in the history of a run.

    Attributes:
        validation: Index of the validation, from 0.
        step: Training step it is logged at; unique.
        epoch: Training epoch.
        outcomes: Counts of the outcome groups.
        layers: Names of the layers.
        sizes: Number of neurons of each layer.
        index: Positions of the kept neurons in the report's columns; None where all are kept.
        r: r of the kept neurons, float32.
        top: Units with the largest r, per layer, strongest first.
        stability: Per layer, the share of the top list that the previous validation's list shares
            (Jaccard index); NaN for the first. Of a small layer, the better half is the list.
        studies: Of each study that was asked for its state, what it says in a sentence, and a few
            numbers, by name.
        n: Samples that r is of, also where nothing is right or wrong; 0 where that is not known.
    """

    validation: int
    step: int
    epoch: int
    outcomes: Outcomes
    layers: tuple[str, ...]
    sizes: tuple[int, ...]
    r: np.ndarray = field(repr=False)
    index: np.ndarray | None = field(default=None, repr=False)
    top: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    stability: Mapping[str, float] = field(default_factory=dict)
    studies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    n: int = 0

    @classmethod
    def from_report(
        cls, report: NeuronReport, previous: HistoryEntry | None = None, top_k: int = 16
    ) -> HistoryEntry:
        """The part of a report that history keeps."""
        r = report.column("r").astype(np.float32)
        index = None
        if len(r) > MAX_NEURONS:
            index = _strongest(r)
            if (
                previous is not None
                and previous.index is not None
                and previous.sizes == report.sizes
            ):
                known = previous.index[_strongest(previous.r)]  # so that curves go on
                index = np.union1d(index, known)
            r = r[index]
        parts = report.layout.split(report.column("r"))
        top = {name: _first_units(part, top_k) for name, part in parts.items()}
        return cls(
            validation=report.validation,
            step=report.step,
            epoch=report.epoch,
            outcomes=report.outcomes,
            layers=report.layers,
            sizes=report.sizes,
            r=r,
            index=index,
            top=top,
            studies=briefs(report.studies),
            n=report.n,
            stability={
                name: _stability(top[name], previous.top.get(name, ()) if previous else (), size)
                for name, size in zip(report.layers, report.sizes, strict=True)
            },
        )

    @cached_property
    def layout(self) -> Layout:
        """Where the neurons of each layer lie in the report's columns."""
        return Layout(self.layers, self.sizes)

    def r_of(self, layer: str, unit: int) -> float:
        """What r of a neuron was; NaN where its layer was not watched or it was not kept."""
        if layer not in self.layers:
            return math.nan
        span = self.layout.span(layer)
        at = span.start + unit
        if not span.start <= at < span.stop:
            return math.nan
        if self.index is None:
            return float(self.r[at])
        found = int(np.searchsorted(self.index, at))
        hit = found < len(self.index) and self.index[found] == at
        return float(self.r[found]) if hit else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Plain data and arrays, for a checkpoint."""
        return {
            **{k: getattr(self, k) for k in ("validation", "step", "epoch", "r", "index", "n")},
            "outcomes": dict(vars(self.outcomes)),
            "layers": list(self.layers),
            "sizes": list(self.sizes),
            "top": {name: list(units) for name, units in self.top.items()},
            "stability": dict(self.stability),
            "studies": {name: dict(brief) for name, brief in self.studies.items()},
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> HistoryEntry:
        """The reverse of :meth:`to_dict`."""
        return cls(
            **{k: state[k] for k in ("validation", "step", "epoch", "r", "index", "stability")},
            outcomes=Outcomes(**state["outcomes"]),
            layers=tuple(state["layers"]),
            sizes=tuple(state["sizes"]),
            top={name: tuple(units) for name, units in state["top"].items()},
            studies=state.get("studies", {}),  # checkpoints of before have none
            n=state.get("n", sum(state["outcomes"][name] for name in GROUPS)),
        )


def briefs(studies: Mapping[str, Finding]) -> dict[str, dict[str, Any]]:
    """What history keeps of findings that were asked for."""
    return {name: f.brief() for name, f in studies.items() if f.state != "not_asked"}


def _strongest(r: np.ndarray) -> np.ndarray:
    """Where the ``KEPT`` largest |r| are, in order of position."""
    strength = np.nan_to_num(np.abs(r), nan=-1.0)
    kept = min(KEPT, len(r))
    return np.sort(np.argpartition(strength, -kept)[-kept:])


def _first_units(r: np.ndarray, k: int) -> tuple[int, ...]:
    """The ``k`` units of a layer with the largest r, as ``report.top`` orders them."""
    known = np.flatnonzero(~np.isnan(r))
    if 0 < k < len(known):  # sorting a million neurons for a few is the slow way
        known = known[r[known] >= -np.partition(-r[known], k - 1)[k - 1]]
    return tuple(known[np.argsort(-r[known], kind="stable")[:k]].tolist())


def _stability(now: Sequence[int], before: Sequence[int], size: int) -> float:
    """Jaccard index of two top lists; a list of all neurons would always agree."""
    half = (size + 1) // 2
    return jaccard(now[:half], before[:half])


def jaccard(a: Sequence[int], b: Sequence[int]) -> float:
    """Size of the intersection over that of the union; NaN where either list is empty."""
    return len(set(a) & set(b)) / len(set(a) | set(b)) if a and b else math.nan


def trajectory(history: Sequence[HistoryEntry], layer: str, unit: int) -> np.ndarray:
    """Collect r of one neuron at every validation, ``(validations,)``."""
    return np.array([entry.r_of(layer, unit) for entry in history])


def with_history(report: NeuronReport, history: Sequence[HistoryEntry]) -> NeuronReport:
    """The report with what history says: when its neurons rose, and how stable ranks are.

    Args:
        report: The report of the last validation.
        history: All validations in order, that of the report last.

    Returns:
        The report with the columns ``risen_at`` and ``rank_before``, and the stability of each
        layer's top list. Of a model with more neurons than history keeps, only those that it keeps
        have values.

    Raises:
        ValueError: If the last entry of ``history`` is not that of the report.
    """
    if not history or (history[-1].layers, history[-1].sizes) != (report.layers, report.sizes):
        raise ValueError(
            "Expected `history` to end with the entry of `report`, but got "
            + (f"one with the layers {history[-1].layers}." if history else "an empty history.")
        )
    columns = {"risen_at": _risen_at(history), "rank_before": _rank_before(history)}
    return replace(
        report,
        columns={**report.columns, **columns},
        stability=dict(history[-1].stability),
    )


def _risen_at(history: Sequence[HistoryEntry]) -> np.ndarray:
    """The step from which on each neuron kept at least half of its last r, ``(neurons,)``.

    All neurons go back in time together until each has met its first validation below half.
    """
    last = history[-1]
    going = last.r > 0
    since = np.where(going, float(last.step), np.nan)
    for entry in reversed(history[:-1]):
        if not going.any():
            break
        r, unseen = _looked_up(entry, last)
        since[going & (unseen >= last.r / 2)] = np.nan
        going = going & (r >= last.r / 2)
        since[going] = entry.step
    return _spread(last, since)


def _rank_before(history: Sequence[HistoryEntry]) -> np.ndarray:
    """The place of each neuron in its layer by r at the validation before, ``(neurons,)``."""
    last = history[-1]
    if len(history) < 2:
        return last.layout.unknown()
    before = history[-2]
    ranks = np.full(len(before.r), np.nan)
    # Neurons that were not kept may stand above one that is weaker than those that were.
    known = before.r > _least_kept(before) if before.index is not None else ~np.isnan(before.r)
    ends = np.searchsorted(_positions(before), before.layout.ends)
    for start, stop in pairwise((0, *ends)):
        order = np.argsort(-before.r[start:stop], kind="stable")  # NaN comes last
        ranks[start + order] = np.arange(1, stop - start + 1)
    ranks[~known] = np.nan
    return _spread(last, _looked_up(replace(before, r=ranks), last)[0])


def _looked_up(entry: HistoryEntry, last: HistoryEntry) -> tuple[np.ndarray, np.ndarray]:
    """What ``entry`` knows of the neurons that ``last`` keeps, ``(kept,)`` each.

    Returns:
        r, NaN where unknown; and the largest |r| that a neuron which was not kept may have had,
        NaN where r is known or its layer was not watched.
    """
    wanted = _positions(last)
    watched = np.ones(len(wanted), dtype=bool)
    same = (entry.layers, entry.sizes) == (last.layers, last.sizes)
    if same and entry.index is None and last.index is None:
        return entry.r, np.full(len(wanted), np.nan)
    if not same:
        wanted, watched = _moved(entry, last, wanted)
    kept = _positions(entry)
    found = np.searchsorted(kept, wanted).clip(max=max(len(kept) - 1, 0))
    hit = watched & (kept[found] == wanted if len(kept) else False)
    r = np.full(len(wanted), np.nan)
    r[hit] = entry.r[found[hit]]
    return r, np.where(watched & ~hit, _least_kept(entry), np.nan)


def _moved(
    entry: HistoryEntry, last: HistoryEntry, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Positions in ``last`` as positions in ``entry``, and whether their layer is there."""
    layer, unit = last.layout.neurons(wanted)
    there = [entry.layout.slices.get(name, slice(0, 0)) for name in last.layers]
    moved = np.array([span.start for span in there])[layer] + unit
    return moved, moved < np.array([span.stop for span in there])[layer]


def _positions(entry: HistoryEntry) -> np.ndarray:
    """Where the kept neurons are in the report's columns, ``(kept,)``."""
    return np.arange(len(entry.r)) if entry.index is None else entry.index


def _least_kept(entry: HistoryEntry) -> float:
    """The |r| below which a neuron may be missing; NaN where none is."""
    if entry.index is None:
        return math.nan
    return float(np.abs(entry.r[_strongest(entry.r)]).min(initial=math.inf))


def _spread(entry: HistoryEntry, values: np.ndarray) -> np.ndarray:
    """Values of the kept neurons as a column of the report, NaN for others, ``(neurons,)``."""
    column = entry.layout.unknown()
    column[_positions(entry)] = values
    return column
