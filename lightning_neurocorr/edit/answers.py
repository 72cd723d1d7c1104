"""Which samples a model gets right, with its own weights or with folded ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_neurocorr.activations import eager
from lightning_neurocorr.edit.samples import EditSamples
from lightning_neurocorr.edit.weights import Units, Values, folded
from lightning_neurocorr.isolation.randomness import preserved_randomness
from lightning_neurocorr.isolation.swapping import call_with, preserved_buffers

Read = Callable[[Any], Tensor]


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """No gradients; a model that draws draws the same each time; all is put back afterwards."""
    if model.training:
        raise ValueError(
            "Expected `model` to be in evaluation mode, but got it in training mode. Call "
            "`model.eval()` first."
        )
    device = next((p.device for p in model.parameters()), None)
    with torch.no_grad(), preserved_randomness(device, seed=0), preserved_buffers(model):
        yield


def correct_with(
    model: nn.Module, samples: EditSamples, units: Units, values: Values | None, read: Read
) -> np.ndarray:
    """Whether the model with folded weights is right on each sample, ``(N,)`` bool."""
    with quiet(model), eager(model):
        changed = folded(model, units, values)
        outputs = [call_with(model, changed, *chunk) for chunk in samples.chunks]
        answers = [answers_of(output, read) for output in outputs]
    return right(answers, samples).numpy()


def answers_of(output: Any, read: Read) -> Tensor:
    """Class ids ``(n,)``, on the CPU, from what the model returned for a chunk."""
    logits = read(output)
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(
            "Expected `read` to give logits of shape (n, C) with at least 2 classes, but got "
            f"{tuple(logits.shape)}."
        )
    return logits.argmax(1).cpu()


def right(answers: Sequence[Tensor], samples: EditSamples) -> Tensor:
    """Whether the answers to all chunks are right, ``(N,)`` bool."""
    found, n = sum(map(len, answers)), len(samples.target)
    if found != n or not n:
        raise ValueError(
            f"Expected `chunks` to hold as many samples as `target`, at least 1, but got {found} "
            f"and {n}."
        )
    return torch.cat(list(answers)) == samples.target.cpu()
