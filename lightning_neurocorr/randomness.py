"""Keep the user's random streams untouched: what we draw comes from a stream of our own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class PrivateRandomness:
    """A random stream that Python, NumPy and torch switch to in a ``with``.

    Entering again goes on where the last ``with`` stopped, so that a random baseline draws fresh
    numbers for every batch while training draws what it would draw without us.

    Args:
        seed: Where the stream starts.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._own: dict[str, Any] | None = None

    @contextmanager
    def __call__(self, device: torch.device | None = None) -> Iterator[None]:
        """Switch the generators of the CPU and of ``device``, and back at the end."""
        cuda = device if device is not None and device.type == "cuda" else None
        theirs = _states(cuda)
        try:
            if self._own is None:
                _seed_all(self._seed, cuda)
            else:
                _restore(self._own)
            yield
        finally:
            self._own = _states(cuda)
            _restore(theirs)


@contextmanager
def preserved_randomness(
    device: torch.device | None = None, seed: int | None = None
) -> Iterator[None]:
    """Put all random states back at the end; inside, start from ``seed`` if there is one."""
    cuda = device if device is not None and device.type == "cuda" else None
    theirs = _states(cuda)
    try:
        if seed is not None:
            _seed_all(seed, cuda)
        yield
    finally:
        _restore(theirs)


def _states(cuda: torch.device | None) -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002
        "torch": torch.default_generator.get_state(),
        "cuda": (cuda, torch.cuda.get_rng_state(cuda)) if cuda is not None else None,
    }


def _restore(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.default_generator.set_state(states["torch"])
    if states["cuda"] is not None:
        device, state = states["cuda"]
        torch.cuda.set_rng_state(state, device)


def _seed_all(seed: int, cuda: torch.device | None) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    if cuda is not None:
        with torch.cuda.device(cuda):
            torch.cuda.manual_seed(seed)
