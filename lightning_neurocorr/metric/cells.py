"""Counts, sums and sums of squares of every neuron by class, outcome group and half, streamed.

Shapes: ``N`` samples of a batch, ``D`` neurons, ``R`` rows (classes).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_neurocorr.functional.devices import sent
from lightning_neurocorr.functional.stratified import CellMoments
from lightning_neurocorr.metric import on_device
from lightning_neurocorr.metric.on_device import SortedCells

HALVES, NUM_GROUPS = 2, 4
BYTES_PER_CLASS = 2 * HALVES * NUM_GROUPS * 8  # of one neuron: sums and sums of squares, float64

_BLOCK = 1 << 12  # neurons that are summed at once on the CPU, where they stay in cache


class Cells:
    """Sums over the samples of each row, outcome group and half.

    Args:
        neurons: ``D``.
        rows: ``R``, all of which are laid out: ``(R, 4, 2)`` cells.
        device: Where the sums live.
    """

    def __init__(self, neurons: int, rows: int, device: torch.device | str = "cpu") -> None:
        self.neurons, self.rows = neurons, rows
        wide: dict[str, Any] = {"dtype": torch.float64, "device": device}
        cells = rows * NUM_GROUPS * HALVES
        self.shift: Tensor | None = None
        self.scalars = torch.zeros(cells, 2, **wide)  # samples, and their advantage
        step = _BLOCK if self.scalars.device.type == "cpu" else neurons
        # A tensor per block: adding rows to a part of a wider one takes several times as long.
        self._blocks = [
            torch.zeros(2, cells, min(step, neurons - start), **wide)
            for start in range(0, neurons, step)
        ]

    @property
    def device(self) -> torch.device:
        """Where the sums live."""
        return self.scalars.device

    def add(
        self, parts: Sequence[Tensor], advantage: Tensor, row: Tensor, group: Tensor, half: Tensor
    ) -> None:
        """Add a batch.

        Args:
            parts: Activations ``(N, D_1)``, ``(N, D_2)``, ... whose neurons follow each other.
            advantage: ``(N,)``.
            row: The row of each sample, ``(N,)``.
            group: Its outcome group.
            half: 0 or 1.
        """
        row, group, half = (sent(x, self.device) for x in (row, group, half))
        cell = torch.add(half, torch.add(group, row, alpha=NUM_GROUPS), alpha=HALVES)
        parts = [part.detach().to(self.device) for part in parts]
        if self.shift is None:  # of a constant neuron exactly its constant
            self.shift = torch.cat([part[0].double() for part in parts])
        advantage = advantage.detach().to(self.device, torch.float64)
        found = on_device.sort_cells(cell, advantage, self.scalars.shape[0])
        if found is None:
            values = torch.stack([torch.ones_like(advantage), advantage], 1)
            self.scalars.index_add_(0, cell, values)
            self._add_blocks(parts, cell, self.shift)
        else:
            self.scalars += found.scalars
            done = self._add_on_device(parts, found, self.shift)
            self._add_blocks(parts, cell, self.shift, done)

    def _add_on_device(self, parts: Sequence[Tensor], found: SortedCells, shift: Tensor) -> int:
        """Add a batch in kernels, as far as they can read it; how many neurons that are."""
        (whole,), done = self._blocks, 0  # one tensor, as on every device but the CPU
        for part in parts:
            slot = slice(done, done + part.shape[1])
            if not on_device.add_cells_(whole[..., slot], part, shift[slot], found):
                break
            done = slot.stop
        return done

    def _add_blocks(
        self, parts: Sequence[Tensor], cell: Tensor, shift: Tensor, done: int = 0
    ) -> None:
        """Add the neurons of a batch behind those that are done."""
        stop = 0
        for block in self._blocks:
            first, stop = stop, stop + block.shape[2]
            start = max(first, done)
            if start < stop:
                sums, squares = block[..., start - first :]
                y = _neurons(parts, start, stop).sub_(shift[start:stop])
                sums.index_add_(0, cell, y)
                squares.index_add_(0, cell, y.mul_(y))

    def take(self, other: Cells, slots: Sequence[tuple[slice, slice]]) -> None:
        """Copy neurons of another one with the same rows, and the samples that it has seen.

        Args:
            other: The other one.
            slots: Where neurons go, and where they come from.
        """
        if other.shift is None:
            return
        mine, theirs = torch.cat(self._blocks, 2), torch.cat(other._blocks, 2)
        shift = mine.new_zeros(self.neurons) if self.shift is None else self.shift
        for to, source in slots:
            mine[:, :, to] = theirs[:, :, source].to(self.device)
            shift[to] = other.shift[source].to(self.device)
        self.shift, self.scalars = shift, other.scalars.to(self.device, copy=True)
        self._blocks = [block.contiguous() for block in mine.split(self._widths(), 2)]

    def moments(self, order: Sequence[int] | None, by_class: bool) -> list[CellMoments]:
        """The sums of each half over all processes, all of which must call it, once.

        They are handed over, because a copy would double the memory: no batch can follow.

        Args:
            order: Which row comes where, -1 for one that this process lacks; None adds all up.
            by_class: Whether rows are classes or pools of like ones.
        """
        scalars = self._arranged(self.scalars, order)
        sums = scalars.new_empty(2, *scalars.shape[:-1], self.neurons)
        for part in sums.split(self._widths(), -1):
            part.copy_(self._arranged(self._blocks.pop(0), order))
        shift = sums.new_zeros(self.neurons) if self.shift is None else self.shift
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            shift = _common(shift, self.shift is not None, scalars, sums)
        scalars, shift = scalars.cpu().numpy(), shift.cpu().numpy()
        return [
            CellMoments(
                scalars[:, :, half, 0], scalars[:, :, half, 1], shift,
                sums[0][:, :, half], sums[1][:, :, half], by_class,
            )
            for half in range(HALVES)
        ]  # fmt: skip

    def _widths(self) -> list[int]:
        """Neurons of each block."""
        return [block.shape[2] for block in self._blocks]

    def _arranged(self, values: Tensor, order: Sequence[int] | None) -> Tensor:
        """Rows in their order as ``(..., R, 4, 2, n)``, from ``(..., cells, n)``."""
        values = values.unflatten(-2, (self.rows, NUM_GROUPS, HALVES))
        if order is None:
            return values.sum(-4, keepdim=True)
        if list(order) == list(range(len(order))):
            return values.narrow(-4, 0, len(order))  # as they lie
        index = torch.tensor(order, dtype=torch.long, device=self.device)
        found = values.index_select(-4, index.clamp_min(0))
        return found * (index >= 0).view(-1, 1, 1, 1) if min(order, default=0) < 0 else found


def _neurons(parts: Sequence[Tensor], start: int, stop: int) -> Tensor:
    """Activations of neurons ``start`` to before ``stop`` as a new float64 tensor."""
    found = parts[0].new_empty(parts[0].shape[0], stop - start, dtype=torch.float64)
    at = 0
    for part in parts:
        first, last = max(start, at), min(stop, at + part.shape[1])
        if first < last:
            found[:, first - start : last - start] = part[:, first - at : last - at]
        at += part.shape[1]
    return found


def _common(shift: Tensor, known: bool, scalars: Tensor, sums: Tensor) -> Tensor:
    """Bring the sums of all processes to one shift and add them up, in place; the shift."""
    rank = torch.distributed.get_rank()
    source = torch.tensor(rank if known else -1, device=shift.device)
    torch.distributed.all_reduce(source, torch.distributed.ReduceOp.MAX)
    common = shift.clone()
    if int(source) >= 0:
        torch.distributed.broadcast(common, int(source))
    if known:
        gap, n = shift - common, scalars[..., :1]
        sums[1] += gap * (2 * sums[0] + n * gap)
        sums[0] += n * gap
    for part in (scalars, sums):
        torch.distributed.all_reduce(part)
    return common
