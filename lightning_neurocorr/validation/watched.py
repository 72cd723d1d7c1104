"""What is accumulated for every watched neuron of a validation."""

from __future__ import annotations

import warnings
from collections.abc import Container, Iterable, Mapping

import torch
from torch import Tensor

from lightning_neurocorr.exemplars import Exemplars, Ranking
from lightning_neurocorr.exemplars.entries import POSITION
from lightning_neurocorr.functional import Moments, correlation
from lightning_neurocorr.functional.devices import sent
from lightning_neurocorr.functional.side_by_side import joined
from lightning_neurocorr.metric import Cells, NeuronAdvantageCorrelation
from lightning_neurocorr.metric.packing import Merge
from lightning_neurocorr.report.layout import Layout
from lightning_neurocorr.validation.batches import JudgedBatch


class Watched:
    """Moments and exemplars of several layers, whose neurons follow each other in one state.

    So a hundred small layers cost little more than one, in every batch and where processes meet.

    Args:
        sizes: Neurons by layer.
        device: Where the states lie.
        rows: Rows of the table of classes; 0 where there are no outcome groups.
        exemplars: How many of the strongest samples to keep per neuron; 0 is none.
    """

    def __init__(
        self, sizes: Mapping[str, int], device: torch.device, rows: int, exemplars: int
    ) -> None:
        self.sizes, neurons = dict(sizes), sum(sizes.values())
        self.slots = Layout.of(sizes).slices  # where the neurons of each layer lie
        self.metric = NeuronAdvantageCorrelation(neurons, folds=2, count_active=True).to(device)
        self.cells = Cells(neurons, rows, self.metric.state.device) if rows else None
        self.exemplars = Exemplars(neurons, k=exemplars).to(device) if exemplars else None

    def add(
        self, activations: Mapping[str, Tensor], judged: JudgedBatch, row: Tensor | None = None
    ) -> None:
        """Add a batch.

        Args:
            activations: ``(N, D)`` of each layer.
            judged: The samples.
            row: The row of each sample's class in the table, ``(N,)``.
        """
        device = self.metric.device
        parts = [activations[name] for name in self.sizes]
        parts = [part if part.device == device else part.to(device) for part in parts]
        parts = joined(parts)  # once for all that read them
        self.metric.update(parts, judged.advantage, fold=judged.half)
        if self.cells is not None and judged.outcome is not None and row is not None:
            self.cells.add(parts, judged.advantage, row, judged.outcome, judged.half)
        if self.exemplars is not None:
            self.exemplars.update(parts, judged.number, judged.outcome, judged.target)

    def only(self, names: Container[str]) -> Watched | None:
        """The same without other layers, which would cost as much as before; None if none stay."""
        sizes = {name: size for name, size in self.sizes.items() if name in names}
        if len(sizes) == len(self.sizes):
            return self
        if not sizes:
            return None
        kept = 0 if self.exemplars is None else self.exemplars.k
        rows = 0 if self.cells is None else self.cells.rows
        rest = Watched(sizes, self.metric.device, rows, kept)
        rest.take(self)
        return rest

    def illustrating(self, neurons: Tensor, shown: int) -> Tensor:
        """Numbers of the samples that drive some neurons most, overall and among ``only_model``."""
        if self.exemplars is None:
            return torch.zeros(0, dtype=torch.int64, device=self.metric.device)
        return self.exemplars.state[POSITION][:, neurons, :shown].flatten()

    def likely(self, most: int, expected: Iterable[tuple[str, int]]) -> Tensor:
        """Neurons that a report is likely to show, ``(<= most,)``; nothing waits for the device.

        Args:
            most: How many.
            expected: Layer and unit of those that come first, from an earlier validation.
        """
        known = [self.slots[name].start + unit for name, unit in expected if name in self.slots]
        known = known[:most]
        layout = self.metric.layout
        local = layout.unpack(Merge(layout)(self.metric.state[:, None])[0])
        r = correlation(local).nan_to_num(-2.0)
        device = self.metric.device
        first = sent(torch.tensor(known, dtype=torch.int64, device="cpu"), device)
        best = r.topk(min(most - len(known), len(r))).indices
        return torch.cat([first, sent(best, device)])

    # --- the end of a pass ----------------------------------------------------------------------

    def take(self, other: Watched) -> None:
        """Copy the layers that another one has too, and the samples that it has seen."""
        layout, source = self.metric.layout, other.metric.layout
        layout.head(self.metric.state).copy_(source.head(other.metric.state))
        mine, theirs = self.slots, other.slots
        for name in mine.keys() & theirs.keys():
            rows = source.rows(other.metric.state)[..., theirs[name]]
            layout.rows(self.metric.state)[..., mine[name]] = rows.to(self.metric.state.device)
            if self.exemplars is not None and other.exemplars is not None:
                entries = other.exemplars.state[:, :, theirs[name]]
                self.exemplars.state[:, :, mine[name]] = entries.to(self.exemplars.state.device)
        if self.cells is not None and other.cells is not None:
            shared = [(mine[name], theirs[name]) for name in mine.keys() & theirs.keys()]
            self.cells.take(other.cells, shared)

    def sums(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Samples ``()`` and the sum of each neuron ``(D,)`` by layer, of this process alone."""
        own = self.metric.layout.unpack(self.metric.state)
        n, total = own.n.sum(), own.n @ own.mean
        parts = total.split(list(self.sizes.values()))
        return {name: (n, part) for name, part in zip(self.sizes, parts, strict=True)}

    def moments(self) -> tuple[Moments, list[Moments]]:
        """Moments of all samples and of each half, over all processes, which all must call it.

        They are on the CPU.
        """
        return self.metric.moments("cpu")

    def rankings(self) -> dict[str, Ranking]:
        """The strongest samples by layer, over all processes, which all must call it."""
        if self.exemplars is None:
            return {}
        with warnings.catch_warnings():  # a process without samples still has to merge
            warnings.filterwarnings("ignore", ".*before the ``update`` method.*")
            entries = self.exemplars.compute().entries
        return {name: Ranking(entries[:, :, slot]) for name, slot in self.slots.items()}
