"""A stand-in for CUDA graphs on a CPU: records operations with the memory they touch.

As in a CUDA graph, what Python computed meanwhile is frozen, recorded operations always read and
write the same memory, and recording itself changes nothing.
"""

from contextlib import contextmanager

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


def _tensors(tree):
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Tape(TorchDispatchMode):
    """Inside, operations are recorded; afterwards what was there before is as it was."""

    def __init__(self):
        super().__init__()
        self.operations, self._made, self._before = [], set(), {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        if func.namespace == "profiler":
            return func(*args, **kwargs)
        inputs = _tensors((args, kwargs))
        if func._schema.is_mutable:
            for tensor in inputs:
                place = tensor.untyped_storage().data_ptr()
                if place not in self._made and place not in self._before:
                    self._before[place] = tensor, tensor.detach().clone()
        outputs = func(*args, **kwargs)
        known = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        for tensor in _tensors(outputs):
            if tensor.untyped_storage().data_ptr() not in known:
                self._made.add(tensor.untyped_storage().data_ptr())
        self.operations.append((func, args, kwargs, outputs))
        return outputs

    def undo(self):
        for tensor, value in self._before.values():
            tensor.detach().copy_(value)

    def replay(self):
        with torch.no_grad():
            for func, args, kwargs, outputs in self.operations:
                again = func(*args, **kwargs)
                for place, value in zip(_tensors(outputs), _tensors(again), strict=True):
                    if place.data_ptr() != value.data_ptr():
                        place.detach().copy_(value)


class TapeRecorder:
    """A recorder for ``Repeater`` that counts what it is asked for."""

    def __init__(self):
        self.asked, self.tape = [], None

    @contextmanager
    def opened(self):
        self.asked.append("opened")
        yield
        self.asked.append("closed")

    def watched(self, step):
        self.asked.append("watched")
        waits = []

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                waits.append(func is torch.ops.aten._local_scalar_dense.default)
                return func(*args, **(kwargs or {}))

        with Watch():
            going = step()
        return going, any(waits)

    def record(self, step):
        self.asked.append("recorded")
        tape = self.tape = Tape()
        try:
            with tape:
                step()
        finally:
            tape.undo()

        def replay():
            self.asked.append("repeated")
            tape.replay()

        return replay

    def keep_up(self):
        self.asked.append("kept up")
