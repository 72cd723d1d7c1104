"""Samples that wait go through the model in as few passes as there is room for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lightning_neurocorr.activations import Place
from lightning_neurocorr.attribution import Attribution, graph_bytes
from lightning_neurocorr.isolation.room import pass_bytes
from lightning_neurocorr.validation.rerun import WEIGHED, Rerun
from lightning_neurocorr.validation.waiting import Piece, Waiting

# Samples that keep a device busy, where a batch of the loader has fewer. What a CPU works on has to
# stay in its caches: a small CNN and a ResNet-18 were fastest with 64.
_FULL = {"cuda": 256}
_FULL_ELSEWHERE = 64


def in_full_passes(
    work: Callable[[Piece], None],
    waiting: Waiting,
    layers: Mapping[str, Place],
    settings: Attribution,
    batch: int,
    neurons: int,
) -> None:
    """Do some work on all samples that wait; where memory is short, on fewer of them at once.

    Args:
        work: Differentiates the prediction of some samples. Where it runs out of memory, it has
            done nothing yet and is called again with fewer.
        waiting: The samples.
        layers: Where the watched layers are read, by name.
        settings: Bounds of a pass.
        batch: Samples of a batch of the loader.
        neurons: Neurons of all watched layers.
    """
    if not waiting.pieces:
        return
    full = _FULL.get(waiting.pieces[0].prediction.device.type, _FULL_ELSEWHERE)
    most = settings.samples_per_pass or max(batch, full)
    most = min(most, sum(map(len, waiting.pieces)))
    if most > WEIGHED:
        most = _fitting(most, waiting, layers, settings, batch, neurons)
    for piece in waiting.calls(most):
        rest = [piece]
        while rest:
            part = rest.pop()
            if len(part) > most:
                rest += reversed(waiting.split(part, most))
                continue
            try:
                work(part)
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise
                most = len(part) // 2
                rest.append(part)


def _fitting(
    most: int,
    waiting: Waiting,
    layers: Mapping[str, Place],
    settings: Attribution,
    batch: int,
    neurons: int,
) -> int:
    """How many samples there is room for, at most ``most``."""
    rerun = waiting.rerun
    device = waiting.pieces[0].prediction.device
    if rerun.sample_bytes is None:  # as where the first batch had one sample
        few = next(iter(waiting.calls(WEIGHED)))
        weigh = weighing(rerun, layers, device)
        rerun.weigh(lambda: rerun.logits(few.arguments), len(few), weigh)
    if rerun.sample_bytes is None:
        return min(most, batch)
    room = pass_bytes(device) if settings.pass_bytes is None else settings.pass_bytes
    return max(1, min(most, int(room / (rerun.sample_bytes + 16 * neurons))))


def weighing(
    rerun: Rerun, layers: Mapping[str, Place], device: torch.device
) -> Callable[[Callable[[], Tensor]], int]:
    """Runs a forward, and says how many bytes it holds on to for attribution."""
    return lambda forward: graph_bytes(forward, layers, device, rerun.held())
