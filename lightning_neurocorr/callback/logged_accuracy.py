"""Whether the accuracy that the model logs is that of the report."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from lightning_neurocorr import functional as F
from lightning_neurocorr.callback.memory import Memory
from lightning_neurocorr.callback.wiring import is_fitting

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

_CLOSE = 0.01  # batches of several sizes, averaged by hand
_OF_IT = re.compile(r"acc(uracy)?($|[^a-z])")
_OF_OTHERS = re.compile(r"train|test|top.?\d|base|acc(uracy)?@?(5|10)$|@[2-9]")

OTHER = (
    "None of the accuracies that the model logs is that of the report: the model may judge other "
    "samples, labels or classes (a threshold of its own), or weigh a short batch like a full one."
)


def note_other_accuracy(trainer: Trainer, memory: Memory) -> None:
    """Add a note where the model logged accuracies of this validation, none of them the report's.

    A mean over classes is one, too. With several processes or loaders nothing is said.
    """
    report = memory.report
    if report is None or trainer.world_size > 1 or len(trainer.num_val_batches) > 1:
        return
    here = [report.outcomes.model_accuracy, _mean_over_classes(memory.class_outcomes)]
    logged = dict(_accuracies(trainer))
    if not logged or math.isnan(here[0]):
        return
    if any(abs(one - other) <= _CLOSE for one in logged.values() for other in here):
        return
    of_sets = report.advantage in F.LABEL_ADVANTAGES
    if of_sets and max(logged.values()) > here[0]:  # the share of labels, or their Jaccard index
        return
    if min(logged.values()) < here[0] < max(logged.values()):  # one for each class, say
        return
    words = ", ".join(f"{name} = {value:.3f}" for name, value in list(logged.items())[:3])
    memory.faults.say(f"NeuronAdvantage {memory.faults.name!r}: {OTHER}")
    note = f"{OTHER} It is {here[0]:.3f} here, and the model logged {words}."
    memory.report = replace(report, notes=(*report.notes, note))


def _accuracies(trainer: Trainer) -> Iterator[tuple[str, float]]:
    """What is called an accuracy, as a share; in a fit only where it says it is of a validation."""
    fitting = is_fitting(trainer)
    for name, value in trainer.callback_metrics.items():
        words = name.lower()
        ours = "/accuracy/model" in words or "/accuracy/baseline" in words
        if ours or not _OF_IT.search(words) or _OF_OTHERS.search(words):
            continue
        if fitting and "val" not in words and "dev" not in words:
            continue
        number = float(value)
        yield name, number / 100 if 1 < number <= 100 else number


def _mean_over_classes(outcomes: torch.Tensor | None) -> float:
    """Accuracy averaged over the classes that there are; NaN where they are not known."""
    if outcomes is None:
        return float("nan")
    of_class = outcomes[outcomes.sum(1) > 0].double()
    return float((of_class[:, :2].sum(1) / of_class.sum(1)).mean())
