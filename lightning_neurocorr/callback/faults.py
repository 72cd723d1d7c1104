"""When a fault of ours is an error and when it is a warning."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LONGEST = 1000  # characters of an error that are shown; PyTorch's go on for pages

# A warning points at what called these: the line that said trainer.fit.
_BETWEEN = {"lightning_neurocorr", "contextlib", "torch", "lightning", "pytorch_lightning"}


class Faults:
    """Before one whole validation has worked a fault is an error, after it a warning.

    Args:
        name: The callback's name, for warnings.

    Attributes:
        trusted: Whether one whole validation has worked.
        broken: Whether something failed in the validation that is going on.
        happened: What could not be done, and the error, since it was last cleared.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.trusted = False
        self.broken = False
        self.happened: dict[str, str] = {}
        self._said: set[str] = set()

    @contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """A fault inside breaks this validation, and ends the run before the first has worked."""
        try:
            yield
        except Exception as error:
            self.broken = True
            if not self.trusted:
                raise
            self._warn(what, error)

    @contextmanager
    def forgiven(self, what: str) -> Iterator[None]:
        """A fault inside is a warning."""
        try:
            yield
        except Exception as error:  # noqa: BLE001
            self._warn(what, error)

    def say(self, text: str) -> None:
        """Warn, once for each text."""
        if text not in self._said:
            self._said.add(text)
            warnings.warn(text, stacklevel=_levels_to_the_user())

    def _warn(self, what: str, error: Exception) -> None:
        text = str(error)
        text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
        self.happened[what] = f"{type(error).__name__}: {text}"
        self.say(
            f"NeuronAdvantage {self.name!r} could not {what} and goes on without: "
            f"{type(error).__name__}: {text}"
        )


def _levels_to_the_user() -> int:
    """The ``stacklevel``, seen from the caller, of the first frame that is not in between."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _BETWEEN:
            return level
        frame, level = frame.f_back, level + 1
    return level
