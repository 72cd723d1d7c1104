"""One batch for the metrics of many layers: what they share is made once, small layers go together.

A small layer costs an update little but its fixed part, about a hundred small operations. So the
activations and states of small layers are laid side by side, updated as one, and copied back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_neurocorr.functional import merge_shared_
from lightning_neurocorr.metric.batch import (
    Columns,
    check_activations,
    exact_arithmetic,
    read_columns,
)
from lightning_neurocorr.metric.correlation import NeuronAdvantageCorrelation
from lightning_neurocorr.metric.layout import Layout
from lightning_neurocorr.metric.reduction import add_batch_

# Above as many numbers, a layer's own pass costs less than copies of activations and of the state
# (there and back); on a device launches cost more.
_SMALL = 1 << 18
_SMALL_ON_DEVICE = 1 << 22
_TOGETHER = 1 << 14  # neurons


class _Layer(NamedTuple):
    metric: NeuronAdvantageCorrelation
    x: Tensor


def update_layers(
    metrics: Sequence[NeuronAdvantageCorrelation],
    activations: Sequence[Tensor],
    advantage: Tensor,
    covariates: Tensor | None = None,
    fold: Tensor | None = None,
) -> None:
    """Add a batch to the metrics of several layers: as updating each of them, in less time.

    Nothing is added where an argument is wrong.

    Args:
        metrics: One metric per layer.
        activations: ``(N, D)`` of each layer.
        advantage: ``(N,)``, finite.
        covariates: ``(N, num_covariates)``, the same for all.
        fold: ``(N,)`` integers in ``[0, folds)``; all 0 when left out.

    Raises:
        ValueError: As :meth:`NeuronAdvantageCorrelation.update` does.
    """
    if len(metrics) != len(activations):
        raise ValueError(
            f"Expected `activations` to hold one tensor for each of {len(metrics)} metrics, "
            f"but got {len(activations)}."
        )
    alike: dict[tuple, list[_Layer]] = {}
    for metric, x in zip(metrics, activations, strict=True):
        check_activations(x, metric.num_neurons)
        key = (len(x), x.device, metric.state.device, metric.num_covariates, metric.folds)
        alike.setdefault(key, []).append(_Layer(metric, x.detach()))
    read = [
        read_columns(
            advantage,
            covariates,
            fold,
            samples=samples,
            num_covariates=num_covariates,
            folds=folds,
            device=device,
            state_device=state_device,
        )
        for samples, device, state_device, num_covariates, folds in alike
    ]
    for layers, columns in zip(alike.values(), read, strict=True):
        with torch.no_grad(), exact_arithmetic(layers[0].x.device):
            _add_layers_(layers, columns)


def _add_layers_(layers: list[_Layer], columns: Columns) -> None:
    """Add a batch to metrics that share its columns."""
    for metric, _ in layers:
        metric.count_update()
    for together in _parts(layers) if len(layers[0].x) else ():
        if len(together) > 1:
            _add_together_(together, columns)
            continue
        metric, x = together[0]
        moments = metric.layout.unpack(metric.writable())
        add_batch_(moments, x, columns, metric.count_active, metric.compiled)
        merge_shared_(moments, columns.n, columns.w, columns.ww)


def _parts(layers: list[_Layer]) -> Iterator[list[_Layer]]:
    """Layers to be updated as one: small, of one dtype and not too many neurons in all."""
    waiting: dict[tuple, list[_Layer]] = {}
    neurons: dict[tuple, int] = {}
    for layer in layers:
        small = _SMALL if layer.x.device.type == "cpu" else _SMALL_ON_DEVICE
        if layer.x.numel() + 4 * layer.metric.state.numel() > small:
            yield [layer]
            continue
        key = (layer.x.dtype, layer.metric.count_active)
        part = waiting.setdefault(key, [])
        if neurons.get(key, 0) > _TOGETHER:
            yield part.copy()
            part.clear()
            neurons[key] = 0
        part.append(layer)
        neurons[key] = neurons.get(key, 0) + layer.metric.num_neurons
    yield from waiting.values()


def _add_together_(layers: list[_Layer], columns: Columns) -> None:
    """Add a batch to layers laid side by side; they may have seen different samples before."""
    states = [metric.writable() for metric, _ in layers]
    rows = [m.layout.rows(state) for (m, _), state in zip(layers, states, strict=True)]
    heads = [m.layout.head(state) for (m, _), state in zip(layers, states, strict=True)]
    sizes = [metric.num_neurons for metric, _ in layers]
    joined, shared = torch.cat(rows, -1), torch.stack(heads)
    moments = Layout(columns.w.shape[-1], sum(sizes)).moments(shared, joined)
    n, w = moments.n.T, moments.w.permute(1, 2, 0)
    if shared.device.type == "cpu" and bool((shared == shared[:1]).all()):
        n, w = n[:, :1], w[..., :1]
    else:
        layer = torch.arange(len(layers)).repeat_interleave(
            torch.tensor(sizes), output_size=sum(sizes)
        )
        layer = layer.to(joined.device, non_blocking=True)
        n, w = n[:, layer], w[..., layer]
    x = torch.cat([x for _, x in layers], 1)
    add_batch_(moments, x, columns, layers[0].metric.count_active, n=n, w=w)
    merge_shared_(moments, columns.n, columns.w, columns.ww)
    torch._foreach_copy_(rows, joined.split(sizes, -1))  # pyright: ignore[reportPrivateImportUsage]
    torch._foreach_copy_(heads, shared.unbind())  # pyright: ignore[reportPrivateImportUsage]
