"""What is lost without some neurons: the *needed* column."""

from lightning_neurocorr.ablation.halves import AblationSamples as AblationSamples
from lightning_neurocorr.ablation.results import AblatedNeuron as AblatedNeuron
from lightning_neurocorr.ablation.results import Ablation as Ablation
from lightning_neurocorr.ablation.results import AblationPoint as AblationPoint
from lightning_neurocorr.ablation.results import AblationStudy as AblationStudy
from lightning_neurocorr.ablation.results import Effect as Effect
from lightning_neurocorr.ablation.silencing import silence as silence
from lightning_neurocorr.ablation.study import study as study
