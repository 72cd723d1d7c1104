"""A picture with its numbers, and what to say about it."""

from __future__ import annotations

import numpy as np

from lightning_neurocorr.report.panels import DO_NOT_READ, Picture
from lightning_neurocorr.visualization.reference import Reference
from lightning_neurocorr.visualization.settings import Settings
from lightning_neurocorr.visualization.targets import Target


def describe(
    settings: Settings,
    target: Target,
    reference: Reference,
    image: np.ndarray,
    *,
    plain: float,
    augmented: float,
    start: str,
    method: str,
    moved: bool,
    steps: int,
) -> Picture:
    """A picture that was optimised.

    Args:
        settings: What was asked for.
        target: What it was to drive.
        reference: How real images drive that.
        image: The picture ``(C, H, W)``.
        plain: The activation on it.
        augmented: The same under small warps.
        start: What it started from.
        method: How it was written.
        moved: Whether a gradient reached it.
        steps: Steps taken.
    """
    if why := _unfinished(image, plain, moved=moved):
        return without(settings, target, reference, method, why)
    ratio, best = reference.ratio(plain), reference.ratio(reference.best)
    return Picture(
        layer=target.layer,
        unit=target.index,
        sign=target.sign,
        image=image,
        activation_ratio=ratio,
        augmented_ratio=reference.ratio(augmented),
        real_best=best,
        start=start,
        method=method,
        readable=ratio >= best,
        note="; ".join(_notes(settings, ratio, best, steps)),
    )


def _unfinished(image: np.ndarray, plain: float, *, moved: bool) -> str:
    """Why what was optimised is no picture; empty where it is one."""
    if not moved:
        return "no picture: no gradient reaches the image through this layer"
    if not np.isfinite(plain) or not np.isfinite(image).all():
        return "no picture: activations are not finite"
    return ""


def _notes(settings: Settings, ratio: float, best: float, steps: int) -> list[str]:
    """What to know before one reads a picture."""
    notes = []
    if ratio < best:
        notes.append(
            f"{DO_NOT_READ}: real images drive this neuron more ({best:.3g}x against {ratio:.3g}x)"
        )
    if steps < settings.steps:
        notes.append(
            f"stopped after {steps} of {settings.steps} steps: time budget of "
            f"{settings.time_budget_s:g} s used up"
        )
    return notes


def without(
    settings: Settings,
    target: Target,
    reference: Reference | None,
    method: str,
    note: str | None = None,
) -> Picture:
    """A picture that could not be made; by default it says why."""
    if note is None:
        note = _why(settings, reference)
    return Picture(
        layer=target.layer,
        unit=target.index,
        sign=target.sign,
        image=None,
        activation_ratio=float("nan"),
        augmented_ratio=float("nan"),
        real_best=float("nan"),
        start=settings.start,
        method=method,
        readable=False,
        note=note,
    )


def _why(settings: Settings, reference: Reference | None) -> str:
    if reference is None:
        return "no picture: the forward never calls this layer"
    if reference.dead:
        return "dead: no real image activates this unit"
    if not reference.usable:
        return "no picture: activations on real images are not finite"
    return f"skipped: time budget of {settings.time_budget_s:g} s used up"
