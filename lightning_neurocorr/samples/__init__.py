"""Which samples a batch holds: their positions in the data set, and how many there are.

A position is known, not counted: the sampler is one whose order is known, and each batch has the
rows that were drawn for it. Everywhere else a sample has a number of its own, in the order seen.
"""

from lightning_neurocorr.samples.drawing import samples_drawn
from lightning_neurocorr.samples.fetching import fetch
from lightning_neurocorr.samples.ids import Id, number_ids, read_ids
from lightning_neurocorr.samples.loaded import LoadedBatch
from lightning_neurocorr.samples.loaders import LoaderPositions, check_loader
from lightning_neurocorr.samples.order import borrowed, collates_in_order, reordered
from lightning_neurocorr.samples.rows import check_rows, row_counts

__all__ = [
    "Id",
    "LoadedBatch",
    "LoaderPositions",
    "borrowed",
    "check_loader",
    "check_rows",
    "collates_in_order",
    "fetch",
    "number_ids",
    "read_ids",
    "reordered",
    "row_counts",
    "samples_drawn",
]
