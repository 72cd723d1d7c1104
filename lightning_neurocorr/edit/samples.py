"""Samples to choose an edit on, or to judge it on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_neurocorr.isolation.torch_private import pytree


@dataclass(frozen=True)
class EditSamples:
    """Samples to choose neurons on, or to judge an edit on.

    Args:
        chunks: Arguments ``(args, kwargs)`` of the model's forward, together ``N`` samples.
        target: Class ids ``(N,)``.
        baseline_correct: Whether the baseline is right, ``(N,)`` bool.
        groups: Named subsets to report the accuracy of, ``(N,)`` bool each.

    Raises:
        ValueError: If a shape is another one.
        TypeError: If what should be bool is not, or ``chunks`` holds no arguments.
    """

    chunks: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]
    target: Tensor
    baseline_correct: Tensor
    groups: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.target.ndim != 1:
            raise ValueError(
                "Expected `target` to be class ids of shape (N,), but got "
                f"{tuple(self.target.shape)}."
            )
        n = len(self.target)
        named = {"baseline_correct": self.baseline_correct, **self.groups}
        for name, values in named.items():
            if tuple(values.shape) != (n,):
                raise ValueError(
                    f"Expected `{name}` to be of shape ({n},), one for each of `target`, but got "
                    f"{tuple(values.shape)}."
                )
            if values.dtype != torch.bool:  # 0 and 1 would be taken for positions
                raise TypeError(
                    f"Expected `{name}` to be bool, but got {values.dtype}: compare it with what "
                    "is meant, as in `answers == target`."
                )
        for chunk in self.chunks:
            if not (isinstance(chunk, tuple) and [*map(type, chunk)] == [tuple, dict]):
                raise TypeError(
                    "Expected `chunks` to hold arguments of the model, such as [((images,), {})], "
                    f"but got {type(chunk).__name__}."
                )


def share_data(first: EditSamples, second: EditSamples) -> bool:
    """Whether two sets read a sample from the same place in memory."""
    return not _rows(first).isdisjoint(_rows(second))


def _rows(samples: EditSamples) -> set[tuple[torch.device, int]]:
    """Where the rows of each chunk's first tensor begin; others may be masks that all share."""
    found: set[tuple[torch.device, int]] = set()
    for chunk in samples.chunks:
        tensors = [part for part in pytree.tree_leaves(chunk) if isinstance(part, Tensor)]
        for part in tensors[:1]:
            if part.layout == torch.strided and part.ndim and part.numel():
                step = part.stride(0) * part.element_size()
                found |= {(part.device, part.data_ptr() + row * step) for row in range(len(part))}
    return found
