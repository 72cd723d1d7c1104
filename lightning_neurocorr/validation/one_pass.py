"""A pass over the samples of one validation: batches in, one frozen value out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_neurocorr import functional as F
from lightning_neurocorr.attribution import Attribution
from lightning_neurocorr.functional.scores import ScoreKind
from lightning_neurocorr.functional.stratified import CellMoments
from lightning_neurocorr.report.layout import Layout
from lightning_neurocorr.validation.agreeing import Account, Agreement, agree
from lightning_neurocorr.validation.attributing import NO_RIVAL, Attributed, Attributing, Source
from lightning_neurocorr.validation.batches import Batch, JudgedBatch, SampleTable, judge_batch
from lightning_neurocorr.validation.classes import CLASS_BUDGET_BYTES, ClassRows, class_rows
from lightning_neurocorr.validation.columns import mean_column
from lightning_neurocorr.validation.finished import NeuronSums, Validation
from lightning_neurocorr.validation.position_means import PositionMeans
from lightning_neurocorr.validation.processes import gather_objects, gather_rows
from lightning_neurocorr.validation.remarks import Control, check_classes
from lightning_neurocorr.validation.rounding import constant, largest, level, silent_layers
from lightning_neurocorr.validation.watched import Watched


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
        sparing: Attribution takes no more than a share of the samples.

    Attributes:
        provenance: In words, which tensors are compared; any room may add an entry.
        rounding: By how much each neuron may be off by rounding alone, ``(D,)`` by layer.
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
        sparing: bool = False,
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
        self.sparing = sparing
        self._attributing = Attributing(
            attribution, class_outcomes, total, processes, sparing=sparing
        )
        self.remarks: list[str] = []
        self.read_at: dict[str, str] = {}
        self.rounding: Mapping[str, Tensor | None] = {}
        self._position_means = PositionMeans()
        self._rows: ClassRows | None = None
        self.provenance: dict[str, str] = {}
        self._control: Control = "classes"
        self._begun = self._finished = False
        self._batches = 0
        self._scores: tuple[ScoreKind | None, ScoreKind | None] = (None, None)
        self._fired: Counter[str] = Counter()
        self._samples: list[Tensor] = []

    def judge(self, batch: Batch) -> JudgedBatch:
        """What there is to know of the samples of a batch; the first one decides about classes."""
        if self.classifies is None and len(batch.kept().prediction):
            self.classifies = not callable(self.advantage) or batch.has_classes(self.num_classes)
            if callable(self.advantage):
                kept = batch.kept()
                F.check_by_sample(self.advantage, kept.prediction, kept.baseline, kept.target)
        return judge_batch(batch, self.advantage, classifies=bool(self.classifies))

    def add(
        self,
        batch: Batch | JudgedBatch,
        activations: Mapping[str, Tensor],
        problems: Mapping[str, str],
        over_positions: Mapping[str, tuple[Tensor, int | Tensor]] | None = None,
        source: Source | None = None,
    ) -> None:
        """Add a batch.

        Args:
            batch: Predictions for ``N`` samples, judged by :meth:`judge` or not yet.
            activations: ``(N, D)`` by layer.
            problems: Why other layers have none.
            over_positions: Means over positions ``(N, D)`` and how many there are, by layer, as
                :class:`~lightning_neurocorr.activations.ActivationRecorder` keeps them; by default
                every neuron has one position.
            source: Runs samples again that are to be attributed; None attributes none.
        """
        if self._finished:
            raise RuntimeError("Expected a validation pass to go on, but no batch can follow.")
        judged = self.judge(batch) if isinstance(batch, Batch) else batch
        for name, reason in problems.items():
            self.problems.setdefault(name, reason)
        self._batches += 1
        self._fired.update(activations.keys())
        if not len(judged):
            return
        if not self._begun:
            self._begin(judged, activations)
        self._scores = judged.batch.scores
        self._add_activations(judged, activations, over_positions)
        self._samples.append(judged.table())
        if source is not None and judged.outcome is not None:
            self._attributing.add(judged, source)

    def _add_activations(
        self,
        judged: JudgedBatch,
        activations: Mapping[str, Tensor],
        over_positions: Mapping[str, tuple[Tensor, int | Tensor]] | None,
    ) -> None:
        """Add what neurons said of the samples that count."""
        keep = judged.keep
        kept = {
            name: activation if keep is None else activation[keep.to(activation.device)]
            for name, activation in self._fitting(activations).items()
        }
        for name in kept:
            over = (activations[name], 1) if over_positions is None else over_positions.get(name)
            self._position_means.add(name, activations[name], over, keep)
        row = None
        if judged.target is not None and self._rows is not None:
            row = self._rows(judged.target)
        rest = {device: part.only(kept) for device, part in self._watched.items()}
        self._watched = {device: part for device, part in rest.items() if part is not None}
        for watched in self._watched.values():
            watched.add(kept, judged, row)

    def _begin(self, judged: JudgedBatch, activations: Mapping[str, Tensor]) -> None:
        """Decide once for all batches: layers, and how classes are controlled for."""
        self._begun = True
        if self.classifies:
            self._rows = self._class_rows(judged.batch, activations)
        by_device: dict[torch.device, dict[str, int]] = {}
        for name, activation in activations.items():
            if not activation.shape[1]:
                self.problems.setdefault(name, "it has no neurons")
            if name not in self.problems:
                self.sizes[name] = activation.shape[1]
                by_device.setdefault(activation.device, {})[name] = activation.shape[1]
        self._watched = {
            device: self._watch(sizes, device, bool(self.classifies))
            for device, sizes in by_device.items()
        }

    def _watch(self, sizes: Mapping[str, int], device: torch.device, classifies: bool) -> Watched:
        rows = 0 if not classifies else 1 if self._rows is None else self._rows.room + 1
        return Watched(sizes, device, rows, self.keep_exemplars)

    def _class_rows(self, batch: Batch, activations: Mapping[str, Tensor]) -> ClassRows:
        """A row for each class, or for pools of classes where they are known not to fit."""
        if F.is_label_sets(batch.target):  # no one class to control for
            self.num_classes = None
            self._control = "sets"
            self._attributing.refuse(NO_RIVAL)
            return ClassRows(0)
        for scores in (batch.prediction, batch.baseline):
            if scores.ndim == 2 and self.num_classes is None:
                self.num_classes = scores.shape[1]
        neurons = sum(activation.shape[1] for activation in activations.values())
        rows = class_rows(self.num_classes, neurons, self.class_budget, self.class_outcomes)
        if rows.pooled:
            self._control = "pools"
        return rows

    def _fitting(self, activations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of layers that were there from the first batch on, as wide as they were then."""
        found = {}
        for name, activation in activations.items():
            size, width = self.sizes.get(name), activation.shape[1]
            if size is not None and width != size:
                self.problems.setdefault(
                    name,
                    f"it gave {width} neurons after {size}; "
                    "pass `pooling` to bring every batch to the same (N, D)",
                )
            if size is not None and name not in self.problems:
                found[name] = activation
        return found

    def parts(self) -> Iterable[Watched]:
        """What is accumulated, by device, while batches come."""
        return self._watched.values()

    def no_attribution(self, reason: str) -> None:
        """Say why there is no attribution in this validation."""
        self._attributing.refuse(reason)

    # --- the end of a pass; every process must come here ----------------------------------------

    def finish(self, device: torch.device) -> Validation:
        """What was found, over all processes, which all must call it, once: no batch can follow.

        The model must have the weights that were validated: attribution runs it again.

        Args:
            device: Where processes can exchange tensors.

        Raises:
            RuntimeError: If it has finished before.
            ValueError: If a label or a baseline's answer is no class, or processes read predictions
                from different places.
        """
        if self._finished:
            raise RuntimeError("Expected a validation pass to finish once, but it has finished.")
        self._finished = True
        everyone = gather_objects(self._account())
        agreed = agree(everyone)
        samples = self._all_samples(device)
        if agreed.classifies and agreed.control != "sets":
            check_classes(samples, agreed.num_classes, answers=not callable(self.advantage))
        watched = self._arranged(agreed, device) if agreed.sizes else None
        layout = Layout.of(agreed.sizes)
        neurons, attributed = self._neurons(watched, layout, everyone, agreed, device)
        return Validation(
            samples,
            layout,
            neurons,
            agreed.problems,
            agreed.read_at,
            classifies=agreed.classifies,
            num_classes=agreed.num_classes,
            custom=callable(self.advantage),
            control=agreed.control,
            class_outcomes=self.class_outcomes,
            remarks=agreed.remarks,
            provenance=agreed.provenance,
            attribution_notes=attributed.notes,
            attributed=attributed.taken,
            sparing=self.sparing,
        )

    def _account(self) -> Account:
        """What this process knows."""
        for name, fired in self._fired.items():
            if fired != self._batches:
                self.problems.setdefault(name, f"it fired on {fired} of {self._batches} batches")
        met = {} if self._rows is None else self._rows.met()
        return Account(
            sizes=self.sizes,
            problems=self.problems,
            classifies=self.classifies,
            num_classes=self.num_classes,
            classes=None if met is None else list(met),
            room=0 if self._rows is None else self._rows.room,
            control=self._control,
            scores=self._scores,
            positions=self._position_means.kinds(),
            read_at=self.read_at,
            remarks=self.remarks,
            provenance=self.provenance,
            attribution=self._attributing.readiness(),
        )

    def _all_samples(self, device: torch.device) -> SampleTable:
        """The samples of all processes, on the CPU."""
        empty = torch.zeros(8, 0, dtype=torch.long, device=device)
        table = torch.cat([empty, *(part.to(device) for part in self._samples)], 1)
        return SampleTable(*gather_rows(table.T, device)[0].T)

    def _arranged(self, agreed: Agreement, device: torch.device) -> Watched:
        """All layers of the report in its order, the same in every process."""
        parts, self._watched = list(self._watched.values()), {}
        if len(parts) == 1 and list(parts[0].sizes) == list(agreed.sizes):
            return parts[0]
        whole = self._watch(agreed.sizes, device, agreed.classifies)
        for part in parts:
            whole.take(part)
        return whole

    def _neurons(
        self,
        watched: Watched | None,
        layout: Layout,
        everyone: Sequence[Account],
        agreed: Agreement,
        device: torch.device,
    ) -> tuple[NeuronSums | None, Attributed]:
        """What is known of all neurons, and what of it is attribution."""
        ready = [one.attribution for one in everyone]
        if watched is None:
            return None, self._attributing.finish(ready, {}, device)
        total, halves = watched.moments()
        cells = self._cells(watched, agreed.classes)
        fixed = constant(total, largest(self.rounding, layout, device))
        silent = silent_layers(layout, total, fixed)
        if fixed.any():
            total, halves, cells = level(total, halves, cells, fixed)
        means = self._position_means.compute(
            layout.split(mean_column(total)),
            watched.sums(),
            watched.metric.device,
            [one.positions for one in everyone],
        )
        centres = means if agreed.classifies else {}
        attributed = self._attributing.finish(ready, centres, watched.metric.device)
        found = NeuronSums(
            total,
            tuple(halves),
            tuple(cells),
            layout.joined(means),
            attributed.columns,
            watched.rankings(),
            silent,
        )
        return found, attributed

    def _cells(self, watched: Watched, classes: Sequence[int] | None) -> list[CellMoments]:
        """Sums by class, outcome group and half over all processes; none without such groups."""
        if watched.cells is None:
            return []
        if classes is None:
            return watched.cells.moments(None, by_class=False)
        row = {} if self._rows is None else self._rows.met() or {}
        return watched.cells.moments([row.get(label, -1) for label in classes], by_class=True)
