"""The samples of an ablation study, in the two halves that neurons are chosen and silenced on.

Shapes: ``N`` samples in all, ``n`` of one half.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr.functional import BOTH, ONLY_MODEL
from lightning_neurocorr.isolation.torch_private import pytree

Chunk = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class AblationSamples:
    """Samples of a study: ``only_model`` and class-matched ``both``; others are left out.

    Args:
        chunks: Arguments ``(args, kwargs)`` of the forward, together ``N`` samples; tensors whose
            first axis is as long as the chunk's share of ``N`` hold one row per sample.
        lengths: Samples in each chunk.
        target: Class ids ``(N,)``.
        outcome: Outcome groups ``(N,)``.
        fold: The half of each sample, 0 or 1, ``(N,)``.
        rival: The baseline's answers ``(N,)``; the next best class of the model counts where it is
            negative or the target itself, and everywhere if None.
    """

    chunks: Sequence[Chunk]
    lengths: Sequence[int]
    target: Tensor
    outcome: Tensor
    fold: Tensor
    rival: Tensor | None = None

    def __post_init__(self) -> None:
        total = sum(self.lengths)
        for name in ("target", "outcome", "fold", "rival"):
            value = getattr(self, name)
            if value is not None and value.shape != (total,):
                raise ValueError(
                    f"Expected `{name}` to be of shape ({total},), one for each sample of the "
                    f"chunks, but got {tuple(value.shape)}."
                )


class Half:
    """The advantage and shared samples of one half, and what the untouched model says on them."""

    def __init__(self, samples: AblationSamples, fold: int, fill: str) -> None:
        outcome = samples.outcome.cpu()
        wanted = (samples.fold.cpu() == fold) & ((outcome == ONLY_MODEL) | (outcome == BOTH))
        self.chunks: list[Chunk] = []
        rows, start = [], 0
        for chunk, length in zip(samples.chunks, samples.lengths, strict=True):
            mine = wanted[start : start + length].nonzero().flatten()
            if len(mine) >= (2 if fill == "resample" else 1):  # one sample has no other
                self.chunks.append(chunk if len(mine) == length else _take(chunk, mine, length))
                rows.append(mine + start)
            start += length
        index = torch.cat(rows) if rows else torch.zeros(0, dtype=torch.long)
        self.target = samples.target.cpu()[index].long()
        self.advantage = (outcome[index] == ONLY_MODEL).numpy()
        self.weight = _class_weights(self.target.numpy(), self.advantage)
        rival = samples.rival
        self.rival = (
            torch.full_like(self.target, -1) if rival is None else rival.cpu()[index].long()
        )
        self.margin, self.correct = np.zeros(0), np.zeros(0)

    def listen(self, forward: Callable[..., Tensor]) -> None:
        """Run the untouched model: margins and answers to compare with, and rivals where none."""
        logits = self._logits(forward)
        best = logits.scatter(1, self.target[:, None], -torch.inf).argmax(1)
        unknown = (self.rival < 0) | (self.rival == self.target)
        self.rival = torch.where(unknown, best, self.rival)
        self.margin, self.correct = self._read(logits)

    def lost(self, forward: Callable[..., Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """Margin and correctness that each sample has lost, ``(n,)`` each."""
        margin, correct = self._read(self._logits(forward))
        return self.margin - margin, self.correct - correct

    def _logits(self, forward: Callable[..., Tensor]) -> Tensor:
        parts = []
        for args, kwargs in self.chunks:
            logits = forward(*args, **kwargs).detach().float().cpu()
            if logits.ndim == 1 or (logits.ndim == 2 and logits.shape[1] == 1):
                one = logits.reshape(-1, 1)
                logits = torch.cat([torch.zeros_like(one), one], 1)
            parts.append(logits)
        logits = torch.cat(parts)
        if logits.ndim != 2 or len(logits) != len(self.target):
            raise ValueError(
                f"Expected `forward` to return logits of shape ({len(self.target)}, C), but got "
                f"{tuple(logits.shape)}."
            )
        return logits

    def _read(self, logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
        rows = torch.arange(len(logits))
        margin = logits[rows, self.target] - logits[rows, self.rival]
        return margin.double().numpy(), (logits.argmax(1) == self.target).double().numpy()


def _take(chunk: Chunk, rows: Tensor, length: int) -> Chunk:
    """The given rows of every tensor with one row per sample."""

    def take(part: Any) -> Any:
        if isinstance(part, Tensor) and part.ndim and len(part) == length:
            return part[rows.to(part.device)]
        return part

    return pytree.tree_map(take, chunk)


def _class_weights(target: np.ndarray, advantage: np.ndarray) -> np.ndarray:
    """Weights that give shared samples the classes of advantage samples, which have none."""
    classes = int(target.max(initial=0)) + 1
    wins = np.bincount(target[advantage], minlength=classes)
    shared = np.bincount(target[~advantage], minlength=classes)
    return np.where(advantage, 0.0, (wins / np.maximum(shared, 1))[target])
