"""What a model loses without a group of neurons, and without random ones."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr.ablation import silence
from lightning_neurocorr.samples import fetch
from lightning_neurocorr.studies.look import Look
from lightning_neurocorr.validation.rerun import answers_of

_RANDOM = 5  # random groups of the same size


class Silencer:
    """Counts what the model loses on some of its wins without some neurons.

    Args:
        look: The validation that is over.
        rows: Rows of ``look.samples``: wins.
    """

    def __init__(self, look: Look, rows: Tensor) -> None:
        self._look = look
        self._target = look.samples.target[rows]
        positions = look.samples.position[rows].tolist()
        subject = look.subject
        self._chunks = [
            subject.arguments(subject.move(batch, which))
            for which, batch in fetch(subject.loaders, positions)
        ]

    def lost(self, layer: str = "", units: Sequence[int] | np.ndarray = ()) -> float:
        """The share of the wins that are lost when the units of a layer say their mean."""
        look = self._look
        answers = []
        with look.subject.quiet():
            for args, kwargs in self._chunks:
                with self._silenced(layer, units) if layer else nullcontext():
                    answers.append(answers_of(look.subject.forward(*args, **kwargs)).cpu())
        return float((torch.cat(answers) != self._target).double().mean())

    def _silenced(
        self, layer: str, units: Sequence[int] | np.ndarray
    ) -> AbstractContextManager[object]:
        place = {layer: self._look.subject.layers[layer]}
        mean = torch.from_numpy(of_layer(self._look, "mean_over_positions", layer)).float()
        chosen: Mapping[str, list[int]] = {layer: [int(unit) for unit in units]}
        return silence(place, chosen, values={layer: mean})


def random_groups(attribution: np.ndarray, size: int, seed: int) -> list[np.ndarray]:
    """Groups of as many random neurons of a layer, of those with a positive attribution.

    Where these are fewer than two groups, all are drawn from: else the random groups would be the
    group itself.

    Args:
        attribution: Of every neuron of the layer ``(D,)``.
        size: Neurons of a group.
        seed: Of the draw.
    """
    among = np.flatnonzero(attribution > 0)
    if len(among) < 2 * size:
        among = np.arange(len(attribution))
    draw = np.random.default_rng(seed)
    return [draw.choice(among, size, replace=False) for _ in range(_RANDOM)]


def of_layer(look: Look, column: str, layer: str) -> np.ndarray:
    """A column of the report for the neurons of one layer, ``(D,)``."""
    return look.report.column(column)[look.report.layout.slices[layer]]
