"""Neurons that only rounding moves say their mean: no study may read anything into the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr.functional.devices import sent
from lightning_neurocorr.report import NeuronReport


@dataclass(frozen=True)
class Levelled:
    """Puts the neurons that were constant in a validation at their mean.

    Attributes:
        constant: By layer, units of constant neurons and their means, ``(k,)`` each; only layers
            that have some.
    """

    constant: Mapping[str, tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, report: NeuronReport) -> Levelled:
        """As the report has them."""
        dead, mean = (report.layout.split(report.column(name)) for name in ("dead", "mean"))
        units = {name: np.flatnonzero(which) for name, which in dead.items()}
        return cls(
            {
                name: (torch.from_numpy(some), torch.from_numpy(mean[name][some]))
                for name, some in units.items()
                if len(some)
            }
        )

    def __call__(self, activations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Activations ``(n, D)`` by layer; of what has to change, a copy."""
        found = dict(activations)
        for name in found.keys() & self.constant.keys():
            part = found[name]
            units, mean = (sent(known, part.device) for known in self.constant[name])
            said = part[:, units]
            if bool((said != said[:1]).any()):  # else all of it is right as it is
                found[name] = part.index_copy(1, units, mean.to(part.dtype).expand(len(part), -1))
        return found


def level_by_rounding(
    activations: Mapping[str, Tensor], rounding: Mapping[str, Tensor | None]
) -> dict[str, Tensor]:
    """Activations ``(n, D)`` by layer, where neurons with no more spread than rounding are level.

    Args:
        activations: On the CPU, of all samples that count.
        rounding: By how much each neuron may be off by rounding alone, ``(D,)`` by layer.
    """
    found = dict(activations)
    for name, part in found.items():
        error = rounding.get(name)
        if error is None or error.shape != part.shape[1:]:
            continue
        spread, mean = torch.std_mean(part, 0, correction=0)
        constant = (spread > 0) & (spread <= error.to(spread))
        if constant.any():
            found[name] = torch.where(constant, mean, part)
    return found


def constant_of(report: NeuronReport, layers: Mapping[str, int]) -> np.ndarray:
    """Which neurons of some layers are constant in a report, one layer after the other.

    Args:
        report: The report.
        layers: How many neurons each has; of a layer that the report lacks none is known to be.
    """
    dead = report.layout.split(report.column("dead"))
    parts = [dead.get(name, np.zeros(size)) for name, size in layers.items()]
    return np.concatenate([np.zeros(0), *parts]).astype(bool)
