"""Ask a baseline about a batch: its forwards do not count as the model's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from functools import cached_property
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from lightning_neurocorr import baselines as B
from lightning_neurocorr.activations import aside
from lightning_neurocorr.isolation.randomness import preserved_randomness
from lightning_neurocorr.samples import LoaderPositions

_TRAINING = (
    "The baseline ran {} in training mode: what it answers is drawn at random, or depends on the "
    "other samples of a batch. Call eval() on its network, or give the network as ModuleBaseline."
)
_CHANGES = (
    "Asked twice about the same batch, the baseline gave two answers. A baseline that draws random "
    "numbers of its own does so. If yours counts its calls to know which samples come, its answers "
    "are about other samples: Lightning's sanity check calls it, too. Look stored answers up with "
    "TableBaseline, or pass Trainer(num_sanity_val_steps=0)."
)
_MINDS_ITS_MODE = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
)


class Asked:
    """A baseline that is asked batch by batch; what it is able to do is looked up once.

    Args:
        baseline: Any baseline.
        rehearsal: What it is asked counts nowhere: an object of the user's is asked as a copy, so
            that what it counts goes on as if it had not been asked.

    Attributes:
        remarks: What a reader of the report must know about it.
    """

    def __init__(self, baseline: Any, *, rehearsal: bool = False) -> None:
        baseline = untraced(baseline) if rehearsal else baseline
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

    def rehearse(
        self, batch: Any, loader: LoaderPositions, numbers: Tensor, device: torch.device
    ) -> Any:
        """Its answer; the first time it is looked whether the user's own is the same once more.

        Both are from the same random numbers of Python, NumPy and torch.
        """
        if self._asked or _is_ours(self._baseline):
            return self(batch, loader, numbers)
        with preserved_randomness(device):
            before = Asked(self._baseline, rehearsal=True)(batch, loader, numbers)
        answer = self(batch, loader, numbers)
        if not _alike(before, answer):
            self.remarks.append(_CHANGES)
        return answer

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
        return untraced(baseline)(batch)


def untraced(baseline: Any) -> Any:
    """What to ask in the place of a baseline where that must leave no trace: a shallow copy.

    Networks and tables in it are not copied. Ours, functions and what cannot be copied are asked
    themselves.
    """
    if _is_ours(baseline):
        return baseline
    owner = getattr(baseline, "__self__", None)
    try:
        if isinstance(baseline, MethodType) and not isinstance(owner, (type, nn.Module)):
            return MethodType(baseline.__func__, copy(owner))
        return copy(baseline)
    except Exception:  # noqa: BLE001 -- a copy is the user's code
        return baseline


def _is_ours(baseline: Any) -> bool:
    return type(baseline).__module__.startswith(f"{B.__name__}.")


def _alike(one: Any, other: Any) -> bool:
    """Whether two answers to one question are the same, but for rounding."""
    try:
        a, b = (B.as_tensor(answer, "the answer of `baseline`") for answer in (one, other))
    except (TypeError, ValueError):
        return True  # refused where the answer is read
    a, b = a.cpu().double(), b.cpu().double()  # not every device has float64
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-2, atol=1e-3, equal_nan=True)


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
