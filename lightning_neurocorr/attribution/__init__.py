"""How much the model's answer rests on each neuron where it wins: the *used* column.

The contribution of neuron j on sample i is k_ij = sum over positions of (a_ij - mean a_j) times
d(logit[truth] - logit[rival]) / d a_ij; the rival is the baseline's answer, and on a sample that
both get right the answer on a matched sample of the same class. This is activation
times gradient (Olah et al. 2018, "The Building Blocks of Interpretability") of the margin by which
the model beats its baseline.
"""

from lightning_neurocorr.attribution.columns import AttributionColumns as AttributionColumns
from lightning_neurocorr.attribution.gradients import attribute as attribute
from lightning_neurocorr.attribution.memory import graph_bytes as graph_bytes
from lightning_neurocorr.attribution.sampling import SampleChoice as SampleChoice
from lightning_neurocorr.attribution.sampling import balanced as balanced
from lightning_neurocorr.attribution.sampling import choose_samples as choose_samples
from lightning_neurocorr.attribution.sampling import match_by_class as match_by_class
from lightning_neurocorr.attribution.settings import Attribution as Attribution
from lightning_neurocorr.attribution.sums import AttributionSums as AttributionSums
