"""The frozen result of one validation: a table of neurons, its outcomes, pictures and evidence.

Nothing here needs torch: TensorBoard's side and a notebook without a GPU read reports too.
Columns are NumPy arrays over all neurons, layer after layer; rows are made when they are asked for.
"""

from lightning_neurocorr.report.declared import Column
from lightning_neurocorr.report.finding import Figure, Finding
from lightning_neurocorr.report.finding_table import Table
from lightning_neurocorr.report.history import HistoryEntry
from lightning_neurocorr.report.images import to_rgb
from lightning_neurocorr.report.neuron import COLUMNS, SMALL_IS_STRONG, NeuronRow
from lightning_neurocorr.report.outcomes import Outcomes
from lightning_neurocorr.report.panels import Panel, Picture, Sample
from lightning_neurocorr.report.placebo import PlaceboCounts
from lightning_neurocorr.report.rows import Rows
from lightning_neurocorr.report.samples import Samples, Thumbnails
from lightning_neurocorr.report.storage import SCHEMA
from lightning_neurocorr.report.summary import LayerSummary, noise_ceiling
from lightning_neurocorr.report.table import NeuronReport
from lightning_neurocorr.report.top_list import TopList

__all__ = [
    "COLUMNS",
    "SCHEMA",
    "SMALL_IS_STRONG",
    "Column",
    "Figure",
    "Finding",
    "HistoryEntry",
    "LayerSummary",
    "NeuronReport",
    "NeuronRow",
    "Outcomes",
    "Panel",
    "Picture",
    "PlaceboCounts",
    "Rows",
    "Sample",
    "Samples",
    "Table",
    "Thumbnails",
    "TopList",
    "noise_ceiling",
    "to_rgb",
]
