"""What a study has before it when a validation is over."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lightning_neurocorr.activations import Pooling
from lightning_neurocorr.exemplars import Ranking
from lightning_neurocorr.functional.hashing import folds, hashed
from lightning_neurocorr.report import NeuronReport
from lightning_neurocorr.studies.again import RunAgain
from lightning_neurocorr.studies.heard import Heard
from lightning_neurocorr.studies.kept import KeptActivations
from lightning_neurocorr.studies.levelled import Levelled, level_by_rounding
from lightning_neurocorr.studies.refused import OutOfTimeError, RefusedError
from lightning_neurocorr.studies.subject import Subject
from lightning_neurocorr.validation import SampleTable, Validation
from lightning_neurocorr.validation.options import Options

T = TypeVar("T")


class Stored(NamedTuple):
    """Activations of some samples.

    Attributes:
        rows: Which rows of ``look.samples``, ``(n,)``.
        activations: float32 ``(n, D)`` by layer, on the CPU. A neuron that only rounding moves says
            its mean.
        metadata: What is known of them: values ``(n,)`` by column.
        unknown: Why nothing is known; empty where something is.
    """

    rows: Tensor
    activations: dict[str, Tensor]
    metadata: dict[str, Sequence[Any]]
    unknown: str = ""


@dataclass(eq=False)
class Look:
    """A validation that is over: its report, its samples, and the model to run again.

    Attributes:
        report: The report, with all that was found up to now. A study that has a place of its own
            in it (columns, pictures) fills it with :meth:`fill`.
        options: What the user asked for.
        samples: Every sample of all processes: seven integers each, ``(N,)``; see
            :class:`~lightning_neurocorr.validation.SampleTable`.
        subject: Model and data: fetches samples and runs them again.
        validation: What the validation found, over all processes.
        rankings: The strongest samples of every neuron, by layer.
        heard: The study's own listener, with what all processes heard; None if it did not listen.
        worked: What ``work`` of an :class:`EverywhereStudy` returned.
        device: Where processes can exchange tensors.
        process: Which this is.
        processes: How many there are.
        shows_progress: Whether long work shows a bar.
    """

    report: NeuronReport
    options: Options
    samples: SampleTable
    subject: Subject
    validation: Validation
    rankings: Mapping[str, Ranking] = field(default_factory=dict)
    heard: Any = None
    worked: Any = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    process: int = 0
    processes: int = 1
    shows_progress: bool = False
    _kept: KeptActivations = field(default_factory=KeptActivations)
    _untrained: KeptActivations = field(default_factory=KeptActivations)
    _rounding: dict[str, Tensor | None] = field(default_factory=dict)  # of the untrained copy
    _store: Any = None
    _made: dict[Hashable, Any] = field(default_factory=dict)
    _until: float | None = None

    def begin(self, heard: Any, store: Any, until: float | None) -> None:
        """Get ready for a study: what was heard for it, and when its time is up."""
        self.heard, self._store, self._until = heard, store, until

    # --- samples ---------------------------------------------------------------------------------

    @property
    def half(self) -> Tensor:
        """0 or 1 for each row of ``samples``: halves by hash, to choose on one and test on one."""
        return folds(self.samples.key)

    def drawn(self, most: int, among: Tensor | None = None, seed: int = 0) -> Tensor:
        """At most so many rows of ``samples``, by hash, in the order of the data set.

        Args:
            most: How many.
            among: Rows, or a mask ``(N,)``, to draw from; all by default.
            seed: Another seed draws others.
        """
        rows = torch.arange(len(self.samples.key), device="cpu")
        if among is not None:
            rows = rows[among]
        return rows[hashed(self.samples.key[rows], seed=seed).argsort()[:most]].sort().values

    def stored(self, least: int = 1, most: int | None = None) -> Stored:
        """The activations that were kept as the validation passed by, as ``stores`` asked for.

        Args:
            least: How many samples the study needs.
            most: How many it wants: more are kept where another study wants more.

        Raises:
            RefusedError: If fewer are there.
        """
        store = self._store
        n = 0 if store is None else len(store.numbers)
        if (there := len(self.samples.key)) < least:
            raise RefusedError(
                f"It needs {least:,} samples, but the validation had {there:,}. Take a larger "
                "validation set."
            )
        if store is None or n < least:
            raise RefusedError(
                f"Expected activations of at least {least:,} samples, but {n:,} were kept: they "
                "must fit into 256 MB. Name fewer layers."
            )
        order = self.samples.number.argsort()
        known = self.samples.number[order]
        numbers = store.numbers[:most]  # the first are drawn first
        rows = order[torch.searchsorted(known, numbers).clamp_max(max(len(known) - 1, 0))]
        layers = [name for name in self.report.layers if name in store.parts]
        parts = {name: store.parts[name] for name in layers}
        found = {n: (p[0] if len(p) == 1 else torch.cat(p))[:most] for n, p in parts.items()}
        told = {name: values[:most] for name, values in store.columns().items()}
        return Stored(rows, self._levelled(found), told, store.unknown)

    def once(self, what: Hashable, make: Callable[[], T]) -> T:
        """Something that several studies need, made for the first that asks.

        Args:
            what: Its name.
            make: Makes it.
        """
        if what not in self._made:
            self._made[what] = make()
        return self._made[what]

    # --- run samples again -----------------------------------------------------------------------

    def again(
        self,
        rows: Tensor,
        layers: Iterable[str] | None = None,
        pooling: Pooling | None = None,
        size: int = 64,
        untrained: int | None = None,
    ) -> Iterator[Heard]:
        """Run the model again on some rows of ``samples``: batches as a listener hears them.

        The predictions are logits, the baseline's answers and targets are class ids. Neurons that
        only rounding moved in the validation say their mean, where the pooling is the same.

        Args:
            rows: Which samples, ``(n,)``.
            layers: Which watched layers; all by default.
            pooling: As in the validation by default.
            size: Samples of a batch.
            untrained: Seed of weights as before training, to run the model with instead: what the
                architecture does by itself. Its answers are then other ones.

        Raises:
            ValueError: If samples cannot be fetched, or are answered otherwise than before.
        """
        self.subject.check_located(self.samples)
        self.check_rerun()
        names = self.report.layers if layers is None else tuple(layers)
        pooling = self.options.pooling if pooling is None else pooling
        correctness = self.options.advantage == "correctness"
        again = RunAgain(self.subject, self.samples, names, pooling, size, untrained, correctness)
        same = untrained is None and pooling == self.options.pooling
        for heard in again.batches(rows):
            yield replace(heard, activations=self._levelled(heard.activations)) if same else heard
        if untrained is not None:
            self._rounding |= again.rounding

    def check_rerun(self) -> None:
        """Refuse where the module cannot be run again; the report says so once.

        Raises:
            RefusedError: Saying why.
        """
        if why := self.subject.rerun.refused:
            text = f"No sample is run again: {why}."
            if text not in self.report.notes:
                self.fill(notes=[text])
            raise RefusedError(text)

    def activations(self, rows: Tensor, layers: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Activations float32 ``(n, D)`` by layer of some rows of ``samples``, on the CPU.

        They come from one run of the model for all studies: samples that were stored, or that
        another study has asked for, are not run again.

        Args:
            rows: Which samples, ``(n,)``.
            layers: Which watched layers; all by default.

        Raises:
            RefusedError: If samples cannot be run again, or their activations take more than
                256 MB.
        """
        sizes = dict(zip(self.report.layers, self.report.sizes, strict=True))
        wanted = sizes if layers is None else {name: sizes[name] for name in layers}
        if (found := self._from_store(rows, wanted)) is not None:
            return found
        if why := self._kept.refusal(len(rows), wanted):
            raise RefusedError(why)
        return self._kept.take(rows, wanted, self.again)

    def _from_store(self, rows: Tensor, layers: Iterable[str]) -> dict[str, Tensor] | None:
        """Activations that were stored as the validation passed by; None if some were not."""
        store = self._store
        if store is None or not len(store.numbers) or not all(n in store.parts for n in layers):
            return None
        numbers, order = self.samples.number[rows], store.numbers.argsort()
        known = store.numbers[order]
        at = torch.searchsorted(known, numbers).clamp_max(len(known) - 1)
        if not torch.equal(known[at], numbers):
            return None
        parts = {name: torch.cat(store.parts[name])[order[at]] for name in layers}
        return self._levelled(parts)

    def _levelled(self, activations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Activations as validated, where neurons that only rounding moves say their mean."""
        return self.once("constant neurons", lambda: Levelled.of(self.report))(activations)

    def untrained(self, rows: Tensor) -> dict[str, Tensor]:
        """What an untrained copy of the model says, float32 ``(n, D)`` by layer, on the CPU.

        It runs once on each sample, for all studies.

        Args:
            rows: Which rows of ``samples``, ``(n,)``.

        Raises:
            RefusedError: If samples cannot be run again, or their activations take more than
                256 MB.
        """
        if not self.samples.located:
            raise RefusedError("Samples cannot be run again: their positions are not known.")
        sizes = dict(zip(self.report.layers, self.report.sizes, strict=True))
        if why := self._untrained.refusal(len(rows), sizes):
            raise RefusedError(why)
        found = self._untrained.take(rows, sizes, self._run_untrained)
        return level_by_rounding(found, self._rounding)

    def _run_untrained(self, rows: Tensor, layers: Iterable[str]) -> Iterator[Heard]:
        batches = self.again(rows, layers, untrained=0)
        return self.progress(batches, "untrained copy", -(-len(rows) // 64))

    # --- time, and what the report has a place for -----------------------------------------------

    @property
    def out_of_time(self) -> bool:
        """Whether the study's time budget is used up: stop, and say what was done."""
        return self._until is not None and time.monotonic() > self._until

    def progress(self, work: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
        """Go through work with a bar where bars are shown.

        Raises:
            OutOfTimeError: When the time budget is used up.
        """
        hidden = not self.shows_progress
        for one in tqdm(work, desc=what, total=total, leave=False, disable=hidden):
            if self.out_of_time:
                raise OutOfTimeError("its time budget is used up")
            yield one

    def fill(
        self,
        columns: Mapping[str, np.ndarray] | None = None,
        notes: Sequence[str] = (),
        **fields: Any,
    ) -> None:
        """Put what the report has a place of its own for into it.

        Args:
            columns: Columns of the report ``(neurons,)``, by name.
            notes: Further remarks.
            **fields: Other fields of the report.
        """
        report = self.report
        self.report = replace(
            report,
            columns={**report.columns, **(columns or {})},
            notes=(*report.notes, *notes),
            **fields,
        )
