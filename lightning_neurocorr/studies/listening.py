"""Lets studies listen to a validation: each guarded, within its time, merged over processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_neurocorr import functional as F
from lightning_neurocorr.isolation.guests import guest
from lightning_neurocorr.isolation.randomness import PrivateRandomness
from lightning_neurocorr.report.finding import Finding, State, missing
from lightning_neurocorr.studies.doing import HeardByStudies
from lightning_neurocorr.studies.heard import Heard, Start, heard
from lightning_neurocorr.studies.protocol import Listener, Study
from lightning_neurocorr.studies.refused import OutOfTimeError, RefusedError
from lightning_neurocorr.studies.store import Store
from lightning_neurocorr.studies.travelling import packed, unpacked
from lightning_neurocorr.validation import JudgedBatch, ValidationPass
from lightning_neurocorr.validation.processes import gather_to_first, running

_STORE = "activations that studies asked to keep"
_LONGEST = 1000  # characters of an error that are kept


class Listening:
    """The listeners of one validation.

    Args:
        studies: Those that may be done when it is over.
        start: What is known before the first batch.
        fetchable: Whether samples can be fetched again by their positions.
        strict: A study that fails is an error; else it is left out, and ``warn`` hears why.
        warn: Takes a text.

    Attributes:
        missing: Why a study has nothing to find any more, by its name.
    """

    def __init__(
        self,
        studies: Sequence[Study],
        start: Start,
        *,
        fetchable: bool = True,
        strict: bool = True,
        warn: Callable[[str], None] = print,
    ) -> None:
        self.missing: dict[str, Finding] = {}
        self.store: Store | None = None
        self._studies = {study.name: study for study in studies}
        self._start, self._strict, self._warn = start, strict, warn
        self._listeners: dict[str, Listener] = {}
        self._outputs: dict[str, LastOutputs] = {}
        self._spent: dict[str, float] = {}
        self._checked = False
        self._randomness = PrivateRandomness()  # not the baseline's: it must answer as without us
        for study in studies:
            with self._guarded(study):
                self._begin(study, fetchable)
        stored = max((study.stores for study in studies), default=0)
        if stored:
            self.store = Store(stored, source=start.options.metadata, strict=strict)

    def _begin(self, study: Study, fetchable: bool) -> None:
        if "positions" in study.needs and not fetchable:
            raise ValueError(
                f"Expected a sequential loader over a map-style dataset, because the study "
                f"{study.name!r} runs samples again, but samples cannot be fetched by their "
                "position. Use such a loader, or leave the study out."
            )
        with self._randomness(self._start.device), guest(self._start.model):
            listener = study.listen(self._start)
        if listener is None:
            return
        if not isinstance(listener, Listener):
            raise TypeError(
                f"Expected `listen` of {study.name!r} to return a Listener or None, but got "
                f"{listener!r:.80}."
            )
        self._listeners[study.name] = listener
        self._outputs[study.name] = LastOutputs(listener.also)

    @contextmanager
    def overhear(self, batch: Any) -> Iterator[None]:
        """Inside, the baseline is asked about a batch; listeners hear its network meanwhile."""
        with ExitStack() as stack:
            for name, listener in list(self._listeners.items()):
                for beside in listener.overhears:
                    with self._guarded(self._studies[name]):
                        stack.enter_context(beside.overhearing(batch))
            yield

    def hear(
        self,
        judged: JudgedBatch,
        activations: Mapping[str, Tensor],
        loaded: Any,
        result: ValidationPass,
    ) -> None:
        """Tell every listener of a batch that the pass has just added."""
        if not len(judged):
            return
        if not self._checked:
            self._check_outcomes(result, judged.batch.target)
        if not self._listeners and self.store is None:
            return
        read = {
            name: part
            for name, part in activations.items()
            if name not in result.problems and result.sizes.get(name) == part.shape[1]
        }
        told = heard(judged, read, loaded)
        for name, listener in list(self._listeners.items()):
            with self._guarded(self._studies[name]):
                told.outputs.clear()
                told.outputs.update(self._outputs[name].take())
                self._add(name, listener, told)
        if self.store is not None:
            self.store.add(told)

    def _add(self, name: str, listener: Listener, told: Heard) -> None:
        began, budget = time.monotonic(), self._studies[name].time_budget_s
        with self._randomness(self._start.device), guest(self._start.model):
            listener.add(told)
        self._spent[name] = self._spent.get(name, 0.0) + time.monotonic() - began
        if budget is not None and self._spent[name] > budget:
            raise OutOfTimeError(f"listening has used up its {budget:g} seconds")

    def _check_outcomes(self, result: ValidationPass, target: Tensor) -> None:
        """The first batch shows whether anything is right or wrong."""
        self._checked = True
        for study in self._studies.values():
            with self._guarded(study):
                if "outcomes" in study.needs and result.classifies is False:
                    raise ValueError(
                        f"Expected something to be right or wrong for the study {study.name!r}, "
                        "because it compares outcome groups. With a callable advantage there are "
                        "classes only where `num_classes` says so, and predictions are class ids "
                        "or scores (N, num_classes). Leave the study out, or pass num_classes=..."
                    )
                if "classes" in study.needs and F.is_label_sets(target):
                    raise ValueError(
                        f"Expected one true class per sample for the study {study.name!r}, because "
                        "it compares samples of the same class, but got sets of labels. Leave the "
                        "study out."
                    )

    @contextmanager
    def _guarded(self, study: Study) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if self._strict and not isinstance(error, OutOfTimeError):
                raise
            self._leave_out(study, error)

    def _leave_out(self, study: Study, error: Exception) -> None:
        self._listeners.pop(study.name, None)
        self.missing[study.name] = without(study, error)
        self._warn(f"The study {study.name!r} could not listen and is left out: {said(error)}")

    def gathered(self) -> HeardByStudies:
        """What all processes heard, on the first process; all must call this."""
        self.close()
        told: dict[str, Any] = {}
        for study in self._studies.values():
            listener = self._listeners.get(study.name)
            if study.name in self.missing:
                told[study.name] = self.missing[study.name].why
            elif listener is not None:
                with self._guarded_merge(study):
                    told[study.name] = packed(listener)
        if self.store is not None:
            self.store.trim()
            told[_STORE] = packed(self.store)
        others = gather_to_first(told)[1:]
        for study in list(self._studies.values()):
            with self._guarded_merge(study):
                self._merge(study.name, [other.get(study.name) for other in others])
        if self.store is not None:
            for other in others:
                self.store.merge(unpacked(self.store, other[_STORE]))
        return HeardByStudies(
            self._start.model, dict(self._listeners), dict(self.missing), self.store, listened=True
        )

    def _merge(self, name: str, others: Sequence[Any]) -> None:
        listener = self._listeners.get(name)
        for other in others:
            if isinstance(other, str):
                raise RuntimeError(f"in another process: {other}")
            if listener is not None:
                listener.merge(unpacked(listener, other))

    @contextmanager
    def _guarded_merge(self, study: Study) -> Iterator[None]:
        """No error where there are other processes, which are on their way to meet this one."""
        try:
            yield
        except Exception as error:
            if self._strict and not running():
                raise
            if study.name not in self.missing:
                self._leave_out(study, error)

    def close(self) -> None:
        """Remove every hook; closing twice is harmless."""
        for outputs in self._outputs.values():
            outputs.close()


class LastOutputs:
    """What some modules returned last, whoever called them."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._last: dict[str, Any] = {}
        self._handles: list[RemovableHandle] = [
            module.register_forward_hook(self._keep(name)) for name, module in modules.items()
        ]

    def _keep(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            self._last[name] = output

        return hook

    def take(self) -> dict[str, Any]:
        """Outputs by name since the last call."""
        last, self._last = self._last, {}
        return last

    def close(self) -> None:
        """Remove the hooks and forget."""
        while self._handles:
            self._handles.pop().remove()
        self._last = {}


def without(study: Study, error: Exception) -> Finding:
    """The finding of a study that failed."""
    state: State = "refused" if isinstance(error, RefusedError) else "not_finished"
    return missing(study.title, study.about, state, said(error))


def said(error: Exception) -> str:
    """An error in few words."""
    own = isinstance(error, (RefusedError, OutOfTimeError))
    text = str(error) if own else f"{type(error).__name__}: {error}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
