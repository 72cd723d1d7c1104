"""Tensors that are followed through a forward: known by weak references, they die as they would."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_neurocorr.activations import layouts as L
from lightning_neurocorr.activations.spoken import Traced


class Followed:
    """What is known of each tensor, also of those that others were written into."""

    def __init__(self) -> None:
        self._tensors: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._written: dict[int, tuple[StorageWeakRef, L.Layout | None]] = {}

    def __setitem__(self, tensor: Tensor, traced: Traced) -> None:
        self._tensors[tensor] = traced

    def get(self, tensor: Tensor) -> Traced | None:
        """What is known of it; None where it is not followed."""
        return self._tensors.get(tensor)

    def knows(self, value: Tensor) -> bool:
        """Whether it is followed: also a constant, once what is followed was written into it."""
        if value in self._tensors:
            return True
        if not self._written or value.is_nested:
            return False
        storage = value.untyped_storage()
        written, layout = self._written.get(storage.data_ptr(), (None, None))
        if written is None or written.expired():
            return False
        self._tensors[value] = Traced(L.resized(layout, tuple(value.shape)))
        return True

    def overwritten(self, out: Tensor, layout: L.Layout | None, index: int) -> bool:
        """Note a tensor that was written into; whether what it shares memory with is not followed.

        Other views of it are no longer what they were, and buffers no longer constants.
        """
        storage = out.untyped_storage()
        pointer = storage.data_ptr()
        self._written[pointer] = StorageWeakRef(storage), layout
        views = [
            other
            for other in self._tensors
            if other is not out and other.untyped_storage().data_ptr() == pointer
        ]
        for other in views:
            traced = self._tensors[other]
            for spoken in traced.own.values():
                spoken.uses.append((index, None, ()))
            self._tensors[other] = Traced(traced.layout, order=traced.order)
        part = out.numel() * out.element_size() < storage.nbytes()
        return bool(views) or part or out not in self._tensors

    def begin_with(self, given: Any) -> None:
        """Follow the tensors of a batch: their first axis is that of the samples."""
        for value in tensors_in(given):
            if value.ndim and not value.is_nested and value not in self._tensors:
                layout = L.axes_of(value.shape)
                self._tensors[value] = Traced(L.with_axis(layout, 0, L.SAMPLES, len(value)))


def tensors_in(value: Any, deep: int = 6) -> Iterator[Tensor]:
    """The tensors of a batch, be it a tensor, a container or an object of any class."""
    if isinstance(value, Tensor):
        yield value
        return
    parts: Any = ()
    if isinstance(value, Mapping):
        parts = list(value.values())
    elif isinstance(value, (list, tuple)):
        parts = value
    elif not isinstance(value, (str, bytes, nn.Module, type)):
        parts = list(getattr(value, "__dict__", {}).values())
    for part in parts if deep else ():
        yield from tensors_in(part, deep - 1)
