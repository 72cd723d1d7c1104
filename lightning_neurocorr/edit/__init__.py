"""Switch off neurons that go with what the baseline knows better, and keep the result as weights.

Neurons are chosen on some samples and the edit is judged on others (after Hernandez et al. 2022,
MILAN). A silenced neuron says a constant, which folds into the weights of its layer exactly, so the
edited model needs nothing of this package.

That holds for what a layer returns, in front of its activation function: here neurons are read and
silenced there, while a report and its ablation study read them behind it.
"""

from lightning_neurocorr.edit.choosing import choose_edit as choose_edit
from lightning_neurocorr.edit.judging import judge_edit as judge_edit
from lightning_neurocorr.edit.results import EditReport as EditReport
from lightning_neurocorr.edit.results import EditSamples as EditSamples
from lightning_neurocorr.edit.results import EditTable as EditTable
from lightning_neurocorr.edit.weights import fold_into_weights as fold_into_weights
from lightning_neurocorr.edit.weights import save_edited as save_edited
