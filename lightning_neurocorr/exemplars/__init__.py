"""The strongest samples of every neuron, and class-matched samples to hold beside them.

Streaming, in memory of O(D K): ``N`` samples, ``D`` neurons, ``K`` kept, ``C`` classes. What is
kept does not depend on the order of the samples, nor on how they are split into batches or over
processes: equal activations are ordered by position.
"""

from lightning_neurocorr.exemplars.entries import UNKNOWN, Exemplar
from lightning_neurocorr.exemplars.matched import MatchedSamples, Reservoir
from lightning_neurocorr.exemplars.passing import PassingImages
from lightning_neurocorr.exemplars.strongest import Exemplars, Ranking

__all__ = [
    "UNKNOWN",
    "Exemplar",
    "Exemplars",
    "MatchedSamples",
    "PassingImages",
    "Ranking",
    "Reservoir",
]
