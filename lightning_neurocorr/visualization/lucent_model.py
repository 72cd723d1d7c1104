"""What Lucent takes for the model, and its modules as they are used here.

Lucent leaves hooks, gradients and random states behind: here on private state. Errors and
interrupts that it swallows are raised.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lightning_neurocorr.activations import Place, listen
from lightning_neurocorr.visualization.isolated_model import IsolatedModel


class Stopped(BaseException):
    """Ends Lucent's loop, past its own handlers."""


class LucentModel:
    """What Lucent takes for the model: layers to hook, and a forward whose errors get through."""

    def __init__(
        self, model: IsolatedModel, taps: Mapping[str, Place], spent: Callable[[], bool]
    ) -> None:
        self._model, self._spent = model, spent
        self._handles: list[RemovableHandle] = []
        self._modules = {
            lucent_name(name): SimpleNamespace(register_forward_hook=self._hook(place))
            for name, place in taps.items()
        }
        self.calls = 0
        self.stopped = self.unreachable = False
        self.error: BaseException | None = None

    def __call__(self, images: Tensor) -> Any:
        """The model's output; ends the loop when the time is used up."""
        if self.calls and self._spent():
            self.stopped = True
            raise Stopped
        output = self._raising(lambda: self._model(self._model.prepare(images)))
        self.calls += 1
        return output

    def guarded(self, transform: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """``transform``, with its errors raised instead of swallowed."""
        return lambda images: self._raising(lambda: transform(images))

    def reachable(self, objective: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
        """``objective``, which stops the loop if no gradient leads from it to the image."""

        def drive(activation_of: Callable[[str], Any]) -> Tensor:
            loss = objective(activation_of)
            if not loss.requires_grad:
                self.stopped = self.unreachable = True
                raise Stopped
            return loss

        return drive

    def close(self) -> None:
        """Remove what Lucent hooked."""
        while self._handles:
            self._handles.pop().remove()

    def _raising(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except (RuntimeError, KeyboardInterrupt) as error:
            self.error = error
            raise Stopped from error

    def _hook(self, place: Place) -> Callable[[Callable], RemovableHandle]:
        def register(hook: Callable) -> RemovableHandle:
            handle = listen(place, lambda _, value: hook(None, None, value))
            self._handles.append(handle)
            return handle

        return register


@contextmanager
def lucent_on(device: torch.device) -> Iterator[Any]:
    """Lucent's modules, on ``device`` instead of its own choice, and without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lucent.optvis import objectives, param, render, transform
        from lucent.optvis.param import color, spatial

        before = spatial.device, transform.device
        spatial.device = transform.device = device
        try:
            yield SimpleNamespace(
                objectives=objectives, param=param, render=render, transform=transform, color=color
            )
        finally:
            spatial.device, transform.device = before


def lucent_name(name: str) -> str:
    """A layer's dotted name as Lucent writes it."""
    return name.replace(".", "_")
