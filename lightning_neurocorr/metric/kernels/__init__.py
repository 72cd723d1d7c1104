"""The sums of a batch on a GPU, as Triton kernels. Only :mod:`on_device` imports this folder.

:func:`add_whole` does all of it where there is one fold and no covariate. Else :func:`prepare` puts
the samples of each fold one behind the other. :func:`add_in` then reads every activation once and
brings the sums into the state. :func:`add_up` and :func:`merge` do so in two steps, where there are
covariates, several tensors, or few neurons of many samples.
:func:`sort_cells` and :func:`add_cells` do the same for sums by class. Nothing is added atomically:
the same batches give the same bits. ``N`` samples, ``D`` neurons, ``F`` folds, ``K`` columns:
advantage, covariates.
"""

from lightning_neurocorr.metric.kernels.adding import add_in, add_up, add_whole
from lightning_neurocorr.metric.kernels.by_class import add_cells, sort_cells
from lightning_neurocorr.metric.kernels.merging import merge
from lightning_neurocorr.metric.kernels.preparing import prepare

__all__ = ["add_cells", "add_in", "add_up", "add_whole", "merge", "prepare", "sort_cells"]
