"""Forwards that are not the model's own: a baseline's, or ours for evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_aside: ContextVar[int] = ContextVar("aside", default=0)
# True while we make notes about a forward; hooks of every layer set it as `noting` does.
NOTING: ContextVar[bool] = ContextVar("noting", default=False)


@contextmanager
def aside() -> Iterator[None]:
    """Recorders opened outside do not count the forwards inside: a baseline's, or for evidence."""
    token = _aside.set(_aside.get() + 1)
    try:
        yield
    finally:
        _aside.reset(token)


class Aside:
    """The same, opened and closed by hand, in any order; closing twice is harmless."""

    def __init__(self) -> None:
        self._open = False

    def open(self) -> None:
        """From now on forwards do not count."""
        if not self._open:
            self._open = True
            _aside.set(_aside.get() + 1)

    def close(self) -> None:
        """They count again."""
        if self._open:
            self._open = False
            _aside.set(_aside.get() - 1)


# How many asides are open; a recorder counts forwards at the depth it was opened at.
depth: Callable[[], int] = _aside.get


class noting:  # noqa: N801 -- a class, as every hook opens one: a generator takes ten times as long
    """Operations inside are our notes about a forward, and no part of it: nobody follows them."""

    __slots__ = ("_token",)

    def __enter__(self) -> None:
        self._token = NOTING.set(True)

    def __exit__(self, *_: object) -> None:
        NOTING.reset(self._token)


# Whether somebody of ours makes notes, be it another callback or study.
is_noting: Callable[[], bool] = NOTING.get
