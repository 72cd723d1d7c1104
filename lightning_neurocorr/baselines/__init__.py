"""What a model is compared with: anything that answers a batch with class ids or scores.

A function of the batch is a baseline. The classes here cover what people compare with most.
"""

from lightning_neurocorr.baselines.batch import (
    TARGET_NAMES,
    BatchBaseline,
    Field,
    check_field,
    default_inputs,
    default_target,
    read_field,
    read_target,
    target_field,
)
from lightning_neurocorr.baselines.cached import CachedBaseline
from lightning_neurocorr.baselines.estimators import Estimator, EstimatorBaseline
from lightning_neurocorr.baselines.majority import MajorityBaseline
from lightning_neurocorr.baselines.models import CheckpointBaseline, ModuleBaseline
from lightning_neurocorr.baselines.prediction import as_tensor, check_prediction
from lightning_neurocorr.baselines.protocols import (
    Baseline,
    Checkable,
    Fittable,
    Movable,
    Networked,
    Positional,
    Renewable,
    Snapshotting,
    Stateful,
    Watching,
    check_baseline,
)
from lightning_neurocorr.baselines.snapshot import SnapshotBaseline
from lightning_neurocorr.baselines.table import TableBaseline

__all__ = [
    "TARGET_NAMES",
    "Baseline",
    "BatchBaseline",
    "CachedBaseline",
    "Checkable",
    "CheckpointBaseline",
    "Estimator",
    "EstimatorBaseline",
    "Field",
    "Fittable",
    "MajorityBaseline",
    "ModuleBaseline",
    "Movable",
    "Networked",
    "Positional",
    "Renewable",
    "SnapshotBaseline",
    "Snapshotting",
    "Stateful",
    "TableBaseline",
    "Watching",
    "as_tensor",
    "check_baseline",
    "check_field",
    "check_prediction",
    "default_inputs",
    "default_target",
    "read_field",
    "read_target",
    "target_field",
]
