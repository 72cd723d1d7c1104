"""Findings of the built-in studies about the small world with planted knowledge."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lightning_neurocorr import (
    compare,
)
from tests.worlds import World, world


def asked(studies: Any, found: World | None = None, baseline: Any = None, **more: Any) -> Any:
    """The findings of some studies."""
    found = found or world()
    options = {"metadata": found.metadata, "target": 1, "attribution": False, **more}
    return compare(
        found.model, found.loader, baseline or found.baseline, studies=studies, **options
    ).studies


def shuffled(found: World) -> Any:
    """A baseline with nothing left to know."""
    answers = found.placebo()
    return lambda batch: answers[batch[2]]


def net() -> nn.Module:
    """Another network of the same make."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return nn.Sequential(nn.Linear(13, 6), nn.ReLU(), nn.Linear(6, 4))
