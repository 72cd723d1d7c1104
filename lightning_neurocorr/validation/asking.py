"""Ask a baseline about a batch: its forwards do not count as the model's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from lightning_neurocorr import baselines as B
from lightning_neurocorr.activations import aside
from lightning_neurocorr.samples import LoaderPositions

_TRAINING = (
    "The baseline ran {} in training mode: what it answers is drawn at random, or depends on the "
    "other samples of a batch. Call eval() on its network, or give the network as ModuleBaseline."
)
_MINDS_ITS_MODE = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
)


class Asked:
    """A baseline that is asked batch by batch; what it is able to do is looked up once.

    Args:
        baseline: Any baseline.

    Attributes:
        remarks: What a reader of the report must know about it.
    """

    def __init__(self, baseline: Any) -> None:
        self._baseline = baseline
        self._watching = baseline if isinstance(baseline, B.Watching) else None
        self._positional = baseline if isinstance(baseline, B.Positional) else None
        self._asked = False
        self.remarks: list[str] = []

    def __call__(self, batch: Any, loader: LoaderPositions, numbers: Tensor) -> Any:
        """Its answer.

        Args:
            batch: What it is asked about.
            loader: Where the batch is from.
            numbers: The position of each sample ``(N,)``, where the loader knows them.

        Raises:
            ValueError: If it needs positions and they are not known.
        """
        with aside(), self._watched():
            if self._watching is not None:
                self._watching.watch(getattr(loader.loader, "dataset", loader.loader))
            if self._positional is None:
                return self._baseline(batch)
            check_positions(self._positional, loader)
            return self._positional.predict_at(batch, numbers if loader.known else None)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Look, the first time, whether a network of the baseline's is left in training mode."""
        if self._asked:
            yield
            return
        self._asked, seen = True, set[str]()

        def look(module: nn.Module, _: Any) -> None:
            if module.training and isinstance(module, _MINDS_ITS_MODE):
                seen.add(type(module).__name__)

        handle = register_module_forward_pre_hook(look)
        try:
            yield
        finally:
            handle.remove()
        if seen:
            self.remarks.append(_TRAINING.format(" and ".join(sorted(seen))))

    @cached_property
    def words(self) -> str:
        """The baseline in few words, once it can be asked."""
        return describe(self._baseline)


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
