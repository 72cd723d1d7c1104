"""Which neurons carry what a model knows and its baseline does not?

Public names are imported on first use, so that reading a report never loads torch or Lightning.
"""

from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lightning_neurocorr.ablation import Ablation as Ablation
    from lightning_neurocorr.ablation import silence as silence
    from lightning_neurocorr.activations import choose_layers as choose_layers
    from lightning_neurocorr.activations import find_sites as find_sites
    from lightning_neurocorr.activations import record as record
    from lightning_neurocorr.attribution import Attribution as Attribution
    from lightning_neurocorr.baselines import Baseline as Baseline
    from lightning_neurocorr.baselines import BatchBaseline as BatchBaseline
    from lightning_neurocorr.baselines import CachedBaseline as CachedBaseline
    from lightning_neurocorr.baselines import CheckpointBaseline as CheckpointBaseline
    from lightning_neurocorr.baselines import EstimatorBaseline as EstimatorBaseline
    from lightning_neurocorr.baselines import MajorityBaseline as MajorityBaseline
    from lightning_neurocorr.baselines import ModuleBaseline as ModuleBaseline
    from lightning_neurocorr.baselines import SnapshotBaseline as SnapshotBaseline
    from lightning_neurocorr.baselines import TableBaseline as TableBaseline
    from lightning_neurocorr.callback import NeuronAdvantage as NeuronAdvantage
    from lightning_neurocorr.comparison import compare as compare
    from lightning_neurocorr.exemplars import Exemplars as Exemplars
    from lightning_neurocorr.functional.placebo import Placebo as Placebo
    from lightning_neurocorr.functional.ranks import SecondPass as SecondPass
    from lightning_neurocorr.inspector import Inspector as Inspector
    from lightning_neurocorr.metric import NeuronAdvantageCorrelation as NeuronAdvantageCorrelation
    from lightning_neurocorr.report import HistoryEntry as HistoryEntry
    from lightning_neurocorr.report import NeuronReport as NeuronReport
    from lightning_neurocorr.report import NeuronRow as NeuronRow
    from lightning_neurocorr.report import Outcomes as Outcomes
    from lightning_neurocorr.report import PlaceboCounts as PlaceboCounts
    from lightning_neurocorr.studies.groups import Groups as Groups
    from lightning_neurocorr.studies.matches import Matches as Matches
    from lightning_neurocorr.studies.matches import Snapshot as Snapshot
    from lightning_neurocorr.studies.readout import Readout as Readout
    from lightning_neurocorr.studies.slices import Slices as Slices
    from lightning_neurocorr.studies.words import Words as Words
    from lightning_neurocorr.validation.metadata import ImageStatistics as ImageStatistics
    from lightning_neurocorr.validation.metadata import TextScorer as TextScorer
    from lightning_neurocorr.validation.metadata_table import TableMetadata as TableMetadata
    from lightning_neurocorr.validation.text_models import OpenClipScorer as OpenClipScorer
    from lightning_neurocorr.validation.text_models import TransformersScorer as TransformersScorer
    from lightning_neurocorr.visualization import FeatureVisualizer as FeatureVisualizer
    from lightning_neurocorr.visualization import ImagePrior as ImagePrior
    from lightning_neurocorr.visualization import LucentVisualizer as LucentVisualizer
else:
    _ROOM_OF = {
        "Ablation": "ablation",
        "Attribution": "attribution",
        "Baseline": "baselines",
        "BatchBaseline": "baselines",
        "CachedBaseline": "baselines",
        "CheckpointBaseline": "baselines",
        "EstimatorBaseline": "baselines",
        "Exemplars": "exemplars",
        "FeatureVisualizer": "visualization",
        "Groups": "studies.groups",
        "HistoryEntry": "report",
        "ImagePrior": "visualization",
        "Inspector": "inspector",
        "ImageStatistics": "validation.metadata",
        "LucentVisualizer": "visualization",
        "MajorityBaseline": "baselines",
        "Matches": "studies.matches",
        "ModuleBaseline": "baselines",
        "NeuronAdvantage": "callback",
        "NeuronAdvantageCorrelation": "metric",
        "NeuronReport": "report",
        "NeuronRow": "report",
        "OpenClipScorer": "validation.text_models",
        "Outcomes": "report",
        "PlaceboCounts": "report",
        "Placebo": "functional.placebo",
        "Readout": "studies.readout",
        "SecondPass": "functional.ranks",
        "Slices": "studies.slices",
        "Snapshot": "studies.matches",
        "SnapshotBaseline": "baselines",
        "TableBaseline": "baselines",
        "TableMetadata": "validation.metadata_table",
        "TextScorer": "validation.metadata",
        "TransformersScorer": "validation.text_models",
        "Words": "studies.words",
        "choose_layers": "activations",
        "compare": "comparison",
        "find_sites": "activations",
        "record": "activations",
        "silence": "ablation",
    }
    __all__ = ["__version__", *_ROOM_OF]  # noqa: PLE0604 -- the keys are strings

    def __getattr__(name):
        if name in _ROOM_OF:
            value = getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
            globals()[name] = value
            return value
        if find_spec(f"{__name__}.{name}"):
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():
        return sorted({*globals(), *_ROOM_OF, *(room.name for room in iter_modules(__path__))})
