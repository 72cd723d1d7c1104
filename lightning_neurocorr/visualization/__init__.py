"""Pictures of what drives a neuron, optimised under a prior fitted to the data."""

from lightning_neurocorr.visualization.lucent import LucentVisualizer as LucentVisualizer
from lightning_neurocorr.visualization.prior import ImagePrior as ImagePrior
from lightning_neurocorr.visualization.render import FeatureVisualizer as FeatureVisualizer
from lightning_neurocorr.visualization.targets import Target as Target
from lightning_neurocorr.visualization.targets import Visualizer as Visualizer
