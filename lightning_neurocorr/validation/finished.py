"""A validation as a value: what a finished pass found, and the functions that read it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from lightning_neurocorr import functional as F
from lightning_neurocorr.attribution import AttributionColumns
from lightning_neurocorr.exemplars import Ranking
from lightning_neurocorr.functional import Moments
from lightning_neurocorr.functional.stratified import CellMoments
from lightning_neurocorr.report import NeuronReport, Outcomes
from lightning_neurocorr.report.layout import Layout
from lightning_neurocorr.report.written import counted
from lightning_neurocorr.validation.attributing import Taken
from lightning_neurocorr.validation.batches import SampleTable
from lightning_neurocorr.validation.columns import (
    attribution_columns,
    correlation_columns,
    mean_column,
)
from lightning_neurocorr.validation.remarks import (
    Control,
    alarms,
    control_notes,
    message,
    repeated_ids,
    silence,
)


@dataclass(frozen=True)
class NeuronSums:
    """What is known of ``D`` neurons, layer after layer, over the samples of all processes.

    Attributes:
        total: Moments over all samples.
        halves: Those of each half.
        cells: Sums by class, outcome group and half; empty without outcome groups.
        means: Mean over samples and positions, ``(D,)``; NaN where neurons are no units.
        attributed: The *used* column by layer.
        rankings: The strongest samples by layer; empty where none were kept.
        silent: Layers whose neurons say the same of every sample, up to rounding.
    """

    total: Moments
    halves: tuple[Moments, ...]
    cells: tuple[CellMoments, ...]
    means: np.ndarray
    attributed: Mapping[str, AttributionColumns]
    rankings: Mapping[str, Ranking]
    silent: tuple[str, ...] = ()


@dataclass(frozen=True)
class Validation:
    """One finished validation, the same in every process.

    Attributes:
        samples: Every sample.
        layout: Layers in the order of the report, and their neurons.
        neurons: What is known of them; None where no layer was recorded.
        problems: Why other layers are left out.
        read_at: Where layers are read.
        classifies: Whether right and wrong mean something here.
        num_classes: Number of classes, where it is known.
        custom: Whether the advantage is a function of the user's.
        control: How classes are controlled for.
        class_outcomes: Samples per class and outcome group that an earlier validation had,
            ``(C, 4)``.
        remarks: What a reader of the report must know.
        provenance: In words, which tensors are compared.
        attribution_notes: Why there is no attribution, of all layers or of some.
        attributed: How many samples attribution is from; None where there is none.
        sparing: Whether attribution took no more than a share of the samples.
    """

    samples: SampleTable
    layout: Layout
    neurons: NeuronSums | None
    problems: Mapping[str, str] = field(default_factory=dict)
    read_at: Mapping[str, str] = field(default_factory=dict)
    classifies: bool = False
    num_classes: int | None = None
    custom: bool = False
    control: Control = "classes"
    class_outcomes: Any = None
    remarks: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    attribution_notes: tuple[str, ...] = ()
    attributed: Taken | None = None
    sparing: bool = False

    @property
    def rankings(self) -> Mapping[str, Ranking]:
        """The strongest samples of every neuron, by layer."""
        return {} if self.neurons is None else self.neurons.rankings


def report_of(validation: Validation, /, **fields: Any) -> NeuronReport:
    """The report of a validation.

    Args:
        validation: The validation.
        fields: Further fields of the report: name, step, epoch, ...
    """
    samples, layout, neurons = validation.samples, validation.layout, validation.neurons
    counts = samples.counts()
    outcomes = Outcomes(*counts, p_value=F.mcnemar_p(counts[1], counts[2]))
    why_empty = message(
        samples,
        outcomes,
        validation.problems,
        recorded=bool(layout.layers),
        classifies=validation.classifies,
        custom=validation.custom,
    )
    read_at = tuple(validation.read_at.get(name, name) for name in layout.layers)
    return NeuronReport(
        layers=layout.layers,
        sizes=layout.sizes,
        read_at=read_at,
        columns={} if neurons is None else _columns(validation, neurons),
        outcomes=outcomes if validation.classifies else Outcomes(),
        n=len(samples.position),
        message=why_empty,
        notes=(
            *alarms_of(validation),
            *validation.remarks,
            *silence(() if neurons is None else neurons.silent),
            *repeated_ids(samples),
            *control_notes(() if neurons is None else neurons.cells, validation.control),
            *validation.attribution_notes,
        ),
        provenance={
            **validation.provenance,
            **_neurons_said(layout.layers, read_at),
            **_attributed_said(validation, outcomes),
        },
        **fields,
    )


def _neurons_said(layers: Sequence[str], read_at: Sequence[str]) -> dict[str, str]:
    """Which tensors the neurons are, in words."""
    raw = [name for name, place in zip(layers, read_at, strict=True) if place == name]
    behind, more = len(layers) - len(raw), f" and {len(raw) - 3} more" if len(raw) > 3 else ""
    said = [f"behind norm or activation function in {counted(behind, 'layer')}"] if behind else []
    said += [f"as returned by {', '.join(raw[:3])}{more}"] if raw else []
    return {"neurons": f"read {', '.join(said)}"} if layers else {}


def _attributed_said(validation: Validation, outcomes: Outcomes) -> dict[str, str]:
    """Of how many samples attribution is, in words."""
    if validation.attributed is None:
        return {}
    wins, paired, spared = validation.attributed
    said = f"{wins:,} of {outcomes.only_model:,} samples that only the model gets right"
    said += f", {paired:,} with a partner"
    if spared and wins < outcomes.only_model:
        said += " (few, as other validations follow; trainer.validate takes more)"
    return {"attribution": said}


def alarms_of(validation: Validation) -> tuple[str, ...]:
    """Layers that were left out, neurons that are not finite."""
    neurons = validation.neurons
    broken = np.zeros(0) if neurons is None else np.isnan(mean_column(neurons.total))
    return alarms(validation.problems, validation.layout.split(broken) if broken.any() else {})


def halves_of(validation: Validation) -> list[dict[str, dict[str, np.ndarray]]]:
    """Columns by layer of each half of the samples.

    By one half neurons are chosen that are judged on the other.
    """
    neurons, layout = validation.neurons, validation.layout
    if neurons is None:
        return [{}, {}]
    columns = partial(correlation_columns, **_shared(validation))
    found: list[dict[str, dict[str, np.ndarray]]] = []
    for fold, moments in enumerate(neurons.halves):
        half: dict[str, dict[str, np.ndarray]] = {name: {} for name in layout.layers}
        cells = neurons.cells[fold : fold + 1]
        for column, values in columns(moments, neurons.halves, cells=cells).items():
            for name, part in layout.split(values).items():
                half[name][column] = part
        for name, attributed in neurons.attributed.items():
            half[name]["attribution"] = attributed.per_fold[fold]
        found.append(half)
    return found


def _columns(validation: Validation, neurons: NeuronSums) -> dict[str, np.ndarray]:
    """The columns of all layers, one after the other."""
    columns = correlation_columns(
        neurons.total, neurons.halves, cells=neurons.cells, **_shared(validation)
    )
    columns["mean_over_positions"] = neurons.means
    return columns | attribution_columns(neurons.attributed, validation.layout)


def _shared(validation: Validation) -> dict[str, Any]:
    """What columns of all samples and of each half depend on alike."""
    samples = validation.samples
    active = float(samples.nonzero.double().mean()) if len(samples.position) else math.nan
    return {"advantage_active": active, "sizes": validation.layout.sizes}
