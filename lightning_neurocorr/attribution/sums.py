"""Sums over the attributed samples of a validation, from which the *used* columns follow.

Shapes: ``n`` samples of one call, ``D`` neurons of a layer, ``G`` parts of the pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_neurocorr.activations import Place
from lightning_neurocorr.attribution.columns import AttributionColumns, columns
from lightning_neurocorr.attribution.gradients import sums_near
from lightning_neurocorr.attribution.positions import Sums
from lightning_neurocorr.attribution.settings import Attribution
from lightning_neurocorr.functional.devices import sent, with_float64

_BLOCK = 1 << 23  # numbers that are added up at once, 64 MB


class AttributionSums:
    """Sums of contributions k = u - mean v, see :func:`attribute`, over the samples of a process.

    Per neuron, 40 bytes and 8 for each of ``G`` parts of the pairs.

    Args:
        centres: What an activation is compared with by layer name, its mean over all samples,
            ``(D,)``; they fix layers and shapes, the same in every process.
        pairs: How many pairs of samples all processes have.
        settings: See :class:`Attribution`.
        device: Where the sums live; on the CPU where it has no float64.

    Attributes:
        problems: One-line reasons by name for the layers without columns.
        neurons: How many the layers have.
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
        device = with_float64(device)
        wide: dict[str, Any] = {"dtype": torch.float64, "device": device}
        given = {name: torch.as_tensor(c, device="cpu") for name, c in centres.items()}
        self._spans = _spans(given)
        self.neurons = neurons = sum(map(len, given.values()))
        self.parts = min(self.settings.parts(neurons), pairs)
        # Of all layers one after another, so that a pass adds to few tensors and not to hundreds.
        centre = torch.cat([torch.zeros(0, device="cpu"), *given.values()]).to(**wide)
        near = centre.float()
        self._near = near.where(near.isfinite(), 0)
        # What a float32 near the mean is off by, and 0.
        self._beside, self._below = self._near - centre, -centre
        self._counts = torch.zeros(2, **wide)  # `only_model` samples of each fold
        self._pairs = torch.zeros(1, **wide)
        self._moments = torch.zeros(2, 2, neurons, **wide)  # rows k and k^2, by fold
        self._shared = torch.zeros(neurons, **wide)
        # The members of pairs: `only_model`, `both`.
        self._members = torch.zeros(2, self.parts, neurons, dtype=torch.float32, device=device)

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

        Raises:
            OutOfMemoryError: If the samples are too many to be differentiated at once; nothing has
                been added.
        """
        layers = {name: layers[name] for name in self._spans if name in layers}
        method, steps = self.settings.method, self.settings.path_steps
        near = {name: self._near[self._spans[name]] for name in layers}
        found = sums_near(near, forward, layers, target, rival, method=method, path_steps=steps)
        samples = _Weights(group, fold, pair, weight, self.parts)
        ready: list[tuple[str, Sums]] = []
        for name, span in self._spans.items():
            neurons = span.stop - span.start
            if name not in found:
                self._drop(
                    name,
                    "it lies outside the module named by `output`, or no gradient of the "
                    "prediction reaches it",
                )
            elif (width := found[name].product.shape[1]) != neurons:
                self._drop(name, f"it has {width} neurons, not {neurons} as before")
            else:
                ready.append((name, found.pop(name)))
        samples = samples.to(self._beside.device)
        try:
            for block in _blocks(ready, len(target)):
                self._add(block, samples)
        except torch.OutOfMemoryError as error:  # some layers may have been added
            raise RuntimeError("there is no room for the sums of a pass") from error
        self._counts += samples.wins.sum(1)
        self._pairs += samples.pairs

    def _add(self, layers: Sequence[tuple[str, Sums]], samples: _Weights) -> None:
        """Add some layers that lie side by side or not, in a handful of operations."""
        there = self._beside.device
        u = torch.cat([sent(sums.product, there) for _, sums in layers], 1)
        v = torch.cat([sent(sums.gradient, there) for _, sums in layers], 1)
        spans = [self._spans[name] for name, _ in layers]
        off = [
            (self._below if sums.near is None else self._beside)[span]
            for span, (_, sums) in zip(spans, layers, strict=True)
        ]
        k = u.double().addcmul_(torch.cat(off), v)
        moments = torch.stack([samples.wins @ k, samples.wins @ (k * k)])
        shared = samples.shared @ k
        chosen = k[samples.paired].to(self._members.dtype)
        members = torch.zeros(2, self.parts, k.shape[1], device=there, dtype=chosen.dtype)
        members.view(2 * self.parts, k.shape[1]).index_add_(0, samples.member, chosen)
        start = 0
        for span in _joined(spans):
            here = slice(start, start := start + span.stop - span.start)
            self._moments[..., span] += moments[..., here]
            self._shared[span] += shared[here]
            self._members[..., span] += members[..., here]

    def tensors(self) -> list[Tensor]:
        """The live sums, in the same order in every process: to be added up in place over them."""
        return [self._counts, self._pairs, self._moments, self._members, self._shared]

    def compute(self) -> dict[str, AttributionColumns]:
        """The columns of every layer."""
        counts, pairs = self._counts.cpu().numpy(), int(self._pairs)
        moments, members, shared = (
            part.cpu().numpy() for part in (self._moments, self._members, self._shared)
        )
        return columns(moments, counts, members, pairs, shared, self._spans)

    def _drop(self, name: str, reason: str) -> None:
        """A layer missed once has no columns anywhere: NaN survives the sum over processes."""
        self.problems.setdefault(name, reason)
        for sums in (self._moments, self._members, self._shared):
            sums[..., self._spans[name]] = torch.nan


class _Weights:
    """What each sample of a pass counts for, ready to be multiplied with contributions.

    Attributes:
        wins: 1 where a sample of ``only_model`` is of a fold, ``(2, n)``.
        shared: Weight of a sample of ``both``, ``(n,)``.
        paired: Samples that are members of a pair, indices ``(m,)``.
        member: The row of the sums over members that each of these adds to, ``(m,)``.
        pairs: How many pairs have their ``only_model`` member here.
    """

    def __init__(
        self, group: Tensor, fold: Tensor, pair: Tensor, weight: Tensor | None, parts: int
    ) -> None:
        group, fold, pair = group.long().cpu(), fold.long().cpu(), pair.long().cpu()
        self.wins = nn.functional.one_hot(fold, 2).T.double() * (group == 0)
        self.shared = (
            torch.zeros(len(group), device="cpu") if weight is None else weight.cpu() * (group == 1)
        )
        self.shared = self.shared.double()
        self.paired = (pair >= 0).nonzero().flatten()
        self.member = group[self.paired] * parts + pair[self.paired] % max(parts, 1)
        self.pairs = int(((pair >= 0) & (group == 0)).sum())

    def to(self, device: torch.device) -> _Weights:
        """On a device, without waiting for it."""
        for name in ("wins", "shared", "paired", "member"):
            setattr(self, name, sent(getattr(self, name), device))
        return self


def _spans(layers: Mapping[str, Tensor]) -> dict[str, slice]:
    """Where each layer lies among the neurons of all."""
    found, start = {}, 0
    for name, centre in layers.items():
        found[name] = slice(start, start := start + len(centre))
    return found


def _joined(spans: Iterable[slice]) -> list[slice]:
    """Spans of neurons in order, those that touch made one."""
    found: list[slice] = []
    for span in spans:
        if found and found[-1].stop == span.start:
            found[-1] = slice(found[-1].start, span.stop)
        else:
            found.append(span)
    return found


def _blocks(layers: Iterable[tuple[str, Sums]], samples: int) -> Iterator[list[tuple[str, Sums]]]:
    """Layers that are added together: few blocks, but temporaries of a bounded size."""
    block: list[tuple[str, Sums]] = []
    width = 0
    for one in layers:
        neurons = one[1].product.shape[1]
        if block and (width + neurons) * samples > _BLOCK:
            yield block
            block, width = [], 0
        block.append(one)
        width += neurons
    if block:
        yield block
