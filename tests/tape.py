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
        return going, "the model waits for the device" if any(waits) else None

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


class PretendCuda:
    """What ``CudaRecorder`` calls of ``torch.cuda``, played on a CPU: graphs are tapes.

    Args:
        patch: Replaces it there, and puts it back.
        refuses: Whether every recording fails at its end, as a CUDA stream's does.
    """

    def __init__(self, patch, *, refuses=False, free=1 << 40):
        self.said, self.mode, self.refuses = [], 0, refuses
        self.generator = PretendGenerator("training")
        for name, value in {
            "Stream": lambda device: PretendStream(self, "side"),
            "Event": lambda: PretendEvent(self),
            "CUDAGraph": lambda: PretendGraph(self),
            "stream": self.stream,
            "current_stream": lambda device=None: PretendStream(self, "current"),
            "synchronize": lambda device=None: self.said.append("synchronize"),
            "mem_get_info": lambda device=None: (free, free),
            "empty_cache": lambda: self.said.append("empty cache"),
            "get_sync_debug_mode": lambda: self.mode,
            "set_sync_debug_mode": self.set_mode,
            "current_device": lambda: 0,
            "default_generators": (self.generator,),
        }.items():
            patch.setattr(torch.cuda, name, value)

    def set_mode(self, mode):
        self.mode = {"warn": 1}.get(mode, mode)

    @contextmanager
    def stream(self, stream):
        self.said.append(f"on {stream.name}")
        yield
        self.said.append(f"off {stream.name}")


class PretendGenerator:
    """A generator whose state can be swapped, as CUDA's."""

    def __init__(self, state):
        self.state = state

    def graphsafe_get_state(self):
        return PretendGenerator(self.state)

    def clone_state(self):
        return PretendGenerator(f"copy of {self.state}")

    def graphsafe_set_state(self, other):
        self.state = other.state


class PretendStream:
    def __init__(self, cuda, name):
        self.cuda, self.name = cuda, name

    def wait_stream(self, other):
        self.cuda.said.append(f"{self.name} waits for {other.name}")

    def synchronize(self):
        self.cuda.said.append(f"{self.name} done")


class PretendEvent:
    def __init__(self, cuda):
        self.cuda = cuda

    def record(self, stream):
        self.cuda.said.append("event")

    def synchronize(self):
        self.cuda.said.append("event waited for")


class PretendGraph:
    def __init__(self, cuda):
        self.cuda, self.tape = cuda, Tape()

    def capture_begin(self, capture_error_mode):
        self.cuda.said.append(f"recording, {capture_error_mode}, meets {self.cuda.generator.state}")
        self.tape.__enter__()

    def capture_end(self):
        self.tape.__exit__(None, None, None)
        self.tape.undo()
        self.cuda.said.append("recorded")
        if self.cuda.refuses:
            raise RuntimeError("operation failed due to a previous error during capture")

    def replay(self):
        self.cuda.said.append("replay")
        self.tape.replay()
