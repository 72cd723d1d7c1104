"""Sums over the attributed samples of a validation, from which the *used* columns follow.

Shapes: ``n`` samples of one call, ``D`` neurons of a layer, ``G`` parts of the pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_neurocorr.activations import Place
from lightning_neurocorr.attribution.columns import AttributionColumns, columns
from lightning_neurocorr.attribution.gradients import attribute
from lightning_neurocorr.attribution.settings import Attribution


class AttributionSums:
    """Sums of contributions k = u - mean v, see :func:`attribute`, over the samples of a process.

    Per neuron, 40 bytes and 8 for each of ``G`` parts of the pairs.

    Args:
        centres: What an activation is compared with by layer name, its mean over all samples,
            ``(D,)``; they fix layers and shapes, the same in every process.
        pairs: How many pairs of samples all processes have.
        settings: See :class:`Attribution`.
        device: Where the sums live.

    Attributes:
        problems: One-line reasons by name for the layers without columns.
        parts: ``G``, in how many parts the pairs are summed; at most one pair each.
    """

    def __init__(
        self,
        centres: Mapping[str, Tensor | np.ndarray],
        pairs: int,
        settings: Attribution | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.settings = settings or Attribution()
        self.problems: dict[str, str] = {}
        wide: dict[str, Any] = {"dtype": torch.float64, "device": device}
        self._centres = {name: torch.as_tensor(c).to(**wide) for name, c in centres.items()}
        self.parts = min(self.settings.parts(sum(map(len, self._centres.values()))), pairs)
        self._counts = torch.zeros(2, **wide)  # `only_model` samples of each fold
        self._pairs = torch.zeros(1, **wide)
        # Rows k and k^2, by fold.
        self._moments = {n: torch.zeros(2, 2, len(c), **wide) for n, c in self._centres.items()}
        self._shared = {name: torch.zeros(len(c), **wide) for name, c in self._centres.items()}
        # The members of pairs: `only_model`, `both`.
        self._members = {
            name: torch.zeros(2, self.parts, len(centre), device=device)
            for name, centre in self._centres.items()
        }

    def update(
        self,
        forward: Callable[[], Tensor],
        layers: Mapping[str, Place],
        target: Tensor,
        rival: Tensor | None,
        group: Tensor,
        fold: Tensor,
        pair: Tensor,
        weight: Tensor | None = None,
    ) -> None:
        """Add samples, see :func:`attribute`.

        Args:
            forward: Runs the model on these ``n`` samples.
            layers: Watched layers by name; those without a centre are left out.
            target: Class ids ``(n,)``.
            rival: The class that speaks against the target, ``(n,)``, or None.
            group: 0 for ``only_model``, 1 for ``both``, ``(n,)``.
            fold: 0 or 1, ``(n,)``.
            pair: Number of the pair that a sample belongs to, -1 for none, ``(n,)``.
            weight: Of each sample of ``both``, see :func:`balanced`, ``(n,)``; None is 0.
        """
        layers = {name: layers[name] for name in self._centres if name in layers}
        method, steps = self.settings.method, self.settings.path_steps
        found = attribute(forward, layers, target, rival, method=method, path_steps=steps)
        group, fold, pair = group.long().cpu(), fold.long().cpu(), pair.long().cpu()
        wins = nn.functional.one_hot(fold, 2).T.double() * (group == 0)
        weight = torch.zeros(len(group)) if weight is None else weight.cpu() * (group == 1)
        paired = (pair >= 0).nonzero().flatten()
        member = group[paired] * self.parts + pair[paired] % max(self.parts, 1)
        for name, centre in self._centres.items():
            if name not in found:
                self._drop(
                    name,
                    "it lies outside the module named by `output`, or no gradient of the "
                    "prediction reaches it",
                )
                continue
            u, v = (values.to(centre.device) for values in found[name])
            if u.shape[1] != len(centre):
                self._drop(name, f"it has {u.shape[1]} neurons, not {len(centre)} as before")
                continue
            k, where = u - centre * v, wins.to(centre.device)
            self._moments[name] += torch.stack([where @ k, where @ (k * k)])
            self._shared[name] += weight.to(k) @ k
            sums = self._members[name].view(-1, len(centre))
            chosen = k[paired.to(k.device)].to(sums.dtype)
            sums.index_add_(0, member.to(sums.device), chosen)
        self._counts += wins.sum(1).to(self._counts.device)
        self._pairs += int(((pair >= 0) & (group == 0)).sum())

    def tensors(self) -> list[Tensor]:
        """The live sums, in the same order in every process: to be added up in place over them."""
        found = (self._moments, self._members, self._shared)
        return [self._counts, self._pairs, *(x for each in found for x in each.values())]

    def compute(self) -> dict[str, AttributionColumns]:
        """The columns of every layer."""
        counts, pairs = self._counts.cpu().numpy(), int(self._pairs)
        return {
            name: columns(
                moments.cpu().numpy(),
                counts,
                self._members[name].cpu().numpy(),
                pairs,
                self._shared[name].cpu().numpy(),
            )
            for name, moments in self._moments.items()
        }

    def _drop(self, name: str, reason: str) -> None:
        """A layer missed once has no columns anywhere: NaN survives the sum over processes."""
        self.problems.setdefault(name, reason)
        self._moments[name].fill_(torch.nan)
        self._members[name].fill_(torch.nan)
        self._shared[name].fill_(torch.nan)
