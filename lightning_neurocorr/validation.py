"""One validation pass over any model: batches in, a report out. Nothing here knows Lightning.

The way of a batch: activations ``(N, D)`` per layer, prediction, baseline prediction and target
``(N, ...)`` become an advantage ``(N,)``, which every layer's metric correlates with its neurons.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_neurocorr import functional as F
from lightning_neurocorr.attribution import Attribution, AttributionSums, choose_samples
from lightning_neurocorr.columns import GROUPS, attribution_columns, correlation_columns
from lightning_neurocorr.exemplars import Exemplars, Ranking
from lightning_neurocorr.metric import NeuronAdvantageCorrelation
from lightning_neurocorr.report import NeuronReport, Outcomes
from lightning_neurocorr.samples import folds, hashed

# Class indicators cost 8 bytes per class, neuron and fold; beyond this one covariate stands in.
CLASS_BUDGET_BYTES = 1 << 25

# With fewer samples that tell model and baseline apart, a list of neurons is reading tea leaves.
MIN_ADVANTAGE_SAMPLES = 10


@dataclass(frozen=True)
class SampleTable:
    """What is remembered of every sample of a validation: five integers, ``(N,)`` each.

    Attributes:
        position: Where the sample lies in the data set.
        outcome: Its outcome group, -1 where right and wrong mean nothing.
        target: Its class, -1 where there is none.
        answer: The baseline's class, -1 where there is none.
        nonzero: 1 where the advantage is not 0.
    """

    position: Tensor
    outcome: Tensor
    target: Tensor
    answer: Tensor
    nonzero: Tensor

    def counts(self) -> list[int]:
        """Samples per outcome group."""
        return torch.bincount(self.outcome[self.outcome >= 0], minlength=4).tolist()


@dataclass(frozen=True)
class Batch:
    """The predictions for one batch.

    Attributes:
        prediction: The model's class ids ``(N,)`` or scores ``(N, C)``, or anything per sample.
        baseline: The baseline's.
        target: The truth.
        positions: Dataset positions ``(N,)``.
        keep: Which samples count; None for all (padding of distributed samplers does not).
    """

    prediction: Tensor
    baseline: Tensor
    target: Tensor
    positions: Tensor
    keep: Tensor | None = None

    def kept(self) -> Batch:
        """Without padding."""
        if self.keep is None:
            return self
        rows = self.keep.to(self.prediction.device)
        return Batch(
            self.prediction[rows], self.baseline[rows], self.target[rows], self.positions[self.keep]
        )


class ValidationPass:
    """Accumulates one validation.

    Args:
        advantage: See :func:`~lightning_neurocorr.functional.compute_advantage`.
        num_classes: Number of classes, where predictions are class ids; else read from scores.
        class_advantage: Mean advantage per class of an earlier validation, ``(C,)``: the covariate
            that stands in for class indicators where those would not fit.
        class_budget: Bytes that class indicators may take over all layers.
        attribution: Settings of the *used* column; None is none.
        exemplars: How many of the strongest samples to keep per neuron; 0 is none.
        expected_only_model: ``only_model`` samples this process is likely to see.
        total: Samples this process is going to see, where that is known.
    """

    def __init__(
        self,
        advantage: F.Advantage = "correctness",
        num_classes: int | None = None,
        class_advantage: Tensor | None = None,
        class_budget: int = CLASS_BUDGET_BYTES,
        *,
        attribution: Attribution | None = None,
        exemplars: int = 0,
        expected_only_model: int | None = None,
        total: int | None = None,
    ) -> None:
        self.advantage = advantage
        self.num_classes = num_classes
        self.class_advantage = class_advantage
        self.class_budget = class_budget
        self.metrics: dict[str, NeuronAdvantageCorrelation] = {}
        self.problems: dict[str, str] = {}
        self.classifies: bool | None = None
        self.controls = 0
        self.attribution = attribution
        self.keep_exemplars = exemplars
        self.exemplars: dict[str, Exemplars] = {}
        self._expected, self._total = expected_only_model, total
        self._attributed: AttributionSums | None = None
        self._unattributed = ""
        self._no_layer_attribution: dict[str, str] = {}
        self._notes: list[str] = []
        self.alarms: tuple[str, ...] = ()
        self.halves: tuple[dict[str, dict[str, np.ndarray]], ...] = ({}, {})
        self._batches = 0
        self._fired: dict[str, int] = {}
        self._samples: list[Tensor] = []

    def add(
        self, batch: Batch, activations: Mapping[str, Tensor], problems: Mapping[str, str]
    ) -> Tensor | None:
        """Add a batch; returns the outcome group of each kept sample, None where there is none.

        Args:
            batch: Predictions for ``N`` samples.
            activations: ``(N, D)`` by layer.
            problems: Why other layers have none.
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
            self.advantage, batch.prediction, batch.baseline, batch.target
        )
        groups = self._groups(batch)
        covariates = self._covariates(groups, batch)
        fold = folds(batch.positions)
        for name, activation in activations.items():
            kept = activation if rows is None else activation[rows.to(activation.device)]
            if not self._update(name, kept, advantage, covariates, fold):
                continue
            if self.keep_exemplars:
                target = F.class_ids(batch.target) if groups is not None else None
                self._ranked(name, kept).update(kept, batch.positions, groups, target)
        self._remember(batch, groups, advantage)
        return groups

    def _begin(self, batch: Batch, activations: Mapping[str, Tensor]) -> None:
        """Decide once for all batches: groups or none, and how classes are controlled for."""
        self.classifies = not callable(self.advantage) or _are_labels(batch)
        if not self.classifies:
            return
        for scores in (batch.prediction, batch.baseline):
            if scores.ndim == 2 and self.num_classes is None:
                self.num_classes = scores.shape[1]
        if self.num_classes is None:
            return
        neurons = sum(activation.shape[1] for activation in activations.values())
        if 2 * 8 * self.num_classes * neurons <= self.class_budget:
            self.controls = max(2, self.num_classes)
        elif self.class_advantage is not None:
            self.controls = 1

    def _groups(self, batch: Batch) -> Tensor | None:
        if not self.classifies:
            return None
        model = F.correctness(batch.prediction, batch.target)
        return F.outcome_groups(model, F.correctness(batch.baseline, batch.target))

    def _covariates(self, groups: Tensor | None, batch: Batch) -> Tensor | None:
        """Columns next to the advantage: outcome groups, then classes, ``(N, 3 + controls)``."""
        if groups is None:
            return None
        columns = [groups[:, None] == torch.arange(len(GROUPS), device=groups.device)]
        target = F.class_ids(batch.target)
        if self.controls == 1 and self.class_advantage is not None:
            mean = self.class_advantage.to(target.device)
            columns.append(mean[target.clamp(0, len(mean) - 1)][:, None])
        elif self.controls:
            columns.append(target[:, None] == torch.arange(self.controls, device=target.device))
        return torch.cat([column.double() for column in columns], 1)

    def _update(
        self,
        name: str,
        activation: Tensor,
        advantage: Tensor,
        covariates: Tensor | None,
        fold: Tensor,
    ) -> bool:
        if not activation.shape[1]:
            self.problems.setdefault(name, "it has no neurons")
        if name in self.problems:
            return False
        metric = self.metrics.get(name)
        if metric is None:
            metric = self.metrics[name] = self._metric(activation.shape[1], activation.device)
        if activation.shape[1] != metric.num_neurons:
            self.problems[name] = (
                f"it gave {activation.shape[1]} neurons after {metric.num_neurons}; "
                "pass `pooling` to bring every batch to the same (N, D)"
            )
            return False
        metric.update(activation, advantage, covariates, fold)
        return True

    def _ranked(self, name: str, activation: Tensor) -> Exemplars:
        if name not in self.exemplars:
            ranked = Exemplars(activation.shape[1], k=self.keep_exemplars)
            self.exemplars[name] = ranked.to(activation.device)
        return self.exemplars[name]

    def no_attribution(self, reason: str) -> None:
        """Say why there is no attribution in this validation."""
        self._unattributed = self._unattributed or reason

    def attribute(
        self,
        batch: Batch,
        groups: Tensor,
        run: Callable[[Tensor], Callable[[], Tensor]],
        layers: Mapping[str, nn.Module],
    ) -> None:
        """Attribute the samples of a batch that tell model and baseline apart, up to the cap.

        Args:
            batch: Kept samples, as added before.
            groups: Their outcome groups.
            run: From rows of the batch to a closure that runs the model on them.
            layers: Watched layers by name.
        """
        if self.attribution is None or self._unattributed:
            return
        sums = self._sums(groups.device)
        draw = hashed(batch.positions, seed=1).double() / 2**63
        rate = self.attribution.keep_rate(self._expected, self._total)
        target = F.class_ids(batch.target)
        rows, group = choose_samples(target, groups, draw, rate, sums.room)
        rival, fold = F.class_ids(batch.baseline), folds(batch.positions)
        watched = {name: layers[name] for name in self.metrics if name not in self.problems}
        for part in range(0, len(rows), self.attribution.samples_per_pass):
            chunk = slice(part, part + self.attribution.samples_per_pass)
            at = rows[chunk]
            here = at.to(target.device)
            sums.update(run(at), watched, target[here], rival[here], group[chunk], fold[at])

    def _sums(self, device: torch.device) -> AttributionSums:
        if self._attributed is None:
            sizes = {name: metric.num_neurons for name, metric in self.metrics.items()}
            self._attributed = AttributionSums(sizes, self.attribution, device, self._total)
        return self._attributed

    def _metric(self, neurons: int, device: torch.device) -> NeuronAdvantageCorrelation:
        covariates = len(GROUPS) + self.controls if self.classifies else 0
        metric = NeuronAdvantageCorrelation(
            neurons, num_covariates=covariates, folds=2, count_active=True
        )
        return metric.to(device)

    def _remember(self, batch: Batch, groups: Tensor | None, advantage: Tensor) -> None:
        device = advantage.device
        none = torch.full((len(advantage),), -1, device=device)
        known = groups is not None
        self._samples.append(
            torch.stack(
                [
                    batch.positions.to(device),
                    groups.to(device) if groups is not None else none,
                    F.class_ids(batch.target).to(device) if known else none,
                    F.class_ids(batch.baseline).to(device) if known else none,
                    (advantage != 0).long(),
                ]
            )
        )

    # --- the end of a pass; every process must come here ----------------------------------------

    def samples(self, device: torch.device) -> SampleTable:
        """The samples of all processes, on the CPU."""
        empty = torch.zeros(5, 0, dtype=torch.long, device=device)
        table = torch.cat([empty, *(part.to(device) for part in self._samples)], 1)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            table = torch.cat(gather_all_tensors(table), 1)
        return SampleTable(*table.cpu())

    def agree(self, device: torch.device) -> None:
        """Bring all processes to the same layers: one that saw no sample still has to merge."""
        for name, fired in self._fired.items():
            if fired != self._batches:
                self.problems.setdefault(name, f"it fired on {fired} of {self._batches} batches")
        mine = {
            "sizes": {name: metric.num_neurons for name, metric in self.metrics.items()},
            "problems": self.problems,
            "classifies": self.classifies,
            "controls": self.controls,
            "num_classes": self.num_classes,
            "unattributed": self._unattributed,
            "attribution_problems": self._attributed.problems if self._attributed else {},
        }
        everyone: list[Any] = _gather(mine)
        told = next((m for m in everyone if m["classifies"] is not None), mine)
        self.classifies, self.controls = told["classifies"], told["controls"]
        self.num_classes = told["num_classes"]
        for other in everyone:
            self._heed(other, told["sizes"])
        for name, size in told["sizes"].items():
            if name not in self.metrics:
                self.metrics[name] = self._metric(size, device)
        self.metrics = {
            name: self.metrics[name] for name in told["sizes"] if name not in self.problems
        }

    def _heed(self, other: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
        """What went wrong in another process counts here too."""
        self.problems = {**other["problems"], **self.problems}
        self._no_layer_attribution |= other["attribution_problems"]
        self.no_attribution(other["unattributed"])
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
            ValueError: If a label is no class.
        """
        self._check_labels(samples)
        active = float(samples.nonzero.double().mean()) if len(samples.position) else math.nan
        parts: dict[str, dict[str, np.ndarray]] = {}
        for name, metric in self.metrics.items():
            total, halves = metric.moments()
            grouped, controls = bool(self.classifies), self.controls
            parts[name] = correlation_columns(
                total, halves, active, grouped=grouped, controls=controls
            )
            for fold, half in enumerate(halves):
                self.halves[fold][name] = correlation_columns(
                    half, halves, active, grouped=grouped, controls=controls
                )
        self._add_attribution(parts)
        counts = samples.counts()
        outcomes = Outcomes(*counts, p_value=F.mcnemar_p(counts[1], counts[2]))
        left_out = (
            f"Layer {name} was left out: {why.rstrip('.')}." for name, why in self.problems.items()
        )
        self.alarms = (*left_out, *self._not_finite(parts))
        if self._unattributed:
            self._notes.append(f"No attribution: {self._unattributed}.")
        return NeuronReport(
            layers=tuple(self.metrics),
            sizes=tuple(metric.num_neurons for metric in self.metrics.values()),
            columns=_joined(parts),
            outcomes=outcomes if self.classifies else Outcomes(),
            n=len(samples.position),
            message=self._message(samples, outcomes),
            notes=(*self.alarms, *self._notes),
            **fields,
        )

    def rankings(self) -> dict[str, Ranking]:
        """The strongest samples of every neuron over all processes, by layer."""
        if not self.keep_exemplars:
            return {}
        for name, metric in self.metrics.items():
            if name not in self.exemplars:  # a process without samples still has to merge
                empty = Exemplars(metric.num_neurons, k=self.keep_exemplars)
                self.exemplars[name] = empty.to(metric.device)
        found = {}
        for name in self.metrics:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*before the ``update`` method.*")
                found[name] = self.exemplars[name].compute()
        return found

    def _add_attribution(self, parts: dict[str, dict[str, np.ndarray]]) -> None:
        """Sum the attributions of all processes and add their columns."""
        if self.attribution is None or not self.classifies or not self.metrics:
            return
        if self._unattributed:
            self._attributed = None  # samples of some processes only would be a biased choice
        sums = self._sums(next(iter(self.metrics.values())).device)
        sums.restrict(self.metrics)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for tensor in sums.tensors():
                torch.distributed.all_reduce(tensor)
        means = {name: part["mean"] for name, part in parts.items()}
        for name, found in sums.compute(means).items():
            parts[name] |= attribution_columns(found)
            for fold, half in enumerate(self.halves):
                half[name]["attribution"] = found.per_fold[fold]
        for name, why in self._no_layer_attribution.items():
            if name in self.metrics and not self._unattributed:
                self._notes.append(f"No attribution for layer {name}: {why}.")

    def _not_finite(self, parts: dict[str, dict[str, np.ndarray]]) -> tuple[str, ...]:
        broken = {name: int(np.isnan(part["mean"]).sum()) for name, part in parts.items()}
        return tuple(
            f"{count} neurons of layer {name} had activations that are not finite; "
            "they have no values."
            for name, count in broken.items()
            if count
        )

    def mean_by_class(self, samples: SampleTable) -> Tensor | None:
        """Mean advantage in correctness per class, ``(C,)``: the next validation's covariate."""
        if not self.classifies or self.num_classes is None:
            return None
        gain = (samples.outcome == F.ONLY_MODEL).double() - (
            samples.outcome == F.ONLY_BASELINE
        ).double()
        target = samples.target.clamp(0, self.num_classes - 1)
        total = torch.zeros(self.num_classes, dtype=torch.float64).index_add_(0, target, gain)
        return total / torch.bincount(target, minlength=self.num_classes).clamp_min(1)

    def _check_labels(self, samples: SampleTable) -> None:
        if not self.classifies or self.num_classes is None:
            return
        wrong = (samples.target < 0) | (samples.target >= self.num_classes)
        if bool(wrong.any()):
            raise ValueError(
                f"Expected targets to be class ids in [0, {self.num_classes}), but got "
                f"{int(samples.target[wrong][0])} for {int(wrong.sum())} samples. Leave these "
                "out of the validation set, or pass `predictions` and a callable `advantage`."
            )

    def _message(self, samples: SampleTable, outcomes: Outcomes) -> str:
        n, telling = len(samples.position), int(samples.nonzero.sum())
        if not n:
            return "No sample was validated."
        if not self.metrics:
            return "No layer was recorded: " + "; ".join(
                f"{k}: {v}" for k, v in self.problems.items()
            )
        if not telling:
            return (
                f"Model and baseline are right and wrong on the same {n} samples: "
                "there is no advantage to explain."
            )
        if self.classifies and telling < MIN_ADVANTAGE_SAMPLES:
            return (
                f"Model and baseline differ on {telling} of {n} samples only: too few to say which "
                f"neurons carry the difference (at least {MIN_ADVANTAGE_SAMPLES} are needed)."
            )
        if self.classifies and not outcomes.only_model and not callable(self.advantage):
            return (
                f"The model is never right where the baseline is wrong ({n} samples): "
                "there is no advantage to explain."
            )
        return ""


def _joined(parts: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Columns over all layers; NaN for a layer that lacks one."""
    names = dict.fromkeys(name for part in parts.values() for name in part)
    missing = {layer: np.full(len(part["r"]), np.nan) for layer, part in parts.items()}
    return {
        name: np.concatenate([part.get(name, missing[layer]) for layer, part in parts.items()])
        for name in names
    }


def _are_labels(batch: Batch) -> bool:
    """Whether a callable advantage works on class predictions, so that outcome groups exist."""

    def label(x: Tensor, scores: bool) -> bool:
        whole = not (x.is_floating_point() or x.is_complex())
        return (x.ndim == 1 and whole) or (scores and x.ndim == 2 and x.shape[1] > 1 and not whole)

    return (
        label(batch.prediction, True) and label(batch.baseline, True) and label(batch.target, False)
    )


def _gather(mine: Any) -> list[Any]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [mine]
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, mine)
    return everyone
