"""Forwards that are not the model's own: a baseline's, or ours for evidence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_aside: ContextVar[int] = ContextVar("aside", default=0)
_noting: ContextVar[bool] = ContextVar("noting", default=False)


@contextmanager
def aside() -> Iterator[None]:
    """Recorders opened outside do not count the forwards inside: a baseline's, or for evidence."""
    token = _aside.set(_aside.get() + 1)
    try:
        yield
    finally:
        _aside.reset(token)


def depth() -> int:
    """How many asides are open; a recorder counts forwards at the depth it was opened at."""
    return _aside.get()


@contextmanager
def noting() -> Iterator[None]:
    """Operations inside are our notes about a forward, and no part of it: nobody follows them."""
    token = _noting.set(True)
    try:
        yield
    finally:
        _noting.reset(token)


def is_noting() -> bool:
    """Whether somebody of ours makes notes, be it another callback or study."""
    return _noting.get()
