"""Keep the user's random streams untouched: what we draw comes from a stream of our own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import mtrand


class PrivateRandomness:
    """A random stream that Python, NumPy and torch switch to in a ``with``.

    Entering again goes on where the last ``with`` stopped, so that a random baseline draws fresh
    numbers for every batch while training draws what it would draw without us.

    Args:
        seed: Where the stream starts.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._states: dict[str, Any] = {}
        self._numpy = np.random.MT19937()

    @contextmanager
    def __call__(self, device: torch.device | None = None) -> Iterator[None]:
        """Switch the generators of the CPU and of ``device``, and back at the end."""
        generators = _generators(device)
        seed_numpy = generators.pop("numpy").seed
        with _kept(generators), _drawing_from(self._numpy):
            if not self._states:
                seed_numpy(self._seed)
            for name, generator in generators.items():
                if name in self._states:
                    generator.set(self._states[name])
                else:
                    generator.seed(self._seed)
            try:
                yield
            finally:
                self._states.update({name: one.get() for name, one in generators.items()})


@contextmanager
def preserved_randomness(
    device: torch.device | None = None, seed: int | None = None
) -> Iterator[None]:
    """Put all random states back at the end; inside, start from ``seed`` if there is one."""
    generators = _generators(device)
    with _kept(generators):
        if seed is not None:
            for generator in generators.values():
                generator.seed(seed)
        yield


@contextmanager
def _kept(generators: Mapping[str, _Generator]) -> Iterator[None]:
    """Put the states of these generators back at the end."""
    states = {name: generator.get() for name, generator in generators.items()}
    try:
        yield
    finally:
        for name, generator in generators.items():
            generator.set(states[name])


@contextmanager
def _drawing_from(own: np.random.BitGenerator) -> Iterator[None]:
    """Let NumPy's global stream draw from a generator of our own.

    To copy the 624 words of a state, there and back for two streams, is most of a small batch.
    """
    users = mtrand.get_bit_generator()
    state = np.random.get_state(legacy=False)  # noqa: NPY002
    mtrand.set_bit_generator(own)
    try:
        yield
    finally:
        mtrand.set_bit_generator(users)
        if state["has_gauss"]:  # normal numbers come in pairs; a switch forgets the second
            np.random.set_state(state)  # noqa: NPY002


class _Generator(NamedTuple):
    """One of the global random generators."""

    get: Callable[[], Any]
    set: Callable[[Any], Any]
    seed: Callable[[int], Any]


def _generators(device: torch.device | None) -> dict[str, _Generator]:
    """The global generators that code on ``device`` may draw from, by name."""
    cpu = torch.default_generator
    found = {
        "python": _Generator(random.getstate, random.setstate, random.seed),
        "numpy": _Generator(np.random.get_state, np.random.set_state, _seed_numpy),
        "torch": _Generator(cpu.get_state, cpu.set_state, cpu.manual_seed),
    }
    if device is not None and device.type == "cuda":
        torch.cuda.init()  # or there are no generators yet
        index = torch.cuda.current_device() if device.index is None else device.index
        cuda = torch.cuda.default_generators[index]
        found[f"cuda:{index}"] = _Generator(cuda.get_state, cuda.set_state, cuda.manual_seed)
    elif device is not None and device.type == "mps":
        found["mps"] = _Generator(
            torch.mps.get_rng_state, torch.mps.set_rng_state, torch.mps.manual_seed
        )
    return found


def _seed_numpy(seed: int) -> None:
    np.random.seed(seed % 2**32)  # noqa: NPY002 -- the global state is what users draw from
