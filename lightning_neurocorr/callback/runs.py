"""Which fit goes on and which one is new, and what a new one makes a baseline forget."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lightning_neurocorr import baselines as B
from lightning_neurocorr.callback import lightning_private

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

_References = tuple[Callable[[], Any], ...]


class Run:
    """A fit, told from others by its trainer, its model and its data sets.

    None of them is kept alive. A data module, or a model that has its own loaders, stands for the
    data sets that it gives.

    Args:
        trainer: The trainer; its loaders are attached already.
        pl_module: The model.
        fitting: Outside of a fit the training data may not be known.
    """

    def __init__(self, trainer: Trainer, pl_module: LightningModule, *, fitting: bool) -> None:
        if fitting:
            loops: list[Any] = [trainer.fit_loop, trainer.fit_loop.epoch_loop.val_loop]
            sources = [lightning_private.data_source(loop) for loop in loops]
        else:
            held_out: Any = trainer.validate_loop
            sources = [
                getattr(trainer, "datamodule", None),
                lightning_private.data_source(held_out),
            ]
        self._parts: list[_References] = [
            tuple(_reference(part) for part in group)
            for group in ([trainer], [pl_module], *(list(_data(source)) for source in sources))
        ]

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy nobody knows where it is used: no run goes on from it."""
        return {"_parts": [(_gone,)] * len(self._parts)}

    def goes_on_from(self, earlier: Run) -> bool:
        """Whether all that both know is the same."""
        pairs = zip(self._parts, earlier._parts, strict=True)
        return all(_same(now, before) for now, before in pairs if now and before)


def _data(source: Any) -> Iterator[Any]:
    """The data sets of a loader or a nest of them; nothing where there is none."""
    if isinstance(source, Mapping):
        source = list(source.values())
    if type(source).__name__ == "CombinedLoader":
        source = source.flattened
    if isinstance(source, (list, tuple)) and all(hasattr(part, "dataset") for part in source):
        for part in source:
            yield from _data(part)
    elif source is not None:
        yield getattr(source, "dataset", source)


def _same(now: _References, before: _References) -> bool:
    """What is gone is the same where the reference to it is: Python makes one for each object."""
    return len(now) == len(before) and all(
        a is b or (a() is b() and a() is not None) for a, b in zip(now, before, strict=True)
    )


def _gone() -> None:
    """What refers to nothing."""


def _reference(part: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(part)
    except TypeError:  # a list of batches: kept, or another one might take its place
        return lambda: part


# Baselines that a run has taught, by id: what a user has fitted is never here.
_TAUGHT: dict[int, tuple[Callable[[], Any], Run]] = {}


def parts_of(baseline: Any) -> Iterator[Any]:
    """A baseline and those that it stands before, such as the one in a cache."""
    seen: set[int] = set()
    while baseline is not None and id(baseline) not in seen:
        seen.add(id(baseline))
        yield baseline
        baseline = getattr(baseline, "baseline", None)


def teach(baseline: Any, run: Run) -> None:
    """Remember that a run has taught this baseline (and not those behind it)."""
    try:
        known = weakref.ref(baseline, lambda _, key=id(baseline): _TAUGHT.pop(key, None))
    except TypeError:
        return
    _TAUGHT[id(baseline)] = (known, run)


def taught_before(baseline: Any, run: Run) -> bool:
    """Whether what this baseline has learned is of another run."""
    known, earlier = _TAUGHT.get(id(baseline), (None, None))
    if known is None or earlier is None or known() is not baseline:
        return False
    return not run.goes_on_from(earlier)


def begin(baseline: Any, run: Run) -> None:
    """Make a baseline forget what another run has taught it."""
    for part in parts_of(baseline):
        if isinstance(part, B.Renewable) and taught_before(part, run):
            part.renew()
            _TAUGHT.pop(id(part), None)


def must_learn(baseline: Any, run: Run) -> bool:
    """Whether a baseline is to be fitted: it never was, or by another run."""
    stale = any(
        isinstance(part, B.Fittable)
        and not isinstance(part, B.Renewable)
        and taught_before(part, run)
        for part in parts_of(baseline)
    )
    return isinstance(baseline, B.Fittable) and (baseline.needs_fit or stale)


def learners(baseline: Any) -> list[Any]:
    """The parts of a baseline that a run can still teach: none that a user has fitted."""
    return [
        part
        for part in parts_of(baseline)
        if isinstance(part, B.CachedBaseline)
        or (isinstance(part, B.Fittable) and part.needs_fit)
        or (isinstance(part, B.Snapshotting) and not part.ready)
    ]
