"""Forwards that are not the model's own: a baseline's, or ours for evidence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_aside: ContextVar[bool] = ContextVar("aside", default=False)


@contextmanager
def aside() -> Iterator[None]:
    """No recorder counts the forwards inside: a baseline's, or our own for evidence."""
    token = _aside.set(True)
    try:
        yield
    finally:
        _aside.reset(token)


def is_aside() -> bool:
    """Whether the current forward is one that no recorder counts."""
    return _aside.get()
