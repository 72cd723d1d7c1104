"""Run the module again on samples of a validation: what it gets, and what it has to answer."""

from lightning_neurocorr.validation.rerun.arguments import Arguments as Arguments
from lightning_neurocorr.validation.rerun.arguments import alike as alike
from lightning_neurocorr.validation.rerun.arguments import join as join
from lightning_neurocorr.validation.rerun.arguments import share_whole as share_whole
from lightning_neurocorr.validation.rerun.arguments import take as take
from lightning_neurocorr.validation.rerun.judged import JudgedLogits as JudgedLogits
from lightning_neurocorr.validation.rerun.judged import answers_of as answers_of
from lightning_neurocorr.validation.rerun.judged import learn as learn
from lightning_neurocorr.validation.rerun.judged import too_many as too_many
from lightning_neurocorr.validation.rerun.learnt import Learnt as Learnt
from lightning_neurocorr.validation.rerun.learnt import Trial as Trial
from lightning_neurocorr.validation.rerun.module import WEIGHED as WEIGHED
from lightning_neurocorr.validation.rerun.module import Rerun as Rerun
