"""What comes into a validation pass: predictions of a batch, a few integers of every sample."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import compress

import torch
from torch import Tensor

from lightning_neurocorr import functional as F
from lightning_neurocorr.functional.devices import sent
from lightning_neurocorr.functional.hashing import folds
from lightning_neurocorr.functional.scores import ScoreKind
from lightning_neurocorr.samples import Id

_MOST_CLASSES = 1 << 20  # larger labels are ids of something else


@dataclass(frozen=True)
class Batch:
    """The predictions for one batch.

    Attributes:
        prediction: The model's class ids ``(N,)`` or scores ``(N, C)``, or anything per sample.
        baseline: The baseline's.
        target: The truth.
        keys: What samples are hashed by ``(N,)``: numbers of their ids, else ``numbers``.
        keep: Which samples count; None for all (padding of distributed samplers does not).
        scores: Whether scores of model and baseline are logits or probabilities; None if unknown.
        numbers: A number of its own for each sample ``(N,)``; None where that is ``keys``.
        located: Whether the numbers are positions in the data set.
        ids: Ids as the user gave them, where there are any.
    """

    prediction: Tensor
    baseline: Tensor
    target: Tensor
    keys: Tensor
    keep: Tensor | None = None
    scores: tuple[ScoreKind | None, ScoreKind | None] = (None, None)
    numbers: Tensor | None = None
    located: bool = True
    ids: Sequence[Id] | None = None

    def kept(self) -> Batch:
        """Without padding."""
        if self.keep is None:
            return self
        rows = self.keep.to(self.prediction.device)
        return Batch(
            self.prediction[rows],
            self.baseline[rows],
            self.target[rows],
            self.keys[self.keep],
            scores=self.scores,
            numbers=None if self.numbers is None else self.numbers[self.keep],
            located=self.located,
            ids=None if self.ids is None else list(compress(self.ids, self.keep.tolist())),
        )

    def has_classes(self, num_classes: int | None) -> bool:
        """Whether these are predictions of so many classes, for a callable advantage.

        A mean and its variance look like scores of two classes, counts like ids: somebody has to
        say that there are classes.
        """
        parts = (self.prediction, self.baseline)
        scored = all(_are_ids(x) or _are_scores(x, num_classes) for x in parts)
        return num_classes is not None and scored and _are_ids(self.target)


@dataclass(frozen=True)
class JudgedBatch:
    """A batch of which all is known that a validation asks of its samples, each worked out once.

    Tensors are ``(N,)``, without padding, where the advantage was computed.

    Attributes:
        batch: The predictions, without padding.
        keep: Which samples of the batch as it was loaded these are; None for all.
        advantage: How much better the model is.
        number: What tells samples apart.
        key: What they are hashed by.
        half: 0 or 1.
        outcome: Their outcome groups; None where nothing is right or wrong, as in the next three.
        target: Their classes.
        answer: The baseline's classes.
        prediction: The model's classes.
    """

    batch: Batch
    keep: Tensor | None
    advantage: Tensor
    number: Tensor
    key: Tensor
    half: Tensor
    outcome: Tensor | None = None
    target: Tensor | None = None
    answer: Tensor | None = None
    prediction: Tensor | None = None

    def __len__(self) -> int:
        return self.advantage.shape[0]

    @property
    def loaded(self) -> int:
        """Samples of the batch as it was loaded."""
        return len(self) if self.keep is None else len(self.keep)

    def table(self) -> Tensor:
        """What is remembered of every sample: the rows of a :class:`SampleTable`, ``(8, N)``."""
        position = self.number if self.batch.located else None
        sample = (position, self.number, self.key, self.outcome, self.target, self.answer)
        rows = [*sample, self.advantage != 0, self.prediction]
        if any(row is None for row in rows):
            none = torch.full_like(self.number, -1)
            rows = [none if row is None else row for row in rows]
        return torch.stack([row.long() for row in rows])


def judge_batch(batch: Batch, advantage: F.Advantage, *, classifies: bool) -> JudgedBatch:
    """What there is to know of the samples of a batch.

    Args:
        batch: What was read, with padding.
        advantage: See :func:`~lightning_neurocorr.functional.compute_advantage`.
        classifies: Whether right and wrong mean something here.
    """
    keep, batch = batch.keep, batch.kept()
    given = (batch.prediction, batch.baseline, batch.target)
    if not batch.prediction.shape[0]:
        nothing = batch.keys.new_zeros(0)
        return JudgedBatch(batch, keep, nothing.double(), nothing, nothing, nothing)
    right = F.judge(*given) if classifies else None
    better = F.compute_advantage(advantage, *given, batch.scores, right)
    keys, device = batch.keys, better.device
    told = torch.stack([keys if batch.numbers is None else batch.numbers, keys, folds(keys)])
    numbers = sent(told, device).unbind()  # once, and without waiting
    if right is None:
        return JudgedBatch(batch, keep, better, *numbers)
    classes = (right.outcome(), right.target, right.baseline, right.model)
    there = (sent(values, device) for values in classes)
    return JudgedBatch(batch, keep, better, *numbers, *there)


@dataclass(frozen=True)
class SampleTable:
    """What is remembered of every sample of a validation: eight integers, ``(N,)`` each.

    Attributes:
        position: Where the sample lies in the data set, -1 where that is not known.
        number: A number of its own: its position, else in the order seen.
        key: What it is hashed by: a number of its id, else ``number``.
        outcome: Its outcome group, -1 where right and wrong mean nothing.
        target: Its class, -1 where there is none.
        answer: The baseline's class, -1 where there is none.
        nonzero: 1 where the advantage is not 0.
        prediction: The model's class, -1 where there is none.
    """

    position: Tensor
    number: Tensor
    key: Tensor
    outcome: Tensor
    target: Tensor
    answer: Tensor
    nonzero: Tensor
    prediction: Tensor

    @property
    def located(self) -> bool:
        """Whether the position of every sample is known."""
        return not bool((self.position < 0).any())

    def positions_of(self, numbers: Iterable[int]) -> dict[int, int]:
        """Positions by number, of samples that have one."""
        wanted = torch.tensor(sorted(set(numbers)), dtype=torch.int64, device="cpu")
        rows = (torch.isin(self.number, wanted) & (self.position >= 0)).nonzero().squeeze(1)
        return dict(zip(self.number[rows].tolist(), self.position[rows].tolist(), strict=True))

    def between(self, start: int, stop: int) -> SampleTable:
        """Only samples whose number is at least ``start`` and below ``stop``."""
        rows = (self.number >= start) & (self.number < stop)
        return SampleTable(**{part.name: getattr(self, part.name)[rows] for part in fields(self)})

    def repeated_ids(self) -> int:
        """Samples whose id another sample had before them."""
        return len(self.key) - len(self.key.unique())

    def seen_by_each(self, processes: int) -> bool | None:
        """Whether all of several processes have seen the same samples; None where it is not known.

        Classes and outcomes tell. Process ``r`` has every ``processes``-th number from its first.
        """
        told = torch.stack([self.target, self.answer, self.prediction, self.outcome])
        if told.shape[1] % processes:
            return False
        told = told[:, self.number.argsort()].view(len(told), -1, processes)
        if not bool((told == told[:, :, :1]).all()):
            return False
        several = told.shape[1] > 0 and len(told[:, :, 0].unique(dim=1).T) > 1
        return True if several else None  # any samples of one kind would look the same

    def counts(self) -> list[int]:
        """Samples per outcome group."""
        return torch.bincount(self.outcome[self.outcome >= 0], minlength=4).tolist()

    def by_class(self) -> Tensor | None:
        """Samples per class and outcome group, ``(C, 4)``; None where there are no classes."""
        known = (self.outcome >= 0) & (self.target >= 0)
        classes = int(self.target[known].max()) + 1 if bool(known.any()) else 0
        if not 0 < classes <= _MOST_CLASSES:
            return None
        cell = 4 * self.target[known] + self.outcome[known]
        return torch.bincount(cell, minlength=4 * classes).reshape(classes, 4)


def _are_ids(x: Tensor) -> bool:
    return x.ndim == 1 and not (x.is_floating_point() or x.is_complex())


def _are_scores(x: Tensor, num_classes: int | None) -> bool:
    return x.ndim == 2 and x.shape[1] == num_classes and x.is_floating_point()
