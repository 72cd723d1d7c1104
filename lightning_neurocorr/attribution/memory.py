"""What a pass takes: so many samples go through the model at once as there is room for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from lightning_neurocorr.activations import Place
from lightning_neurocorr.attribution.gradients import Taps, own_graph


def graph_bytes(
    forward: Callable[[], Any],
    layers: Mapping[str, Place],
    device: torch.device,
    held: Iterable[Tensor] = (),
) -> int:
    """Bytes that :func:`attribute` holds on to at the end of such a forward, which is run once.

    These are the tensors that autograd keeps for the backward; of each watched layer what it put
    out and its gradient; and of the largest one their product in float32, twice.

    Args:
        forward: As for :func:`attribute`.
        layers: As for :func:`attribute`.
        device: Where it runs.
        held: Weights, which are there anyway; and so are copies of them in another precision.
    """
    held = list(held)
    weights = {_storage(tensor) for tensor in held}
    shapes = {_shape(tensor) for tensor in held}  # of copies that autocast makes of them
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> None:
        # Held here and not by the graph: a graph that holds its own output is never freed.
        if (key := _storage(tensor)) not in weights and _shape(tensor) not in shapes:
            kept[key] = tensor.detach()

    def unpack(_: None) -> Tensor:
        raise RuntimeError("nothing is differentiated")

    with own_graph(device), Taps(layers) as taps, saved_tensors_hooks(pack, unpack):
        forward()
        read = [part for calls in taps.kept.values() for part in calls]
        taken = sum(2 * part.numel() * part.element_size() for part in read)
        taken += 8 * max((part.numel() for part in read), default=0)
    return taken + sum(_bytes(tensor) for tensor in kept.values())


def _shape(tensor: Tensor) -> tuple[int, ...]:
    """Its sizes in order: a matrix is kept the other way round."""
    return (-1,) if tensor.is_nested else tuple(sorted(tensor.shape))


def _bytes(tensor: Tensor) -> int:
    """Of all that the tensor is a view of."""
    try:
        return tensor.untyped_storage().nbytes()
    except (RuntimeError, NotImplementedError):
        return tensor.numel() * tensor.element_size()


def _storage(tensor: Tensor) -> int:
    """What tells tensors that share their memory from others."""
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (RuntimeError, NotImplementedError):  # nested and sparse tensors have none
        return id(tensor)
