"""Samples that wait for the end of a validation to be attributed, within a budget of bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr.attribution import SampleChoice
from lightning_neurocorr.functional.devices import sent
from lightning_neurocorr.validation.rerun import Arguments, Rerun, alike, join, share_whole, take


@dataclass(frozen=True)
class Piece:
    """Some samples: what the module gets, what was judged, and integers of each.

    Attributes:
        arguments: Of the module, ``n`` samples.
        prediction: The judged prediction, ``(n, ...)``.
        integers: Hash of the position, class, group (0 ``only_model``, 1 ``both``), the baseline's
            answer, fold; later also rival, number of the pair and bits of the weight, a
            float64: ``(n, 5)`` or ``(n, 8)``.
        score: See :class:`~lightning_neurocorr.attribution.SampleChoice`, ``(n,)``.
    """

    arguments: Arguments
    prediction: Tensor
    integers: Tensor
    score: Tensor

    def __len__(self) -> int:
        return self.score.numel()


class Waiting:
    """The samples of this process, thinned out where they come to more than the budget.

    Args:
        choice: Chose them.
        budget: Bytes of their inputs and predictions in this process.
        rerun: Runs the module on them.
    """

    def __init__(self, choice: SampleChoice, budget: int, rerun: Rerun) -> None:
        self.rerun = rerun
        self._choice, self._budget = choice, budget
        self.pieces: list[Piece] = []
        self._each: list[float] = []  # bytes of a sample of each piece
        self._count, self._used = [0, 0], [0.0, 0.0]  # samples and bytes of each group

    def add(self, piece: Piece) -> None:
        """Add samples."""
        if not len(piece):
            return
        before = self.pieces[-1] if self.pieces else None
        if before is not None:  # prototypes are kept once
            layout = self.rerun.layout or ()
            shared = share_whole(piece.arguments, before.arguments, layout)
            piece = replace(piece, arguments=shared)
        self.pieces.append(piece)
        self._weigh(piece, before)
        for group in (0, 1):
            while self._full(group, self._count[group], self._used[group]):
                self._lower(group)
                self.thin()

    def thin(self) -> None:
        """Drop the samples that the choice would not have taken at its present rates."""
        # Put together first: work on the device does not grow with the number of batches then.
        self.pieces = list(self.calls(sum(map(len, self.pieces))))
        scale = np.array(self._choice.scale)
        self._keep(self.scores().numpy() < scale[self.integers().numpy()[:, 2]])
        self._each, self._count, self._used = [], [0, 0], [0.0, 0.0]
        for before, piece in zip((None, *self.pieces), self.pieces, strict=False):
            self._weigh(piece, before)

    def select(self, wanted: Tensor, more: Tensor) -> None:
        """Keep the ``wanted`` ones of all samples, ``(n,)``, and give each ``more`` integers."""
        parts = more.split([len(piece) for piece in self.pieces])
        self.pieces = [
            replace(piece, integers=torch.cat([piece.integers, integers], 1))
            for piece, integers in zip(self.pieces, parts, strict=True)
        ]
        self._keep(wanted.numpy())

    def _keep(self, wanted: np.ndarray) -> None:
        """Keep the ``wanted`` ones of all samples, ``(n,)`` bool."""
        found, start = [], 0
        for piece in self.pieces:
            rows = wanted[start : (start := start + len(piece))].nonzero()[0]
            if len(rows):
                found.append(self._some(piece, torch.from_numpy(rows)))
        self.pieces = found

    def integers(self) -> Tensor:
        """Those of all samples, ``(n, 5)``."""
        return _stacked([piece.integers for piece in self.pieces], np.zeros((0, 5), np.int64))

    def scores(self) -> Tensor:
        """Those of all samples, ``(n,)``."""
        return _stacked([piece.score for piece in self.pieces], np.zeros(0))

    def calls(self, size: int) -> Iterator[Piece]:
        """All samples, in as few calls of at most ``size`` as their shapes allow."""
        layout = self.rerun.layout or ()
        waiting: list[Piece] = []
        for piece in self.pieces:
            if waiting and not alike(waiting[-1].arguments, piece.arguments, layout):
                yield from self._full_calls(waiting, size, rest=True)
            waiting.append(piece)
            yield from self._full_calls(waiting, size, rest=False)
        yield from self._full_calls(waiting, size, rest=True)

    def split(self, piece: Piece, size: int) -> list[Piece]:
        """The samples of a piece in calls of at most ``size``."""
        return [
            self._some(piece, rows) for rows in torch.arange(len(piece), device="cpu").split(size)
        ]

    def _full_calls(self, waiting: list[Piece], size: int, *, rest: bool) -> Iterator[Piece]:
        """Calls of ``size`` samples from the front of ``waiting``; of all samples with ``rest``."""
        count = sum(map(len, waiting))
        if not count or (count < size and not rest):
            return
        whole = self._joined(waiting)
        waiting.clear()
        parts = torch.arange(count, device="cpu").split(size)
        for rows in parts:
            if len(rows) < size and not rest:
                waiting.append(self._some(whole, rows))
            else:
                yield self._some(whole, rows)

    def _joined(self, pieces: list[Piece]) -> Piece:
        if len(pieces) == 1:
            return pieces[0]
        return Piece(
            join([piece.arguments for piece in pieces], self.rerun.layout or ()),
            torch.cat([piece.prediction for piece in pieces]),
            _stacked([piece.integers for piece in pieces]),
            _stacked([piece.score for piece in pieces]),
        )

    def _some(self, piece: Piece, rows: Tensor) -> Piece:
        """Some samples of a piece, by increasing indices."""
        if len(rows) == len(piece):
            return piece
        there, here = sent(rows, piece.prediction.device), rows.numpy()
        return Piece(
            take(piece.arguments, self.rerun.layout or (), rows),
            piece.prediction.index_select(0, there),
            torch.from_numpy(piece.integers.numpy()[here]),
            torch.from_numpy(piece.score.numpy()[here]),
        )

    def _full(self, group: int, count: int, used: float) -> bool:
        """Whether so many samples of a group outgrow its room, or its half of the budget."""
        return count > self._choice.room[group] or (used > self._budget / 2 and count > 1)

    def _lower(self, group: int) -> None:
        """Lower the rate of a group to where what it leaves of these samples fits.

        That is known without touching the samples, which are dropped once.
        """
        each = np.repeat(self._each, [len(piece) for piece in self.pieces])
        mine = self.integers().numpy()[:, 2] == group
        score, each = self.scores().numpy()[mine], each[mine]
        full = True
        while full:
            self._choice.lower(group)
            kept = score < self._choice.scale[group]
            full = self._full(group, int(kept.sum()), float(each[kept].sum()))

    def _weigh(self, piece: Piece, before: Piece | None) -> None:
        """Add a piece to what each group has."""
        known = None if before is None else before.arguments
        judged = piece.prediction.numel() * piece.prediction.element_size()
        size = (judged + self.rerun.size_of(piece.arguments, known)) / len(piece)
        self._each.append(size)
        shared = int(piece.integers.numpy()[:, 2].sum())
        for group, mine in enumerate((len(piece) - shared, shared)):
            self._count[group] += mine
            self._used[group] += mine * size


def _stacked(parts: Sequence[Tensor], *first: np.ndarray) -> Tensor:
    """Rows one after another. In NumPy, which does small things faster than PyTorch."""
    return torch.from_numpy(np.concatenate([*first, *(part.numpy() for part in parts)]))
