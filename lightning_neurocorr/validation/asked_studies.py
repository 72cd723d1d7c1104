"""What options know of the studies that are asked for."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class AskedStudy(Protocol):
    """What an option has to know of a study; all of it is `lightning_neurocorr.studies.Study`."""

    name: str
    asks: tuple[Any, ...]

    def check(self, options: Any) -> None:
        """Raise where it cannot work."""

    def find(self, look: Any) -> Any:
        """What it found."""


def check_study(study: Any) -> None:
    """Raise where it is none, or where its name, how often it runs or its time cannot be."""
    if isinstance(study, type) or not isinstance(study, AskedStudy):
        raise TypeError(
            f"Expected `studies` to be a list of studies such as [Words()], but got {study!r:.200}."
            + (" Call it to make one." if isinstance(study, type) else "")
        )
    if not isinstance(study.name, str) or not study.name.strip():
        raise ValueError(
            f"Expected the `name` of a study to be a text, but {study!r:.200} has {study.name!r}."
        )
    every, budget = (getattr(study, n, None) for n in ("every_n_validations", "time_budget_s"))
    if every is not None and (type(every) is not int or every < 1):
        raise ValueError(
            f"Expected `every_n_validations` of the study {study.name!r} to be None or a whole "
            f"number of at least 1, but got {every!r}."
        )
    if budget is not None and (type(budget) not in (int, float) or not budget >= 0):
        raise ValueError(
            f"Expected `time_budget_s` of the study {study.name!r} to be None or seconds from 0 "
            f"on, but got {budget!r}."
        )
