"""Pearson's r of every neuron with the advantage, streamed over batches and processes.

Moments are shifted and one-pass: each batch is reduced around a provisional mean, then merged in
float64. That keeps r exact to 1e-6 where means are a million times the spread, where a neuron fires
five times in 20,000 samples, and in half precision (Chan, Golub & LeVeque 1983, "Algorithms for
computing the sample variance").
"""

from lightning_neurocorr.metric.cells import BYTES_PER_CLASS, Cells
from lightning_neurocorr.metric.correlation import NeuronAdvantageCorrelation

__all__ = ["BYTES_PER_CLASS", "Cells", "NeuronAdvantageCorrelation"]
