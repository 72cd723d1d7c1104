"""Ask a baseline about a batch: its forwards do not count as the model's."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from lightning_neurocorr import baselines as B
from lightning_neurocorr.activations import aside
from lightning_neurocorr.samples import LoaderPositions


def ask(baseline: Any, batch: Any, loader: LoaderPositions, numbers: Tensor) -> Any:
    """The baseline's answer.

    Args:
        baseline: Any baseline that can be asked.
        batch: What it is asked about.
        loader: Where the batch is from.
        numbers: The position of each sample ``(N,)``, where the loader knows them.

    Raises:
        ValueError: If it needs positions and they are not known.
    """
    with aside():
        watcher = baseline
        if isinstance(watcher, B.Watching):
            watcher.watch(getattr(loader.loader, "dataset", loader.loader))
        if not isinstance(baseline, B.Positional):
            return baseline(batch)
        check_positions(baseline, loader)
        return baseline.predict_at(batch, numbers if loader.known else None)


def ask_without_positions(baseline: Any, batch: Any) -> Any:
    """The baseline's answer; None where it takes positions, or cannot be asked yet."""
    if isinstance(baseline, B.Positional) or not is_ready(baseline):
        return None
    with aside():
        return baseline(batch)


def check_positions(baseline: B.Positional, loader: LoaderPositions) -> None:
    """Raise if a baseline cannot answer without positions and they are not known.

    Raises:
        ValueError: Saying why they are not, and what to do.
    """
    if baseline.needs_positions and not loader.known:
        raise ValueError(
            f"Expected to know the position of every sample, because {describe(baseline)} is "
            f"looked up by position, but {loader.unknown}. Look it up by an id in the batch: give "
            "the table `id=`, and let the data set return that id with every sample."
        )


def is_ready(baseline: Any) -> bool:
    """Whether a baseline can be asked: a snapshot has been taken, an estimator has been fitted."""
    fitted = not (isinstance(baseline, B.Fittable) and baseline.needs_fit)
    return fitted and (not isinstance(baseline, B.Snapshotting) or baseline.ready)


def describe(baseline: Any) -> str:
    """A baseline in few words."""
    if hasattr(baseline, "__name__"):
        return baseline.__name__
    text = re.sub(r"<function ([\w.<>]+) at 0x[0-9a-f]+>", r"\1", repr(baseline))
    text = re.sub(r"<[\w.<>]*?(\w+) object at 0x[0-9a-f]+>", r"\1", text)
    return text if len(text) <= 120 and " object at " not in text else type(baseline).__name__
