"""Whether the rows of what layers say are the samples they are taken for: tried out on a few.

A forward may sort samples on the way, project twenty prototypes in a batch of twenty, or call a
layer sample by sample. Nothing but the length of its output would be looked at then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr.activations import ActivationRecorder, Place, Pooling
from lightning_neurocorr.baselines.returned import tensors_in
from lightning_neurocorr.functional.devices import in_widest
from lightning_neurocorr.validation.rerun.arguments import Arguments, learn_layout
from lightning_neurocorr.validation.rerun.learnt import Trial
from lightning_neurocorr.validation.rerun.module import Rerun, Weigh

FEWEST = 2  # samples that an order can be told from

_ROUNDINGS = 4  # how often rounding may be larger than in the first batch
_TOLERANCE = 0.05  # of the largest number: precision and the size of a batch make less of it
_STRANGE = (
    "its rows are not the samples of the batch in their order: {} of them were run again in "
    "another order, and it gave {}. Where the forward sorts samples, sort in `collate_fn` instead "
    "(for packed sequences there is enforce_sorted=False); where it calls the layer for each "
    "sample, call it on the batch"
)


def try_out(
    rerun: Rerun,
    arguments: Arguments,
    output: Any,
    batch: Any,
    n: int,
    places: Mapping[str, Place],
    pooling: Pooling,
    weigh: Weigh | None = None,
) -> Trial | None:
    """Run some samples again, in another order; None where none gets the output that it got before.

    Args:
        rerun: Runs the module.
        arguments: Of the call.
        output: What it returned.
        batch: The batch.
        n: Samples in it.
        places: Where layers are read.
        pooling: How.
        weigh: Says how many bytes a forward holds on to, which ``rerun`` then knows too; None does
            not ask.
    """
    wanted = [tensor for _, tensor in tensors_in(output) if len(tensor) == n]
    if not wanted or wanted[0].device.type == "meta":
        return None
    # few, as one forward of them is paid for; neither sorted nor the same when flipped
    rows = torch.tensor([n - 1, 1, n // 2] if n > 3 else [1, 0, 2][:n], device="cpu")
    activations: dict[str, Tensor] = {}
    logits: list[Tensor] = []

    def agrees(some: Arguments, chosen: Tensor) -> bool:
        with _Unseen(places, pooling) as recorder:

            def forward() -> list[Tensor]:
                recorder.clear()
                logits.clear()
                returned = rerun.run(some)
                if weigh is not None:
                    logits.append(rerun.read(returned).detach())
                return [tensor.detach() for _, tensor in tensors_in(returned)]

            try:
                said = forward() if weigh is None else rerun.weigh(forward, len(chosen), weigh)
                activations.update(recorder.take()[0])
            except Exception:  # noqa: BLE001 -- another way to take rows may work
                return False
        found = [tensor for tensor in said if len(tensor) == len(chosen)]
        pairs = [(a, b) for a, b in zip(found, wanted, strict=False) if a.shape[1:] == b.shape[1:]]
        return bool(pairs) and not any(_differ(pairs, chosen))

    with rerun.undisturbed(), torch.no_grad():
        layout = learn_layout(arguments, batch, n, rerun.held(), agrees, rows)
    if layout is None:
        return None
    return Trial(layout, rows, logits[0] if logits else None, activations)


def strange_rows(
    trial: Trial, activations: Mapping[str, Tensor], rounding: Mapping[str, Tensor | None]
) -> dict[str, str]:
    """Layers with rows that are not the samples of the batch in their order, and how they differ.

    Args:
        trial: Of the batch.
        activations: What layers said in it, ``(N, D)``.
        rounding: By how much each neuron may be off by rounding alone, ``(D,)`` by layer.
    """
    again, rows = trial.activations, trial.rows
    strange, pairs = {}, {}
    for name in activations.keys() & again.keys():
        found, before = again[name], activations[name]
        if len(found) != len(rows):
            strange[name] = f"{len(found)} rows"
        elif found.shape[1] == before.shape[1]:
            pairs[name] = found, before
    if pairs:
        flags = _differ([*pairs.values()], rows, [rounding.get(name) for name in pairs])
        strange |= {name: "other values" for name, off in zip(pairs, flags, strict=True) if off}
    return {
        name: _STRANGE.format(len(rows), strange[name]) for name in activations if name in strange
    }


class _Unseen(ActivationRecorder):
    """What it computes is no part of the graph that is weighed."""

    def hear(self, name: str, place: Place, value: Any) -> None:
        with torch.no_grad():
            super().hear(name, place, value)


def _differ(
    pairs: Sequence[tuple[Tensor, Tensor]], rows: Tensor, rounding: Sequence[Tensor | None] = ()
) -> list[bool]:
    """Whether what is said now is not what was said of these rows before, of each pair.

    All pairs together, and in one transfer: a model has many layers.
    """
    device = pairs[0][1].device
    there = {where: rows.to(where) for where in {before.device for _, before in pairs}}
    wanted = [before.index_select(0, there[before.device]) for _, before in pairs]
    a, b = (
        _side_by_side([part.reshape(len(rows), -1) for part in parts], device).nan_to_num(0, 0, 0)
        for parts in ([found for found, _ in pairs], wanted)
    )
    gap, largest = (a - b).abs().amax(0), b.abs().amax(0)
    if rounding:
        known = zip(rounding, wanted, strict=True)
        noise = [gap.new_zeros(one.shape[1]) if off is None else off for off, one in known]
        gap = gap - _ROUNDINGS * _side_by_side(noise, device)
    ends = np.cumsum([part.numel() // len(rows) for part in wanted])[:-1]
    gaps, most = (np.split(part, ends) for part in torch.stack([gap, largest]).cpu().numpy())
    return [
        bool(off.max(initial=0) > _TOLERANCE * size.max(initial=1e-30))
        for off, size in zip(gaps, most, strict=True)
    ]


def _side_by_side(parts: Sequence[Tensor], device: torch.device) -> Tensor:
    """Parts ``(..., D_1)``, ``(..., D_2)``, ... as one tensor."""
    return in_widest(torch.cat([part.detach().to(device) for part in parts], -1))
