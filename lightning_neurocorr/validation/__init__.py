"""One validation pass over any model: batches in, a frozen value out. Nothing here knows Lightning.

The way of a batch: activations ``(N, D)`` per layer, prediction, baseline prediction and target
``(N, ...)`` become an advantage ``(N,)``, which every layer's metric correlates with its neurons.
"""

from lightning_neurocorr.validation.batches import Batch, JudgedBatch, SampleTable
from lightning_neurocorr.validation.finished import (
    Validation,
    alarms_of,
    halves_of,
    report_of,
)
from lightning_neurocorr.validation.one_pass import ValidationPass
from lightning_neurocorr.validation.passing import PassingSamples

__all__ = [
    "Batch",
    "JudgedBatch",
    "PassingSamples",
    "SampleTable",
    "Validation",
    "ValidationPass",
    "alarms_of",
    "halves_of",
    "report_of",
]
