"""Ask a frozen baseline once about a validation set, and not again in later validations."""

import warnings
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Self

from lightning_neurocorr.baselines.prediction import as_tensor
from lightning_neurocorr.baselines.protocols import (
    Baseline,
    Checkable,
    Fittable,
    Movable,
    Positional,
    Snapshotting,
    Stateful,
    check_baseline,
)
from lightning_neurocorr.isolation.torch_private import version_of


class CachedBaseline:
    """Any baseline that is frozen, asked once per batch of a validation set that stays the same.

    Answers are kept by position in the data set, by each process its own, on the device where they
    were given: 8 bytes per sample for class ids, 4 ``C`` for float32 scores ``(N, C)``. They are
    not stored in checkpoints. A shuffled set has no positions: there the baseline is asked each
    time, and a warning says so once.

    It is asked anew for another data set object or batch size, after a fit, a new snapshot or a
    resume, and when the weights of its ``module`` were written to. What cannot be noticed: samples
    that change within the same data set (random augmentation, a transform changed later), and a
    function that answers differently. Call `forget` then.

    Args:
        baseline: The baseline; what it can do besides (fit, snapshot, positions, state) stays.

    Example:
        >>> quiet = CachedBaseline(lambda batch: print("asked") or [0, 1])
        >>> quiet.predict_at(None, torch.tensor([4, 5]))
        asked
        tensor([0, 1])
        >>> quiet.predict_at(None, torch.tensor([4, 5]))
        tensor([0, 1])
    """

    def __init__(self, baseline: Baseline) -> None:
        check_baseline(baseline)
        self.baseline = baseline
        self._kept: dict[int, _Kept] = {}
        self._dataset: Callable[[], Any] = _reference(None)
        self._weights: list[tuple[int, int]] = []
        self._warned = False

    def forget(self) -> None:
        """Ask for everything anew from now on."""
        self._kept = {}

    def renew(self) -> None:
        """A new run may have other samples at the same positions: ask anew."""
        self.forget()

    def watch(self, dataset: Any) -> None:
        """Know the data set whose positions come next."""
        if self._dataset() is not dataset:
            self._dataset = _reference(dataset)

    def predict_at(self, batch: Any, positions: Tensor | None) -> Tensor:
        """The baseline's answer: the kept one where ``positions`` ``(N,)`` have been asked for.

        Raises:
            TypeError: If the answer is not made of numbers.
        """
        if positions is None or not len(positions):
            self._warn()
            return self._ask(batch, positions)
        weights = _versions(getattr(self.baseline, "module", None))
        kept = self._kept.get(int(positions[0]))
        if weights != self._weights or (kept is not None and not self._fits(kept, positions)):
            self.forget()
            self._weights, kept = weights, None
        if kept is None:
            kept = _Kept(positions.clone(), self._dataset, self._ask(batch, positions).clone())
            self._kept[int(positions[0])] = kept
        return kept.answer.clone()

    def __call__(self, batch: Any) -> Tensor:
        """The baseline's answer; without positions nothing is kept."""
        return self._ask(batch, None)

    def _fits(self, kept: "_Kept", positions: Tensor) -> bool:
        return kept.dataset() is self._dataset() and kept.positions.equal(positions)

    def _ask(self, batch: Any, positions: Tensor | None) -> Tensor:
        inner = self.baseline
        positional = isinstance(inner, Positional)
        answer = inner.predict_at(batch, positions) if positional else inner(batch)
        return as_tensor(answer, "the prediction of `baseline`")

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{self!r} cannot keep answers, because the data set is shuffled or has no "
                "positions: the baseline is asked in every validation. Use a loader with "
                "shuffle=False.",
                stacklevel=3,
            )

    # --- what the baseline can do besides --------------------------------------------------------

    @property
    def needs_positions(self) -> bool:
        """Whether the baseline cannot answer without positions."""
        return isinstance(self.baseline, Positional) and self.baseline.needs_positions

    @property
    def needs_fit(self) -> bool:
        """Whether the baseline has to learn from the training batches."""
        return isinstance(self.baseline, Fittable) and self.baseline.needs_fit

    @property
    def ready(self) -> bool:
        """Whether the baseline can answer."""
        return not isinstance(self.baseline, Snapshotting) or self.baseline.ready

    def fit(self, batches: Iterable[Any]) -> None:
        """Fit the baseline."""
        self.forget()
        if isinstance(self.baseline, Fittable):
            self.baseline.fit(batches)

    def observe(self, module: nn.Module, epoch: int) -> None:
        """Let the baseline see the model; one that does not say ``taken_at`` may have changed."""
        if isinstance(self.baseline, Snapshotting):
            before = getattr(self.baseline, "taken_at", None)
            self.baseline.observe(module, epoch)
            if before is None or before != getattr(self.baseline, "taken_at", None):
                self.forget()

    def check(self, num_samples: int | None = None) -> None:
        """Raise if the baseline cannot answer for so many samples."""
        if isinstance(self.baseline, Checkable):
            self.baseline.check(num_samples)

    def to(self, device: torch.device | str) -> Self:
        """Move the baseline."""
        if isinstance(self.baseline, Movable):
            self.baseline.to(torch.device(device))
        return self

    def state_dict(self) -> dict[str, Any]:
        """The state of the baseline, as it would be without the cache."""
        return self.baseline.state_dict() if isinstance(self.baseline, Stateful) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of the baseline back."""
        self.forget()
        if isinstance(self.baseline, Stateful):
            self.baseline.load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}, "_dataset": None}  # a data set is not ours to copy

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _dataset=_reference(None))

    def __repr__(self) -> str:
        return f"CachedBaseline({self.baseline!r})"


class _Kept(NamedTuple):
    """The answer ``(N,)`` or ``(N, C)`` for one batch."""

    positions: Tensor
    dataset: Callable[[], Any]
    answer: Tensor


def _reference(dataset: Any) -> Callable[[], Any]:
    """Gives the data set without keeping it alive, where Python can do that."""
    try:
        return weakref.ref(dataset)
    except TypeError:  # a list, None
        return lambda: dataset


def _versions(module: Any) -> list[tuple[int, int]]:
    """How often each weight and buffer of a module was written to in place."""
    if not isinstance(module, nn.Module):
        return []
    tensors = [*module.parameters(), *module.buffers()]
    return [(id(t), version_of(t)) for t in tensors]
