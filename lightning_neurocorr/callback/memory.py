"""What one validation leaves to the next; what of it a checkpoint keeps, without pickle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from lightning_neurocorr.callback.faults import Faults
from lightning_neurocorr.callback.same_places import SamePlaces
from lightning_neurocorr.isolation.randomness import PrivateRandomness
from lightning_neurocorr.report import NeuronReport
from lightning_neurocorr.report.history import HistoryEntry

if TYPE_CHECKING:
    from lightning_neurocorr.activations import SitesFound
    from lightning_neurocorr.validation.predictions import Reader
    from lightning_neurocorr.validation.rerun import Learnt

_ARRAYS = ("r", "index")


@dataclass
class Memory:
    """What a callback knows of the validations before.

    Attributes:
        faults: What went wrong, and whether a validation has worked.
        places: Whether samples keep their places.
        randomness: Random numbers of our own.
        reader: How predictions are read in this run.
        looked: Whether the first batch of this run was looked at.
        found: Where neurons are read, known from the first batch on.
        learnt: How samples are run again, known from the first batch on.
        rehearsed: What the sanity check has shown of the baseline.
        report: Of the last validation, or None.
        history: One entry per validation.
        scalars: What the last report logs.
        class_outcomes: Outcome groups by class of the last report.
        validations: How many there were.
        in_fits: How many of them were part of a fit.
        last_step: The last step at which a report was written.
    """

    faults: Faults
    places: SamePlaces
    randomness: PrivateRandomness = field(default_factory=PrivateRandomness)
    reader: Reader | None = None
    looked: bool = False
    found: SitesFound | None = None
    learnt: Learnt | None = None
    rehearsed: tuple[str, ...] = ()
    report: NeuronReport | None = None
    history: list[HistoryEntry] = field(default_factory=list)
    scalars: dict[str, float] = field(default_factory=dict)
    class_outcomes: torch.Tensor | None = None
    validations: int = 0
    in_fits: int = 0
    last_step: int = -1

    def count(self, *, fitting: bool) -> None:
        """Another validation starts."""
        self.validations += 1
        self.in_fits += fitting

    def state_dict(self) -> dict[str, Any]:
        """What goes into a checkpoint: plain data and tensors."""
        return {
            "history": pack_history(self.history),
            "validations": self.validations,
            "validations_in_fits": self.in_fits,
            "last_step": self.last_step,
            "class_outcomes": self.class_outcomes,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where a checkpoint stopped."""
        self.history = unpack_history(state_dict["history"])
        self.validations = state_dict["validations"]
        self.in_fits = state_dict.get("validations_in_fits", self.validations)
        self.last_step = state_dict["last_step"]
        self.class_outcomes = state_dict["class_outcomes"]


def pack_history(history: Sequence[HistoryEntry]) -> list[dict[str, Any]]:
    """One dict per validation."""
    return [_converted(entry.to_dict(), torch.from_numpy) for entry in history]


def unpack_history(entries: Iterable[Mapping[str, Any]]) -> list[HistoryEntry]:
    """The reverse of :func:`pack_history`."""
    return [HistoryEntry.from_dict(_converted(entry, torch.Tensor.numpy)) for entry in entries]


def _converted(entry: Mapping[str, Any], convert: Any) -> dict[str, Any]:
    arrays = {name: None if entry[name] is None else convert(entry[name]) for name in _ARRAYS}
    return {**entry, **arrays}
