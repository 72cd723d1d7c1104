"""Which samples a model with folded weights gets right; it is not changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_neurocorr.activations import eager
from lightning_neurocorr.edit.results import EditSamples
from lightning_neurocorr.edit.weights import Units, Values, folded
from lightning_neurocorr.isolation.swapping import call_with


def correct(
    model: nn.Module,
    samples: EditSamples,
    units: Units,
    values: Values | None,
    read: Callable[[Any], Tensor],
) -> np.ndarray:
    """Whether the model with folded weights is right on each sample, ``(N,)`` bool."""
    changed = folded(model, units, values)
    with quiet(model), eager(model):
        outputs = [call_with(model, changed, *chunk) for chunk in samples.chunks]
    return right([read(output).argmax(1).cpu() for output in outputs], samples).numpy()


def right(answers: Sequence[Tensor], samples: EditSamples) -> Tensor:
    """Whether the answers to all chunks are right, ``(N,)`` bool."""
    found, n = sum(map(len, answers)), len(samples.target)
    if found != n or not n:
        raise ValueError(
            f"Expected `chunks` to hold as many samples as `target`, at least 1, but got {found} "
            f"and {n}."
        )
    return torch.cat(list(answers)) == samples.target.cpu()


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """No gradients, and the random state put back."""
    if model.training:
        raise ValueError("Expected `model` to be in evaluation mode: call `model.eval()` first.")
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.no_grad(), torch.random.fork_rng(list(devices)):
        yield
