"""Choose layers, record what their neurons do, and pool space or tokens away.

Shapes: ``N`` samples, ``D`` neurons of one layer. A *neuron* is one unit of a layer: an output
channel of a convolution, an output feature of a linear layer.
"""

from lightning_neurocorr.activations.axes import batch_axis, told_unit_axis, unit_axis
from lightning_neurocorr.activations.choosing import Layers, choose_layers, layer_names
from lightning_neurocorr.activations.finding import SiteFinder, find_sites
from lightning_neurocorr.activations.first_look import SiteRecorder, SitesFound, record
from lightning_neurocorr.activations.judging import Comparison, Judging, SetsMet
from lightning_neurocorr.activations.outputs import Call, OutputRecorder, output_module
from lightning_neurocorr.activations.padding import PaddedEnds
from lightning_neurocorr.activations.pooling import (
    Pooling,
    check_pooling,
    first_tensor,
    owners,
    packed_in,
    pool,
)
from lightning_neurocorr.activations.reading import At, UnitAxis, check_reading
from lightning_neurocorr.activations.recording import ActivationRecorder
from lightning_neurocorr.activations.sequences import is_sequence_first
from lightning_neurocorr.activations.sites import Place, Site, carrier, layer_of, listen
from lightning_neurocorr.activations.token_calls import TOKEN_MASK, TokenMasks, mask_of
from lightning_neurocorr.activations.tokens import read_token_mask
from lightning_neurocorr.activations.units import unit_lists
from lightning_neurocorr.isolation.asides import aside
from lightning_neurocorr.isolation.compilation import eager

__all__ = [
    "TOKEN_MASK",
    "ActivationRecorder",
    "At",
    "Call",
    "Comparison",
    "Judging",
    "Layers",
    "OutputRecorder",
    "PaddedEnds",
    "Place",
    "Pooling",
    "SetsMet",
    "Site",
    "SiteFinder",
    "SiteRecorder",
    "SitesFound",
    "TokenMasks",
    "UnitAxis",
    "aside",
    "batch_axis",
    "carrier",
    "check_pooling",
    "check_reading",
    "choose_layers",
    "eager",
    "find_sites",
    "first_tensor",
    "is_sequence_first",
    "layer_names",
    "layer_of",
    "listen",
    "mask_of",
    "output_module",
    "owners",
    "packed_in",
    "pool",
    "read_token_mask",
    "record",
    "told_unit_axis",
    "unit_axis",
    "unit_lists",
]
