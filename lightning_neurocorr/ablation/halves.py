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
from lightning_neurocorr.functional.devices import sent
from lightning_neurocorr.isolation.torch_private import pytree

Chunk = tuple[tuple[Any, ...], dict[str, Any]]
Take = Callable[[Chunk, Tensor, int], Chunk]


def take_rows(chunk: Chunk, rows: Tensor, length: int) -> Chunk:
    """The given rows of every tensor whose first axis is as long as the chunk."""

    def take(part: Any) -> Any:
        if isinstance(part, Tensor) and part.ndim and len(part) == length:
            return part[rows.to(part.device)]
        return part

    return pytree.tree_map(take, chunk)


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
        take: From a chunk, rows ``(m,)`` of it and its length to a chunk of these rows, in which
            one may come again and again.
    """

    chunks: Sequence[Chunk]
    lengths: Sequence[int]
    target: Tensor
    outcome: Tensor
    fold: Tensor
    rival: Tensor | None = None
    take: Take = take_rows

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
        self.take = samples.take
        rows, start = [], 0
        for chunk, length in zip(samples.chunks, samples.lengths, strict=True):
            mine = wanted[start : start + length].nonzero().flatten()
            if len(mine) >= (2 if fill == "resample" else 1):  # one sample has no other
                whole = len(mine) == length
                self.chunks.append(chunk if whole else samples.take(chunk, mine, length))
                rows.append(mine + start)
            start += length
        self.lengths = [len(mine) for mine in rows]
        index = torch.cat(rows) if rows else torch.zeros(0, dtype=torch.long, device="cpu")
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
        parts = [forward(*args, **kwargs).detach() for args, kwargs in self.chunks]
        for part, length in zip(parts, self.lengths, strict=True):
            if part.ndim not in (1, 2) or len(part) != length:
                raise ValueError(
                    f"Expected `forward` to return logits of shape ({length}, C), but got "
                    f"{tuple(part.shape)}."
                )
        if parts:
            logits = torch.cat([_of_classes(part[None])[0].cpu() for part in parts])
            best = logits.scatter(1, self.target[:, None], -torch.inf).argmax(1)
            unknown = (self.rival < 0) | (self.rival == self.target)
            self.rival = torch.where(unknown, best, self.rival)
        read = [self.read(part[None], which) for which, part in enumerate(parts)]
        self.margin, self.correct = self.joined(read)[:, 0] if read else np.zeros((2, 0))

    def read(self, logits: Tensor, which: int) -> Tensor:
        """Margin and correctness, ``(2, V, n)``, of a chunk with ``V`` sets silenced.

        They stay where the model runs: :meth:`joined` fetches those of all chunks at once.

        Args:
            logits: ``(V, n, C)``, or ``(V, n)`` or ``(V, n, 1)`` for one logit of two classes.
            which: The number of the chunk.
        """
        logits = _of_classes(logits)
        start = sum(self.lengths[:which])
        here = slice(start, start + self.lengths[which])
        target, rival = (
            sent(classes[here], logits.device).expand(logits.shape[:2])[..., None]
            for classes in (self.target, self.rival)
        )
        margin = (logits.gather(2, target) - logits.gather(2, rival)).squeeze(2)
        correct = logits.argmax(2) == target.squeeze(2)
        return torch.stack([margin, correct.to(margin.dtype)])

    @staticmethod
    def joined(read: Sequence[Tensor]) -> np.ndarray:
        """Margin and correctness of all chunks, ``(2, V, n)`` float64."""
        return torch.cat(list(read), 2).cpu().double().numpy()


def _of_classes(logits: Tensor) -> Tensor:
    """Logits ``(V, n, C)``; one logit is that of class 1 against class 0."""
    logits = logits.float()
    one = logits[..., None] if logits.ndim == 2 else logits
    return torch.cat([torch.zeros_like(one), one], 2) if one.shape[2] == 1 else one


def _class_weights(target: np.ndarray, advantage: np.ndarray) -> np.ndarray:
    """Weights that give shared samples the classes of advantage samples, which have none."""
    classes = int(target.max(initial=0)) + 1
    wins = np.bincount(target[advantage], minlength=classes)
    shared = np.bincount(target[~advantage], minlength=classes)
    return np.where(advantage, 0.0, (wins / np.maximum(shared, 1))[target])
