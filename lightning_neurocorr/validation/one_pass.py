"""A pass over the samples of one validation, and their merging into a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr import functional as F
from lightning_neurocorr.activations import Place
from lightning_neurocorr.attribution import Attribution, AttributionColumns
from lightning_neurocorr.exemplars import Ranking
from lightning_neurocorr.functional import Moments
from lightning_neurocorr.functional.scores import ScoreKind, check_kinds
from lightning_neurocorr.functional.stratified import CellMoments
from lightning_neurocorr.metric import BYTES_PER_CLASS
from lightning_neurocorr.report import NeuronReport, Outcomes
from lightning_neurocorr.report.layout import Layout
from lightning_neurocorr.validation.attributing import Attributing
from lightning_neurocorr.validation.batches import Batch, SampleTable
from lightning_neurocorr.validation.classes import ClassRows, pools, union
from lightning_neurocorr.validation.columns import attribution_columns, correlation_columns
from lightning_neurocorr.validation.position_means import PositionMeans
from lightning_neurocorr.validation.processes import gather_objects, gather_rows
from lightning_neurocorr.validation.remarks import (
    Control,
    alarms,
    check_labels,
    control_notes,
    message,
    repeated_ids,
)
from lightning_neurocorr.validation.rerun import Arguments, Rerun
from lightning_neurocorr.validation.watched import Watched

# Sums by class cost 128 bytes per class and neuron; where they would take more, classes are pooled.
CLASS_BUDGET_BYTES = 1 << 26
_FEWEST_POOLS = 2


class ValidationPass:
    """Accumulates one validation.

    Args:
        advantage: See :func:`~lightning_neurocorr.functional.compute_advantage`.
        num_classes: Number of classes, where it is known; else read from scores, or classes are
            counted as they come.
        class_budget: Bytes that sums by class may take over all layers.
        attribution: Settings of the *used* column; None is none.
        exemplars: How many of the strongest samples to keep per neuron; 0 is none.
        class_outcomes: Samples per class and outcome group of an earlier validation, ``(C, 4)``.
        total: Samples that all processes are going to see, where that is known.
        processes: How many there are.

    Attributes:
        provenance: In words, which tensors are compared; any room may add an entry.
    """

    def __init__(
        self,
        advantage: F.Advantage = "correctness",
        num_classes: int | None = None,
        class_budget: int = CLASS_BUDGET_BYTES,
        *,
        attribution: Attribution | None = None,
        exemplars: int = 0,
        class_outcomes: Tensor | None = None,
        total: int | None = None,
        processes: int = 1,
    ) -> None:
        self.advantage = advantage
        self.num_classes = num_classes
        self.class_budget = class_budget
        self.class_outcomes = class_outcomes
        self.sizes: dict[str, int] = {}
        self.problems: dict[str, str] = {}
        self.classifies: bool | None = None
        self.keep_exemplars = exemplars
        self._watched: dict[torch.device, Watched] = {}
        self._all: Watched | None = None
        self._attributing = Attributing(attribution, class_outcomes, total, processes)
        self.remarks: list[str] = []
        self.read_at: dict[str, str] = {}
        self._position_means = PositionMeans()
        self.alarms: tuple[str, ...] = ()
        self._rows: ClassRows | None = None
        self._classes: list[int] | None = []
        self.provenance: dict[str, str] = {}
        self._control: Control = "classes"
        self._disagreement = ""
        self._halves: list[Moments] = []
        self._cells: list[CellMoments] = []
        self._attributed: dict[str, AttributionColumns] = {}
        self._batches = 0
        self._scores: tuple[ScoreKind | None, ScoreKind | None] = (None, None)
        self._fired: dict[str, int] = {}
        self._samples: list[Tensor] = []

    def add(
        self,
        batch: Batch,
        activations: Mapping[str, Tensor],
        problems: Mapping[str, str],
        over_positions: Mapping[str, tuple[Tensor, int | Tensor]] | None = None,
    ) -> Tensor | None:
        """Add a batch; returns the outcome group of each kept sample, None where there is none.

        Args:
            batch: Predictions for ``N`` samples.
            activations: ``(N, D)`` by layer.
            problems: Why other layers have none.
            over_positions: Means over positions ``(N, D)`` and how many there are, by layer, as
                :class:`~lightning_neurocorr.activations.ActivationRecorder` keeps them; by default
                every neuron has one position.
        """
        rows, batch = batch.keep, batch.kept()
        for name, reason in problems.items():
            self.problems.setdefault(name, reason)
        self._batches += 1
        for name in activations:
            self._fired[name] = self._fired.get(name, 0) + 1
        if not len(batch.prediction):
            return None
        if self.classifies is None:
            self._begin(batch, activations)
        advantage = F.compute_advantage(
            self.advantage, batch.prediction, batch.baseline, batch.target, batch.scores
        )
        self._scores = batch.scores
        groups = self._groups(batch)
        # Once, and without waiting for the device, as every layer would.
        keys = batch.keys.to(advantage.device, non_blocking=True)
        numbers = keys
        if batch.numbers is not None:
            numbers = batch.numbers.to(advantage.device, non_blocking=True)
        kept = {
            name: activation if rows is None else activation[rows.to(activation.device)]
            for name, activation in activations.items()
            if self._fits(name, activation)
        }
        for name in kept:
            over = (activations[name], 1) if over_positions is None else over_positions.get(name)
            self._position_means.add(name, activations[name], over, rows)
        target = F.class_ids(batch.target) if groups is not None else None
        row = None if target is None or self._rows is None else self._rows(target)
        rest = {device: part.only(kept) for device, part in self._watched.items()}
        self._watched = {device: part for device, part in rest.items() if part is not None}
        for watched in self._watched.values():
            watched.add(kept, advantage, keys, groups, target, row, numbers)
        self._remember(batch, torch.stack([numbers, keys]), groups, advantage)
        return groups

    def _begin(self, batch: Batch, activations: Mapping[str, Tensor]) -> None:
        """Decide once for all batches: layers, groups, and how classes are controlled for."""
        self.classifies = not callable(self.advantage) or batch.has_classes(self.num_classes)
        if self.classifies:
            self._rows = self._class_rows(batch, activations)
        by_device: dict[torch.device, dict[str, int]] = {}
        for name, activation in activations.items():
            if not activation.shape[1]:
                self.problems.setdefault(name, "it has no neurons")
            if name not in self.problems:
                self.sizes[name] = activation.shape[1]
                by_device.setdefault(activation.device, {})[name] = activation.shape[1]
        self._watched = {device: self._watch(sizes, device) for device, sizes in by_device.items()}

    def _watch(self, sizes: Mapping[str, int], device: torch.device) -> Watched:
        rows = 0 if not self.classifies else 1 if self._rows is None else self._rows.room + 1
        return Watched(sizes, device, rows, self.keep_exemplars)

    def _class_rows(self, batch: Batch, activations: Mapping[str, Tensor]) -> ClassRows:
        """A row for each class, or for pools of classes where they are known not to fit."""
        if F.is_label_sets(batch.target):  # no one class to control for
            self.num_classes = None
            self._control = "sets"
            return ClassRows(0)
        for scores in (batch.prediction, batch.baseline):
            if scores.ndim == 2 and self.num_classes is None:
                self.num_classes = scores.shape[1]
        neurons = sum(activation.shape[1] for activation in activations.values())
        room = self.class_budget // (BYTES_PER_CLASS * max(neurons, 1))
        seen = self.class_outcomes
        if seen is not None and int((seen.sum(1) > 0).sum()) > room >= _FEWEST_POOLS:
            self._control = "pools"
            return ClassRows(room, pools=pools(seen, room))
        return ClassRows(min(room, self.num_classes or room), self.num_classes)

    def _groups(self, batch: Batch) -> Tensor | None:
        if not self.classifies:
            return None
        model = F.correctness(batch.prediction, batch.target)
        return F.outcome_groups(model, F.correctness(batch.baseline, batch.target))

    def _fits(self, name: str, activation: Tensor) -> bool:
        """Whether these activations are of a layer that was there from the first batch on."""
        size = self.sizes.get(name)
        if size is not None and activation.shape[1] != size:
            self.problems.setdefault(
                name,
                f"it gave {activation.shape[1]} neurons after {size}; "
                "pass `pooling` to bring every batch to the same (N, D)",
            )
        return size is not None and name not in self.problems

    def parts(self) -> Iterable[Watched]:
        """What is accumulated, by device, while batches come."""
        return self._watched.values()

    def latest(self) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers, outcome groups and targets of the batch that came last, ``(N,)`` each."""
        table = SampleTable(*self._samples[-1])
        return table.number, table.outcome, table.target

    def no_attribution(self, reason: str) -> None:
        """Say why there is no attribution in this validation."""
        self._attributing.refuse(reason)

    def keep(
        self,
        batch: Batch,
        groups: Tensor,
        rerun: Rerun,
        layers: Mapping[str, Place],
        arguments: Callable[[Tensor], Arguments],
    ) -> None:
        """Keep the samples of a batch that are attributed when the pass has ended, up to a cap.

        Args:
            batch: Kept samples, as added before.
            groups: Their outcome groups.
            rerun: Runs the model again.
            layers: Watched layers by name.
            arguments: From rows of the batch to the model's arguments.
        """
        self._attributing.add(batch, groups, rerun, layers, arguments)

    def _remember(
        self, batch: Batch, which: Tensor, groups: Tensor | None, advantage: Tensor
    ) -> None:
        device = advantage.device
        none = torch.full((len(advantage),), -1, device=device)
        known = groups is not None
        self._samples.append(
            torch.stack(
                [
                    which[0] if batch.located else none,
                    *which,
                    groups.to(device) if groups is not None else none,
                    F.class_ids(batch.target).to(device) if known else none,
                    F.class_ids(batch.baseline).to(device) if known else none,
                    (advantage != 0).long(),
                    F.class_ids(batch.prediction).to(device) if known else none,
                ]
            )
        )

    # --- the end of a pass; every process must come here ----------------------------------------

    def samples(self, device: torch.device) -> SampleTable:
        """The samples of all processes, on the CPU."""
        empty = torch.zeros(8, 0, dtype=torch.long, device=device)
        table = torch.cat([empty, *(part.to(device) for part in self._samples)], 1)
        return SampleTable(*gather_rows(table.T, device)[0].T)

    def agree(self, device: torch.device) -> None:
        """Bring all processes to the same layers: one that saw no sample still has to merge."""
        for name, fired in self._fired.items():
            if fired != self._batches:
                self.problems.setdefault(name, f"it fired on {fired} of {self._batches} batches")
        mine = {
            "sizes": self.sizes,
            "problems": self.problems,
            "classifies": self.classifies,
            "classes": [] if self._rows is None else self._rows.labels(),
            "control": self._control,
            "room": 0 if self._rows is None else self._rows.room,
            "num_classes": self.num_classes,
            "remarks": self.remarks,
            "read_at": self.read_at,
            "position_means": self._position_means.state(),
            "scores": self._scores,
            "provenance": self.provenance,
            **self._attributing.state(),
        }
        everyone = gather_objects(mine)
        check_kinds([other["scores"] for other in everyone])
        told = next((m for m in everyone if m["classifies"] is not None), mine)
        self.classifies, self.num_classes = told["classifies"], told["num_classes"]
        self._control = told["control"]
        self._classes = union(other["classes"] for other in everyone)
        if self._classes is not None and len(self._classes) > told["room"]:
            self._classes = None
        self.remarks = list(dict.fromkeys(said for other in everyone for said in other["remarks"]))
        self.provenance, self._disagreement = _agreed([other["provenance"] for other in everyone])
        for other in everyone:
            self._heed(other, told["sizes"])
        seen = [other["sizes"] for other in everyone if other["classifies"] is not None]
        for name in dict.fromkeys(name for sizes in seen for name in sizes):
            if not all(name in sizes for sizes in seen):
                self.problems.setdefault(name, "it fired in some of the processes only")
        self.sizes = {
            name: size for name, size in told["sizes"].items() if name not in self.problems
        }
        self._all = self._arranged(device) if self.sizes else None

    def _arranged(self, device: torch.device) -> Watched:
        """All layers of the report in its order, the same in every process."""
        parts, self._watched = list(self._watched.values()), {}
        if len(parts) == 1 and list(parts[0].sizes) == list(self.sizes):
            return parts[0]
        whole = self._watch(self.sizes, device)
        for part in parts:
            whole.take(part)
        return whole

    def _heed(self, other: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
        """What went wrong in another process counts here too."""
        self.problems = {**other["problems"], **self.problems}
        self._attributing.heed(other)
        self._position_means.heed(other["position_means"])
        for name, place in other["read_at"].items():
            if self.read_at.setdefault(name, place) != place:
                self.problems[name] = (
                    f"it is read at {self.read_at[name]} in one process and at {place} in another; "
                    'read it with at="raw"'
                )
        for name, size in other["sizes"].items():
            if sizes.get(name, size) != size:
                self.problems[name] = (
                    f"it gave {sizes[name]} neurons in one process and {size} in another; "
                    "pass `pooling` to bring every batch to the same (N, D)"
                )

    def report(self, samples: SampleTable, **fields: Any) -> NeuronReport:
        """Merge the moments of all processes into a report; ``agree`` comes first.

        Args:
            samples: What :meth:`samples` gave.
            fields: Further fields of the report: name, step, epoch, ...

        Raises:
            ValueError: If a label is no class, or processes read predictions from different places.
        """
        if self._disagreement:
            raise ValueError(self._disagreement)
        if self.classifies and self.num_classes is not None:
            check_labels(samples, self.num_classes)
        columns = self._columns(samples)
        self.alarms = alarms(self.problems, self._split(columns["mean"]) if columns else {})
        counts = samples.counts()
        outcomes = Outcomes(*counts, p_value=F.mcnemar_p(counts[1], counts[2]))
        why_empty = message(
            samples,
            outcomes,
            self.problems,
            recorded=bool(self.sizes),
            classifies=bool(self.classifies),
            custom=callable(self.advantage),
        )
        return NeuronReport(
            layers=tuple(self.sizes),
            sizes=tuple(self.sizes.values()),
            read_at=tuple(self.read_at.get(name, name) for name in self.sizes),
            columns=columns,
            outcomes=outcomes if self.classifies else Outcomes(),
            n=len(samples.position),
            message=why_empty,
            notes=(
                *self.alarms,
                *self.remarks,
                *repeated_ids(samples),
                *control_notes(self._cells, self._control),
                *self._attributing.notes(self.sizes),
            ),
            provenance=self.provenance,
            **fields,
        )

    def _columns(self, samples: SampleTable) -> dict[str, np.ndarray]:
        """The columns of all layers, one after the other."""
        if self._all is None:
            return {}
        total, self._halves = self._all.moments()
        self._cells = self._moments_by_class()
        columns = self._correlated(samples)(total, self._halves, cells=self._cells)
        means, device = self._split(columns["mean"]), self._all.metric.device
        means = self._position_means.compute(means, self._all.sums(), device)
        columns["mean_over_positions"] = np.concatenate([means[name] for name in self.sizes])
        if self.classifies:
            self._attributed = self._attributing.compute(means, device)
            found = {name: attribution_columns(part) for name, part in self._attributed.items()}
            columns |= _joined(found, self.sizes)
        return columns

    def _moments_by_class(self) -> list[CellMoments]:
        """Sums by class, outcome group and half over all processes; none without such groups."""
        cells = None if self._all is None else self._all.cells
        if cells is None:
            return []
        if self._classes is None:
            return cells.moments(None, by_class=False)
        mine = [] if self._rows is None else self._rows.labels() or []
        place = {label: row for row, label in enumerate(mine)}
        return cells.moments([place.get(label, -1) for label in self._classes], by_class=True)

    def halves(self, samples: SampleTable) -> list[dict[str, dict[str, np.ndarray]]]:
        """Columns by layer of each half of the samples, once there is a report.

        By one half neurons are chosen that are judged on the other.
        """
        if not self._halves:
            return [{}, {}]
        columns = self._correlated(samples)
        found: list[dict[str, dict[str, np.ndarray]]] = []
        for fold, moments in enumerate(self._halves):
            half: dict[str, dict[str, np.ndarray]] = {name: {} for name in self.sizes}
            cells = self._cells[fold : fold + 1]
            for column, values in columns(moments, self._halves, cells=cells).items():
                for name, part in self._split(values).items():
                    half[name][column] = part
            for name, attributed in self._attributed.items():
                half[name]["attribution"] = attributed.per_fold[fold]
            found.append(half)
        return found

    def _split(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Values of all neurons by layer."""
        return Layout.of(self.sizes).split(values)

    def _correlated(self, samples: SampleTable) -> Callable[..., dict[str, np.ndarray]]:
        active = float(samples.nonzero.double().mean()) if len(samples.position) else math.nan
        return partial(
            correlation_columns,
            advantage_active=active,
            sizes=list(self.sizes.values()),
        )

    def rankings(self) -> dict[str, Ranking]:
        """The strongest samples of every neuron over all processes, by layer."""
        return {} if self._all is None else self._all.rankings()


def _joined(
    parts: Mapping[str, Mapping[str, np.ndarray]], sizes: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Columns over all layers; NaN for a layer that lacks one."""
    names = dict.fromkeys(name for part in parts.values() for name in part)
    layout = Layout.of(sizes)
    return {
        name: layout.joined({layer: part[name] for layer, part in parts.items() if name in part})
        for name in names
    }


def _agreed(everyone: Sequence[Mapping[str, str]]) -> tuple[dict[str, str], str]:
    """Provenance over all processes, and what two of them read from different places."""
    provenance: dict[str, str] = {}
    disagreement = ""
    for found in everyone:
        for what, words in found.items():
            if provenance.setdefault(what, words) != words and what in ("prediction", "target"):
                disagreement = (
                    f"Expected the {what} to be in one place in all processes, but got "
                    f"{provenance[what]} in one and {words} in another. Say it with `predictions`, "
                    "`output`, `target` or `num_classes`."
                )
    return provenance, disagreement
