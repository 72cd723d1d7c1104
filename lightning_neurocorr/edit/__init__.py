"""Switch off neurons that are active where only the baseline is right, and keep the weights.

Neurons are chosen on some samples and the edit is judged on others (after Hernandez et al. 2022,
MILAN). A neuron that is switched off says a constant, which becomes part of its own layer's
weights, exactly. So the edited model needs nothing of this package.

In all of this room a neuron is what its layer itself returns: in front of the normalisation and the
activation function that follow. Everywhere else that place is called ``at="raw"``. A report reads
its neurons behind both by default, and so does the *needed* study; no weight of the layer makes
most numbers there constant.
"""

from lightning_neurocorr.edit.choosing import choose_edit
from lightning_neurocorr.edit.judging import judge_edit
from lightning_neurocorr.edit.report import EditReport, EditTable
from lightning_neurocorr.edit.samples import EditSamples
from lightning_neurocorr.edit.weights import Units, Values, fold_into_weights, save_edited

__all__ = [
    "EditReport",
    "EditSamples",
    "EditTable",
    "Units",
    "Values",
    "choose_edit",
    "fold_into_weights",
    "judge_edit",
    "save_edited",
]
