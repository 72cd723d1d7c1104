"""``NeuronAdvantage``: wires the rooms to validations; no other room knows Lightning."""

from lightning_neurocorr.callback.neuron_advantage import NeuronAdvantage as NeuronAdvantage
