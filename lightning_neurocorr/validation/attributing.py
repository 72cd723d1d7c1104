"""Attribution of a validation: samples are chosen as they pass and attributed at its end.

Only then is it known what the baseline said on the others: the rival on a sample that both get
right is the wrong answer to an ``only_model`` sample of the same class.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr import functional as F
from lightning_neurocorr.activations import Place
from lightning_neurocorr.attribution import (
    Attribution,
    AttributionColumns,
    AttributionSums,
    SampleChoice,
    balanced,
    match_by_class,
)
from lightning_neurocorr.functional.devices import sent
from lightning_neurocorr.functional.hashing import hashed
from lightning_neurocorr.validation.arriving import Late, on_its_way
from lightning_neurocorr.validation.batches import JudgedBatch
from lightning_neurocorr.validation.full_passes import in_full_passes
from lightning_neurocorr.validation.processes import gather_objects, gather_rows, running
from lightning_neurocorr.validation.rerun import Arguments, Rerun
from lightning_neurocorr.validation.rerun.first_answers import FirstAnswers, FirstForward
from lightning_neurocorr.validation.rerun.module import NOT_AGAIN
from lightning_neurocorr.validation.waiting import Piece, Waiting

NO_RIVAL = "samples have sets of labels, and no class beside a rival"


class Source(NamedTuple):
    """What it takes to run samples of a batch again.

    Attributes:
        rerun: Runs the model.
        layers: Where the watched layers are read, by name.
        arguments: From rows of the batch without padding to the model's arguments; of all of them
            with None.
    """

    rerun: Rerun
    layers: Mapping[str, Place]
    arguments: Callable[[Tensor | None], Arguments]


class Readiness(NamedTuple):
    """What a process can attribute.

    Attributes:
        refused: Why nothing, or empty.
        scale: At which rates it has thinned out its samples, see :class:`SampleChoice`.
        samples: How many it was offered.
    """

    refused: str
    scale: Sequence[float]
    samples: int


class Taken(NamedTuple):
    """What attribution is from.

    Attributes:
        wins: So many ``only_model`` samples.
        paired: So many of them have a partner of ``both``.
        spared: No more were wanted, as other validations follow.
    """

    wins: int
    paired: int
    spared: bool = False


@dataclass(frozen=True)
class Attributed:
    """The *used* column of a validation.

    Attributes:
        columns: By layer.
        notes: Why it is missing, of all layers or of some.
        taken: How many samples it is from; None where it is missing.
    """

    columns: Mapping[str, AttributionColumns] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    taken: Taken | None = None


_ONE_WAY = (
    "With two classes, of which the baseline takes only one for the other, nothing shows whether a "
    "neuron that is called used sees what the baseline lacks, or what misleads it."
)


class Attributing:
    """Attributes the samples of one validation that tell model and baseline apart, up to a cap.

    Args:
        settings: Settings of the *used* column; None is none.
        class_outcomes: Samples per class and outcome group of an earlier validation, ``(C, 4)``.
        total: Samples that all processes are going to see, where that is known.
        processes: How many there are.
        sparing: Take no more than a share of the samples.

    Attributes:
        refused: Why there is none in this validation, or empty.
    """

    def __init__(
        self,
        settings: Attribution | None,
        class_outcomes: Tensor | None = None,
        total: int | None = None,
        processes: int = 1,
        *,
        sparing: bool = False,
    ) -> None:
        self.settings = settings
        self.refused = ""
        self._processes = processes
        self._sparing, self._offered = sparing, 0
        self._choice = SampleChoice(
            settings or Attribution(), total if sparing else None, class_outcomes, processes
        )
        self._waiting: Waiting | None = None
        self._late: Late | None = None
        self._notes: tuple[str, ...] = ()
        self._layers: Mapping[str, Place] = {}
        self._size = 1  # of the loader's batches

    def refuse(self, reason: str) -> None:
        """Say why there is no attribution in this validation; the first reason stays."""
        self.refused = self.refused or reason

    def add(self, judged: JudgedBatch, source: Source) -> None:
        """Keep the samples of a batch that are attributed when the pass has ended, up to a cap."""
        target, outcome, answer = judged.target, judged.outcome, judged.answer
        self._offered += len(judged)
        if self.settings is None or self.refused or target is None:
            return
        if outcome is None or answer is None:
            return
        if self._waiting is None:
            budget = self.settings.input_bytes // self._processes
            self._waiting = Waiting(self._choice, budget, source.rerun)
            self._layers = source.layers
        self._settle()
        batch = judged.batch
        self._size = max(self._size, len(judged))
        told = torch.stack([x.long() for x in (outcome, target, answer, judged.half)])
        late = Late(batch.keys, on_its_way(told), source.arguments, batch.prediction)
        if told.device.type == "cpu":
            self._choose(late)
        else:  # what is chosen is not known before the device comes to it: do not wait for it
            self._late = late.kept(source.rerun)

    def _settle(self) -> None:
        """Choose from the batch before, of which all is known by now."""
        late, self._late = self._late, None
        if late is not None:
            self._choose(late)

    def _choose(self, late: Late) -> None:
        told, draw = late.told(), hashed(late.keys.cpu(), seed=1).numpy()
        rows, group, score = self._choice(told[1], told[0], torch.from_numpy(draw / 2.0**63))
        if self._waiting is None or not len(rows):
            return
        chosen = rows.numpy()
        _, target, answer, half = told.numpy()[:, chosen]
        columns = (draw[chosen], target, group.numpy(), answer, half)
        there = sent(rows, late.prediction.device)
        prediction = late.prediction.index_select(0, there)
        integers = torch.from_numpy(np.stack(columns, 1))
        self._waiting.add(Piece(late.arguments(rows), prediction, integers, score))

    # --- the end of a pass; every process must come here ----------------------------------------

    def readiness(self) -> Readiness:
        """What other processes must know."""
        self._settle()
        reason = self.refused
        if not reason and self._waiting is not None:
            reason = self._waiting.rerun.judge()
        return Readiness(reason, self._choice.scale, self._offered)

    @torch.inference_mode(False)
    @torch.no_grad()
    def finish(
        self,
        everyone: Sequence[Readiness],
        centres: Mapping[str, np.ndarray],
        device: torch.device,
    ) -> Attributed:
        """Columns from the samples of all processes; it can be called once.

        Args:
            everyone: What each process can attribute.
            centres: What activations are compared with, ``(D,)`` by layer: their means.
            device: Where sums of all processes can be added up.
        """
        settings, waiting, layers = self.settings, self._waiting, self._layers
        self._waiting, self._layers = None, {}  # they hold on to inputs and the model
        if settings is None:
            return Attributed()
        refused = next((one.refused for one in everyone if one.refused), "")
        if not refused and centres:
            rates = zip(*(one.scale for one in everyone), strict=True)
            self._choice.scale = [min(of_group) for of_group in rates]
            limit = settings.max_samples
            if self._sparing:
                limit = settings.limit(sum(one.samples for one in everyone))
                self._choice.narrow(limit)
            taken = self._paired(waiting, device)
            taken = taken._replace(spared=taken.wins == limit < settings.max_samples)
            sums = AttributionSums(centres, taken.paired, settings, device)
            why = "" if waiting is None else self._attribute(sums, waiting, layers, settings)
            everywhere = gather_objects((why, sums.problems))
            refused = next((why for why, _ in everywhere if why), "")
            if not refused:
                problems = {name: why for _, some in everywhere for name, why in some.items()}
                notes = (*self._notes, *_left_out(problems, centres))
                return Attributed(_summed(sums).compute(), notes, taken)
        # Samples of some processes only would be a biased choice.
        columns = AttributionSums(centres, 0, settings).compute() if centres else {}
        notes = (f"No attribution: {refused.rstrip('.')}.",) if refused else ()
        return Attributed(columns, notes)

    def _paired(self, waiting: Waiting | None, device: torch.device) -> Taken:
        """Give every sample its rival and its pair, over all processes.

        Pairs are numbered in the order of their hashes. Samples of ``both`` without a partner are
        dropped.
        """
        if waiting is not None:
            waiting.thin()
        mine = torch.zeros(0, 6, dtype=torch.long, device="cpu")
        if waiting is not None:  # the bits of positive floats are in the order of these
            scores = waiting.scores().view(torch.int64)
            mine = torch.cat([waiting.integers(), scores[:, None]], 1)
        everyone, at = gather_rows(mine, device)
        order = everyone[:, 0].argsort(stable=True)
        _, target, group, answer, _, score = everyone[order].T
        wanted = _lowest(score, group, self._choice.wanted)
        outcome = torch.where(group == 0, F.ONLY_MODEL, F.BOTH).where(wanted, F.NEITHER)
        partner = match_by_class(target, outcome)
        wins = (outcome == F.ONLY_MODEL).nonzero().flatten()
        wins, shared = wins[partner >= 0], partner[partner >= 0]
        weight = balanced(target[wins], answer[wins])
        if len(wins) and not weight.any() and len(torch.cat([target, answer]).unique()) == 2:
            self._notes = (_ONE_WAY,)
        rival = torch.where(group == 0, answer, -1)
        rival[shared] = answer[wins]
        pair = torch.full_like(rival, -1)
        pair[wins] = pair[shared] = torch.arange(len(wins), device="cpu")
        needed = ((group == 0) & wanted) | (pair >= 0)
        bits = torch.zeros_like(rival)
        bits[shared] = weight.view(torch.int64)
        found = torch.empty(len(order), 4, dtype=torch.long, device="cpu")
        found[order] = torch.stack([rival, pair, bits, needed.long()], 1)
        found = found[at : at + len(mine)]
        if waiting is not None:
            waiting.select(found[:, 3] > 0, found[:, :3])
        return Taken(len(partner), len(wins))

    def _attribute(
        self,
        sums: AttributionSums,
        waiting: Waiting,
        layers: Mapping[str, Place],
        settings: Attribution,
    ) -> str:
        """Run the samples of this process again; why that cannot be done, or empty."""
        rerun, said = waiting.rerun, FirstAnswers(waiting.rerun)

        def add(piece: Piece) -> None:
            forward = FirstForward(rerun, piece.arguments)
            _, target, group, _, fold, rival, pair, bits = piece.integers.T
            weight = bits.contiguous().view(torch.float64)
            here = piece.prediction.device
            target, rival = (sent(part, here) for part in (target, rival))
            sums.update(forward, layers, target, rival, group, fold, pair, weight)
            said.add(forward, piece.prediction)

        try:
            with rerun.undisturbed():
                in_full_passes(add, waiting, layers, settings, self._size, sums.neurons)
                return NOT_AGAIN if said.differ() else ""
        except Exception as error:  # noqa: BLE001 -- other processes wait for the sums
            text = str(error).strip().split("\n")[0][:300]
            return f"running samples again failed with {type(error).__name__}: {text}"


def _summed(sums: AttributionSums) -> AttributionSums:
    """Sums over all processes."""
    if running():
        for tensor in sums.tensors():
            torch.distributed.all_reduce(tensor)
    return sums


def _left_out(problems: Mapping[str, str], layers: Container[str]) -> tuple[str, ...]:
    return tuple(
        f"No attribution for layer {name}: {why}."
        for name, why in problems.items()
        if name in layers
    )


def _lowest(score: Tensor, group: Tensor, wanted: tuple[int, int]) -> Tensor:
    """Which samples are among those ``wanted`` with the lowest score in their group, ``(n,)``."""
    found = torch.zeros(len(score), dtype=torch.bool, device="cpu")
    for label, count in enumerate(wanted):
        rows = (group == label).nonzero().flatten()
        found[rows[score[rows].argsort(stable=True)[:count]]] = True
    return found
