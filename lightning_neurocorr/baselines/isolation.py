"""Ask a baseline without leaving a trace in random states, training flags or gradients."""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn


class _Generator(NamedTuple):
    """One of the global random generators."""

    get: Callable[[], Any]
    set: Callable[[Any], Any]
    seed: Callable[[int], Any]


class OwnRandomness:
    """A random stream that replaces the global ones while a baseline answers.

    It goes on from call to call, so a baseline that draws random numbers draws new ones for every
    batch and the same ones in every run.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._states: dict[str, Any] = {}

    @contextmanager
    def __call__(self, device: torch.device | None = None) -> Iterator[None]:
        """Switch Python's, NumPy's, the CPU's and ``device``'s generators, and back at the end."""
        generators = _generators(device)
        with kept_random_states(device):
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
def kept_random_states(device: torch.device | None = None) -> Iterator[None]:
    """Put the random states of Python, NumPy, the CPU and ``device`` back at the end."""
    generators = _generators(device)
    states = {name: generator.get() for name, generator in generators.items()}
    try:
        yield
    finally:
        for name, generator in generators.items():
            generator.set(states[name])


@contextmanager
def evaluating(module: nn.Module, randomness: OwnRandomness, *, autocast: bool) -> Iterator[None]:
    """Run ``module`` in eval mode, without gradients; flags and random states come back.

    Args:
        module: Any module.
        randomness: What the module draws from.
        autocast: Whether mixed precision that is switched on outside holds inside.
    """
    # flags are set one by one: train() may be overridden, and parts may be in different modes
    training = [part for part in module.modules() if part.training]
    device = module_device(module)
    with randomness(device), torch.no_grad(), _autocast(device, keep=autocast):
        try:
            for part in training:
                part.training = False
            yield
        finally:
            for part in training:
                part.training = True


def module_device(module: nn.Module) -> torch.device | None:
    """Where the module's first parameter or buffer is; ``None`` if it has none."""
    for tensors in (module.parameters(), module.buffers()):
        for tensor in tensors:
            return tensor.device
    return None


def _generators(device: torch.device | None) -> dict[str, _Generator]:
    """The global generators that code on ``device`` may draw from, by name."""
    own = {"cpu": torch.default_generator}
    if device is not None and device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        own[f"cuda:{index}"] = torch.cuda.default_generators[index]
    return {
        "python": _Generator(random.getstate, random.setstate, random.seed),
        "numpy": _Generator(np.random.get_state, np.random.set_state, np.random.seed),
        **{name: _Generator(g.get_state, g.set_state, g.manual_seed) for name, g in own.items()},
    }


@contextmanager
def _autocast(device: torch.device | None, *, keep: bool) -> Iterator[None]:
    """Switch mixed precision off on the CPU and on ``device`` unless it is kept."""
    kinds = set() if keep else {"cpu", "cuda", device.type if device is not None else "cpu"}
    with ExitStack() as stack:
        for kind in sorted(kinds):
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
