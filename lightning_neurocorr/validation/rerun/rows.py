"""Whether the rows of what layers say are the samples they are taken for: tried out on a few.

A forward may sort samples on the way, project twenty prototypes in a batch of twenty, or call a
layer sample by sample. Nothing but the length of its output would be looked at then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_neurocorr.activations import ActivationRecorder, Place, Pooling
from lightning_neurocorr.baselines.returned import tensors_in
from lightning_neurocorr.functional.devices import in_widest
from lightning_neurocorr.validation.rerun.arguments import Arguments, apart_from, learn_layout
from lightning_neurocorr.validation.rerun.module import Rerun

FEWEST = 2  # samples that an order can be told from

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
    # few, as one forward of them is paid for; neither sorted nor the same when flipped
    rows = torch.tensor([n - 1, 1, n // 2] if n > 3 else [1, 0, 2][:n])
    again: dict[str, Tensor] = {}

    def agrees(some: Arguments, chosen: Tensor) -> bool:
        args, kwargs = apart_from(some, tensors=True)
        try:
            with ActivationRecorder(places, pooling) as recorder, rerun.autocast():
                returned = rerun.module(*args, **kwargs)
                again.update(recorder.take()[0])
            found = [tensor for _, tensor in tensors_in(returned) if len(tensor) == len(chosen)]
        except Exception:  # noqa: BLE001 -- another way to take rows may work
            return False
        pairs = [(a, b) for a, b in zip(found, wanted, strict=False) if a.shape[1:] == b.shape[1:]]
        return bool(pairs) and all(_differ(pairs, chosen).logical_not().tolist())

    with rerun.undisturbed(), torch.no_grad():
        if learn_layout(arguments, batch, n, rerun.held(), agrees, rows) is None:
            return {}
    strange, pairs = {}, {}
    for name in activations.keys() & again.keys():
        found, before = again[name], activations[name]
        if len(found) != len(rows):
            strange[name] = f"{len(found)} rows"
        elif found.shape[1] == before.shape[1]:
            pairs[name] = found, before
    if pairs:
        flags = _differ([*pairs.values()], rows).tolist()
        strange |= {name: "other values" for name, off in zip(pairs, flags, strict=True) if off}
    return {
        name: _STRANGE.format(len(rows), strange[name]) for name in activations if name in strange
    }


def _differ(pairs: Sequence[tuple[Tensor, Tensor]], rows: Tensor) -> Tensor:
    """Whether what is said now is not what was said of these rows before, of each pair."""
    flags = []
    for found, before in pairs:
        wanted = before.index_select(0, rows.to(before.device))
        a, b = (in_widest(part.detach()).nan_to_num(0, 0, 0) for part in (found, wanted))
        flags.append((a - b).abs().amax() > _TOLERANCE * b.abs().amax().clamp_min(1e-30))
    return torch.stack([flag.to(flags[0].device) for flag in flags])  # one transfer for all
