"""The forwards of an ablation study: what silencing each set costs every sample."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lightning_neurocorr.ablation.halves import Half
from lightning_neurocorr.ablation.plan import Pair, SilencedSet
from lightning_neurocorr.ablation.results import Ablation, Effect
from lightning_neurocorr.ablation.together import Together
from lightning_neurocorr.activations import ActivationRecorder, Place


class Task(NamedTuple):
    """All sets of a layer that were chosen on half ``fold``, on a chunk of the other half."""

    layer: str
    fold: int
    chunk: int


@dataclass
class _Part:
    """The sets of a layer and a half as far as they are measured."""

    half: Half
    together: Together
    sets: list[SilencedSet]
    began: float
    share: float  # seconds
    read: list[Tensor] = field(default_factory=list)


class Work:
    """Silences sets and keeps what each costs every sample.

    Attributes:
        live: Units of each layer that are not constant.
        skipped: Why a layer has no or fewer results.
        notes: What else there is to say of how it was done.
        forwards: Samples that went through the model with something silenced.
    """

    def __init__(
        self,
        forward: Callable[..., Tensor],
        layers: Mapping[str, Place],
        halves: tuple[Half, Half],
        settings: Ablation,
        means: Mapping[str, Tensor] | None,
        model: nn.Module | None = None,
    ) -> None:
        self.forward, self.layers, self.halves, self.settings = forward, layers, halves, settings
        self.live: dict[str, np.ndarray] = {}
        self.skipped: dict[str, str] = {}
        self.notes: dict[str, None] = {}
        self.forwards = 0
        self._model = model
        self._together: dict[str, Together] = {}  # of the layer that is silenced now
        self._lost: dict[SilencedSet, tuple[np.ndarray, np.ndarray]] = {}
        self._own: dict[str, Tensor] = {}
        heard = self._listen()
        self._means = {**self._own, **(means or {})}
        for name, values in heard.items():
            self.live[name] = np.flatnonzero(values.max(0) > values.min(0))

    def _listen(self) -> dict[str, np.ndarray]:
        """The untouched model on both halves; what each layer said, ``(N, D)``."""
        parts: dict[str, list[np.ndarray]] = {name: [] for name in self.layers}
        sums: dict[str, Tensor] = {}
        counts: dict[str, float] = {}
        with ActivationRecorder(self.layers) as recorder:

            def forward(*args: Any, **kwargs: Any) -> Tensor:
                logits = self.forward(*args, **kwargs)
                taken, problems = recorder.take()
                self.skipped |= problems
                for name, values in taken.items():
                    parts[name].append(values.cpu().double().numpy())
                    means, positions = recorder.over_positions[name]
                    count = torch.as_tensor(positions).cpu().double().expand(len(means))
                    sums[name] = sums.get(name, 0.0) + count @ means.cpu().double()
                    counts[name] = counts.get(name, 0.0) + float(count.sum())
                return logits

            for half in self.halves:
                half.listen(forward)
            self.skipped |= recorder.refused
        self._own = {name: total / counts[name] for name, total in sums.items()}
        return {name: np.concatenate(p) for name, p in parts.items() if name not in self.skipped}

    def work(
        self, sets: Sequence[SilencedSet], progress: Callable[[Iterable[Any]], Iterable[Any]]
    ) -> None:
        """Silence every set, each layer within its share of the time."""
        budget = self.settings.time_budget_s
        end = float("inf") if budget is None else time.monotonic() + budget
        parts: dict[tuple[str, int], list[SilencedSet]] = {}
        for one in sets:
            parts.setdefault((one.layer, one.fold), []).append(one)
        tasks = [
            Task(layer, fold, chunk)
            for layer, fold in parts
            for chunk in range(len(self.halves[1 - fold].chunks))
        ]
        left, part = len(parts), None
        for task in progress(tasks):
            if part is None or task.chunk == 0:
                now = time.monotonic()
                wanted = parts[task.layer, task.fold]
                part = self._begin(task, wanted, now, max(0.0, end - now) / left)
                left -= 1
            self._do(part, task)
            if task.chunk == len(part.half.chunks) - 1:
                self._finish(part)

    def _begin(self, task: Task, sets: list[SilencedSet], now: float, share: float) -> _Part:
        if task.layer not in self._together:  # what is learnt on one half holds on the other
            settings = self.settings
            value = self._means.get(task.layer) if settings.fill == "mean" else None
            self._together = {
                task.layer: Together(
                    self.forward,
                    self._model,
                    task.layer,
                    self.layers[task.layer],
                    settings.fill,
                    value,
                    settings.seed,
                    self.halves[0].take,
                    settings.pass_bytes,
                )
            }
        half = self.halves[1 - task.fold]
        return _Part(half, self._together[task.layer], sets, now, share)

    def _do(self, part: _Part, task: Task) -> None:
        """The part's sets on a chunk. On the first one it shows how many there is time for."""
        half, which = part.half, task.chunk
        read: list[Tensor] = []
        done = 0
        units = [one.units for one in part.sets]
        if part.share <= 0:  # other layers took longer than theirs
            part.sets = []
        wanted = units if part.sets else []
        for logits in part.together.run(half.chunks[which], half.lengths[which], wanted, which):
            read.append(half.read(logits, which))
            done += len(logits)
            spent = time.monotonic() - part.began
            needed = spent * len(half.chunks) if which == 0 else spent / 2
            if done < len(units) and needed > part.share:
                part.sets = part.sets[:done] if which == 0 else []
                break
        if len(part.sets) < len(units):
            budget = self.settings.time_budget_s
            reason = f"not finished within its share of the {budget:g} s for all layers"
            self.skipped.setdefault(task.layer, reason)
        self.forwards += done * half.lengths[which]
        part.read = [*part.read, torch.cat(read, 1)] if part.sets else []
        if part.together.note:
            self.notes[f"In {task.layer} {part.together.note}."] = None

    def _finish(self, part: _Part) -> None:
        if not part.sets:
            return
        margin, correct = part.half.joined(part.read)
        for one, m, c in zip(part.sets, margin, correct, strict=True):
            self._lost[one] = (part.half.margin - m, part.half.correct - c)

    def excess(self, pairs: list[Pair]) -> np.ndarray:
        """Margin that each sample loses to a neuron beyond what it loses to random ones, ``(N,)``.

        Advantage samples may be frail, whatever is silenced: that is no need of this neuron.
        """
        lost, *random = [np.concatenate([self._lost[one][0] for one in pair]) for pair in pairs]
        return lost - np.mean(random, axis=0)

    def effect(self, pair: Pair) -> Effect | None:
        """What a choice costs over the directions it was measured in; None where one is missing."""
        if not all(one in self._lost for one in pair):
            return None
        lost = [self._lost[one] for one in pair]
        halves = [self.halves[1 - one.fold] for one in pair]
        margin, correct = (np.concatenate([part[i] for part in lost]) for i in (0, 1))
        advantage = np.concatenate([half.advantage for half in halves]).astype(float)
        weight = np.concatenate([half.weight for half in halves])

        def mean(values: np.ndarray, by: np.ndarray) -> float:
            return float(values @ by / by.sum()) if by.sum() else float("nan")

        return Effect(
            advantage_margin=mean(margin, advantage),
            shared_margin=mean(margin, weight),
            advantage_accuracy=mean(correct, advantage),
            shared_accuracy=mean(correct, weight),
        )
