"""Sums of one validation, from which the *used* columns follow.

The mean of a neuron is known only when a validation has ended, so u = sum a g and v = sum g are
streamed, and k = u - mean v for any mean.

Shapes: ``n`` samples of one call, ``D`` neurons of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_neurocorr.activations import Place
from lightning_neurocorr.attribution.columns import AttributionColumns, columns
from lightning_neurocorr.attribution.gradients import attribute
from lightning_neurocorr.attribution.settings import Attribution
from lightning_neurocorr.attribution.strata import Strata


class AttributionSums:
    """Sums of one validation, from which every column follows for any mean of the neurons.

    Args:
        sizes: Neurons ``D`` by layer name; they fix the shapes, the same in every process.
        settings: See :class:`Attribution`.
        device: Where the sums live.
        seen: Samples per class and outcome group of an earlier validation, ``(C, 4)``.

    Attributes:
        problems: One-line reasons by name for the layers without columns.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        settings: Attribution | None = None,
        device: torch.device | str = "cpu",
        seen: Tensor | None = None,
    ) -> None:
        self.settings = settings or Attribution()
        self.problems: dict[str, str] = {}
        wide: dict[str, Any] = {"dtype": torch.float64, "device": device}
        # Rows u, v, u^2, uv, v^2; cells are group x fold, whose samples all layers share.
        self._sums = {name: torch.zeros(5, 4, size, **wide) for name, size in sizes.items()}
        self._counts = torch.zeros(4, **wide)
        self._strata = Strata(sizes, self.settings.class_bytes, device, seen)

    @property
    def strata(self) -> list[int] | None:
        """Classes (or pools of them) that samples came from; None where they were too many."""
        return self._strata.labels

    def update(
        self,
        forward: Callable[[], Tensor],
        layers: Mapping[str, Place],
        target: Tensor,
        rival: Tensor | None,
        group: Tensor,
        fold: Tensor,
    ) -> None:
        """Add samples, see :func:`attribute`.

        Args:
            forward: Runs the model on these ``n`` samples.
            layers: Watched layers by name; those without a size are left out.
            target: Class ids ``(n,)``.
            rival: The baseline's answers ``(n,)``, or None.
            group: 0 for ``only_model``, 1 for ``both``, ``(n,)``.
            fold: 0 or 1, ``(n,)``.
        """
        layers = {name: layers[name] for name in self._sums if name in layers}
        method, steps = self.settings.method, self.settings.path_steps
        found = attribute(forward, layers, target, rival, method=method, path_steps=steps)
        cells = nn.functional.one_hot((2 * group + fold).long().cpu(), 4).T.double()
        rows = self._strata.begin(target, group)
        for name, sums in self._sums.items():
            if name not in found:
                self._drop(
                    name,
                    "it lies outside the module named by `output`, or no gradient of the "
                    "prediction reaches it",
                )
                continue
            u, v = (values.to(sums.device) for values in found[name])
            if u.shape[1] != sums.shape[2]:
                self._drop(name, f"it has {u.shape[1]} neurons, not {sums.shape[2]} as before")
                continue
            where = cells.to(sums.device)
            for row, values in enumerate((u, v, u * u, u * v, v * v)):
                sums[row] += where @ values
            self._strata.add(name, rows, u, v)
        self._counts += cells.sum(1).to(self._counts.device)

    def tensors(self) -> list[Tensor]:
        """The live sums, to be added up in place over the processes after :meth:`restrict`."""
        return [self._counts, *self._sums.values(), *self._strata.tensors()]

    def restrict(self, names: Iterable[str], strata: Sequence[int] | None) -> None:
        """Keep these layers and lay out these strata, both in this order.

        With the same ones in every process, :meth:`tensors` have the same order and shapes.
        """
        self._sums = {name: self._sums[name] for name in names}
        self._strata.restrict(self._sums, strata)

    def compute(self, means: Mapping[str, Tensor | np.ndarray]) -> dict[str, AttributionColumns]:
        """The columns of the layers in ``means``: mean activation over all samples, ``(D,)``."""
        counts = self._counts.cpu().numpy().reshape(2, 2)
        return {
            name: columns(
                sums.cpu().numpy().reshape(5, 2, 2, -1),
                counts,
                np.asarray(means[name], np.float64),
                self._strata.compute(name),
            )
            for name, sums in self._sums.items()
            if name in means
        }

    def _drop(self, name: str, reason: str) -> None:
        """A layer missed once has no columns anywhere: NaN survives the sum over processes."""
        self.problems.setdefault(name, reason)
        self._sums[name].fill_(torch.nan)


def union(parts: Iterable[Sequence[int] | None]) -> list[int] | None:
    """The strata of all processes, in order; None where they do not go together."""
    found: set[int] = set()
    for part in parts:
        if part is None:
            return None
        found.update(part)
    mixed = bool(found) and min(found) < 0 <= max(found)  # pools here, classes there
    return None if mixed else sorted(found)
