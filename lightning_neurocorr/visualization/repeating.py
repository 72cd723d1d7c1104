"""Run a step many times: on a GPU it is recorded once, and the device repeats the recording.

A step is hundreds of small operations. To launch them one by one takes a GPU's host longer than to
compute them takes the GPU.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Protocol

import torch

from lightning_neurocorr.isolation.torch_private import (
    TorchDispatchMode,
    operation_name,
    pytree,
)

_WARM_UP = 3  # steps before a recording: libraries choose algorithms and allocate workspaces
_WORTH = 8  # a recording costs about as much as a step
_AHEAD = 8  # steps that the device may be behind the clock


class Repeatable(Protocol):
    """What is run many times."""

    def __call__(self) -> bool:
        """Run once; False says that there is nothing to repeat."""
        ...

    def recordable(self) -> AbstractContextManager[None]:
        """Runs inside are recorded."""
        ...


class Recorder(Protocol):
    """Records what a device is asked to do."""

    def opened(self) -> AbstractContextManager[None]:
        """All runs of a step, and its recording, are inside."""
        ...

    def watched(self, step: Repeatable) -> tuple[bool, str | None]:
        """Run once; what the step returned, and why it must not be recorded, if it must not."""
        ...

    def record(self, step: Repeatable) -> Callable[[], None]:
        """Record a run that changes nothing, and return what repeats it.

        Raises:
            Exception: Any, if it cannot be recorded.
        """
        ...

    def keep_up(self) -> None:
        """Wait until the device is no more than a few runs behind."""
        ...


class Repeater:
    """Runs a step; from some run on its recording, where there is a recorder.

    Args:
        step: What to run.
        runs: How often it will be run at most.
        recorder: Records it; None runs it as it is.

    Attributes:
        fault: Why the step is not repeated from a recording; None where it is, or was not tried.
    """

    def __init__(self, step: Repeatable, runs: int, recorder: Recorder | None) -> None:
        self._step = step
        self._recorder = recorder if runs >= _WORTH else None
        self._done = 0
        self._repeat: Callable[[], None] | None = None
        self.fault: str | None = None

    def __call__(self) -> bool:
        """Run once."""
        if self._repeat is not None:
            self._repeat()
            return True
        self._done += 1
        if self._recorder is None or self._done != _WARM_UP:
            return self._step()
        going, self.fault = self._recorder.watched(self._step)
        if going and self.fault is None:
            self._record(self._recorder)
        return going

    def _record(self, recorder: Recorder) -> None:
        try:
            with self._step.recordable():
                self._repeat = recorder.record(self._step)
        except Exception as error:  # noqa: BLE001 -- any: run as it is, the step says what is wrong
            self.fault = str(error).partition("\n")[0]


class CudaRecorder:
    """Records CUDA graphs on a stream of its own.

    Args:
        device: A CUDA device.
        needed: Bytes that a run needs.
    """

    def __init__(self, device: torch.device, needed: int) -> None:
        self._device, self._needed = device, needed
        self._stream = torch.cuda.Stream(device)
        self._behind: deque[torch.cuda.Event] = deque()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """See :class:`Recorder`."""
        outside = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outside)
        try:
            with torch.cuda.stream(self._stream), _spare_generator(self._device):
                yield
        finally:
            self._stream.synchronize()  # a recording must not be dropped while it runs

    def watched(self, step: Repeatable) -> tuple[bool, str | None]:
        """See :class:`Recorder`; PyTorch says where it waits."""
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as said, HostMemory() as host:
            warnings.simplefilter("always")
            try:
                torch.cuda.set_sync_debug_mode("warn")
                going = step()
            finally:
                torch.cuda.set_sync_debug_mode(before)
        if any("called a synchronizing" in str(one.message) for one in said):
            return going, "the model waits for the device"
        return going, "the model copies from or to the host's memory" if host.seen else None

    def record(self, step: Repeatable) -> Callable[[], None]:
        """See :class:`Recorder`."""
        torch.cuda.synchronize(self._device)
        free, _ = torch.cuda.mem_get_info(self._device)
        if free < self._needed:  # a recording has memory of its own: nothing cached serves it
            torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        # other threads may ask the device for memory meanwhile: loaders that pin, NCCL's watchdog
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            step()
        except BaseException:
            with suppress(RuntimeError):  # the first error says more
                graph.capture_end()
            raise
        graph.capture_end()
        return graph.replay

    def keep_up(self) -> None:
        """See :class:`Recorder`."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        self._behind.append(event)
        if len(self._behind) > _AHEAD:
            self._behind.popleft().synchronize()


class HostMemory(TorchDispatchMode):
    """Sees whether an operation uses memory of the CPU and of another device.

    A recording would use the same address of the CPU again, where by then is something else.

    Attributes:
        seen: Whether it was so.
    """

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        copies = "copy" in operation_name(func)
        leaves = pytree.tree_leaves((args, kwargs, result))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        # beside tensors on a device, one without axes is a number that is read at once
        kinds = {tensor.device.type for tensor in tensors if tensor.ndim or copies}
        self.seen |= len(kinds) > 1 and "cpu" in kinds
        return result


@contextmanager
def _spare_generator(device: torch.device) -> Iterator[None]:
    """Recordings meet a copy of the device's random state.

    A recording that fails leaves the state that it met unusable: "Offset increment outside graph
    capture" at the next random number, which would be one of training.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    generator = torch.cuda.default_generators[index]
    own = generator.graphsafe_get_state()
    generator.graphsafe_set_state(generator.clone_state())
    try:
        yield
    finally:
        generator.graphsafe_set_state(own)


def opened(recorder: Recorder | None) -> AbstractContextManager[None]:
    """What a recorder opens, if there is one."""
    return nullcontext() if recorder is None else recorder.opened()
