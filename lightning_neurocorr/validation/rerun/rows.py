"""Whether the rows of what layers say are the samples they are taken for: tried out on a few.

A forward may sort samples on the way, project twenty prototypes in a batch of twenty, or call a
layer sample by sample. Nothing but the length of its output would be looked at then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_neurocorr.activations import ActivationRecorder, Place, Pooling
from lightning_neurocorr.baselines.returned import tensors_in
from lightning_neurocorr.validation.rerun.arguments import Arguments, apart_from, learn_layout, take
from lightning_neurocorr.validation.rerun.module import Rerun

FEWEST = 2  # samples that an order can be told from

_TRIED = 8
_TOLERANCE = 0.05  # of the largest number: precision and the size of a batch make less of it
_STRANGE = (
    "its rows are not the samples of the batch in their order: {} of them were run again in "
    "another order, and it gave {}. Where the forward sorts samples, sort in `collate_fn` instead "
    "(for packed sequences there is enforce_sorted=False); where it calls the layer for each "
    "sample, call it on the batch"
)


def strange_rows(
    rerun: Rerun,
    arguments: Arguments,
    output: Any,
    batch: Any,
    activations: Mapping[str, Tensor],
    places: Mapping[str, Place],
    pooling: Pooling,
) -> dict[str, str]:
    """Layers with rows that are not the samples of the batch in their order, and how they differ.

    Some samples go through the module again, in another order. What is so, or cannot be told, is
    not in the result: the module may answer by more than its samples.

    Args:
        rerun: Runs the module.
        arguments: Of the call.
        output: What it returned.
        batch: The batch.
        activations: What layers said in this call, ``(N, D)``.
        places: Where they are read.
        pooling: How.
    """
    n = len(next(iter(activations.values()), ()))
    wanted = [tensor for _, tensor in tensors_in(output) if len(tensor) == n]
    if not wanted or wanted[0].device.type == "meta":
        return {}
    rows = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:_TRIED]
    if n < 4:  # chance may have left them as they are
        rows = torch.tensor([1, 0, 2])[:n]

    def run(some: Arguments) -> Any:
        args, kwargs = apart_from(some, tensors=True)
        with rerun.autocast():
            return rerun.module(*args, **kwargs)

    def agrees(some: Arguments, chosen: Tensor) -> bool:
        try:
            found = [tensor for _, tensor in tensors_in(run(some)) if len(tensor) == len(chosen)]
        except Exception:  # noqa: BLE001 -- another way to take rows may work
            return False
        pairs = [(a, b) for a, b in zip(found, wanted, strict=False) if a.shape[1:] == b.shape[1:]]
        return bool(pairs) and all(_are_again(a, b, chosen) for a, b in pairs)

    with rerun.undisturbed(), torch.no_grad():
        layout = learn_layout(arguments, batch, n, rerun.held(), agrees)
        some = arguments if layout is None else take(arguments, layout, rows)
        if layout is None or not agrees(some, rows):
            return {}
        with ActivationRecorder(places, pooling) as recorder:
            run(some)
            again, _ = recorder.take()
    strange = {}
    for name in (name for name in activations if name in again):
        found, before = again[name], activations[name]
        if len(found) != len(rows):
            strange[name] = _STRANGE.format(len(rows), f"{len(found)} rows")
        elif found.shape[1] == before.shape[1] and not _are_again(found, before, rows):
            strange[name] = _STRANGE.format(len(rows), "other values")
    return strange


def _are_again(found: Tensor, before: Tensor, rows: Tensor) -> bool:
    """Whether these rows of what was said before are said again."""
    wanted = before[rows.to(before.device)]
    a, b = (part.detach().double().nan_to_num(0, 0, 0) for part in (found, wanted))
    return bool((a - b).abs().amax() <= _TOLERANCE * b.abs().amax().clamp_min(1e-30))
