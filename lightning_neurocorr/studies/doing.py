"""Do one study: guarded, within its time; its finding is there afterwards, whatever happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from lightning_neurocorr.isolation.guests import guest
from lightning_neurocorr.isolation.randomness import preserved_randomness
from lightning_neurocorr.report.finding import Finding, missing
from lightning_neurocorr.studies.look import Look
from lightning_neurocorr.studies.protocol import EverywhereStudy, Listener, Study
from lightning_neurocorr.studies.refused import OutOfTimeError, RefusedError
from lightning_neurocorr.studies.store import Store

Guard = Callable[[str], AbstractContextManager[None]]

_LONGEST = 1000  # characters of an error that are kept

_UNHEARD = (
    "it listens to the validation, and nothing said beforehand that this one would be the last of "
    "the fit. Call trainer.validate, or say with every_n_validations when to listen"
)
NOT_NOW = (
    "it comes at the end of a fit and on trainer.validate; say with every_n_validations if it is "
    "to come more often"
)


@dataclass(eq=False)
class HeardByStudies:
    """What listening to a validation gave.

    Attributes:
        model: The whole model, whose state studies must leave alone; None where none was listened
            to.
        listeners: By the study's name, with what all processes heard.
        missing: Why a study has nothing to find, by its name.
        store: Activations that were asked for.
        listened: Whether studies could listen at all.
    """

    model: nn.Module | None = None
    listeners: Mapping[str, Listener] = field(default_factory=dict)
    missing: Mapping[str, Finding] = field(default_factory=dict)
    store: Store | None = None
    listened: bool = False


def do(study: Study, look: Look, told: HeardByStudies, guard: Guard) -> None:
    """Do a study; ``look.report`` has its finding afterwards.

    Args:
        study: What to do.
        look: The validation that is over.
        told: What was heard of it.
        guard: Says what a fault means.
    """
    found = told.missing.get(study.name) or _unheard(study, told)
    if found is None and "advantage" in study.needs and look.report.message:
        found = missing(study.title, study.about, "refused", look.report.message)
    if found is None:
        found = _done(study, look, told, guard)
    look.fill(studies={**look.report.studies, study.name: found})


def do_everywhere(
    study: EverywhereStudy, look: Look, guard: Guard, agreed: Callable[[bool], bool]
) -> None:
    """Do a study that every process works on; each must call this.

    Args:
        study: What to do.
        look: The validation that is over.
        guard: Says what a fault means.
        agreed: From whether this process is fine to whether all are.
    """
    told, worked, why = HeardByStudies(), False, "another process could not do its part"
    if not (fits := "advantage" not in study.needs or not look.report.message):
        do(study, look, told, guard)
        return
    with guard(study.working):
        try:
            look.begin(None, None, None)
            with preserved_randomness(look.device, seed=0), guest(look.subject.module):
                look.worked = study.work(look)
            worked = fits
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise
    if agreed(worked):
        do(study, look, told, guard)
    else:
        found = missing(study.title, study.about, "not_finished", why[:_LONGEST])
        look.fill(studies={**look.report.studies, study.name: found})
    look.worked = None


def not_now(studies: Any) -> dict[str, Finding]:
    """The findings of studies that come later."""
    return {
        study.name: missing(study.title, study.about, "not_asked", NOT_NOW) for study in studies
    }


def _unheard(study: Study, told: HeardByStudies) -> Finding | None:
    listens = type(study).listen is not Study.listen or study.stores
    if not listens or told.listened:
        return None
    return missing(study.title, study.about, "not_finished", _UNHEARD)


def _done(study: Study, look: Look, told: HeardByStudies, guard: Guard) -> Finding:
    """The finding, or why there is none; a report that was half filled is as before."""
    before, budget = look.report, study.time_budget_s
    found: Finding | None = None
    fault = "it was stopped"
    look.begin(
        told.listeners.get(study.name),
        told.store,
        None if budget is None else time.monotonic() + budget,
    )
    with guard(study.doing):
        try:
            with (
                preserved_randomness(look.device, seed=0),
                guest(told.model or look.subject.module),
            ):
                found = _checked(study, study.find(look))
        except RefusedError as error:
            return missing(study.title, study.about, "refused", str(error))
        except OutOfTimeError as error:
            fault = str(error)
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
            raise
    if found is None:
        look.report = before
    return found or missing(study.title, study.about, "not_finished", fault[:_LONGEST])


def _checked(study: Study, found: Any) -> Finding:
    if not isinstance(found, Finding):
        raise TypeError(
            f"Expected `find` of the study {study.name!r} to return a Finding, but got "
            f"{found!r:.80}."
        )
    return found if found.title else replace(found, title=study.title)
