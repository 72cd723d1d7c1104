"""The neuron microscope: a tab of TensorBoard, and the same page as one file. No torch here."""

from lightning_neurocorr.inspector.settings import Inspector as Inspector
