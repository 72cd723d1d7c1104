"""What the rows of the GPU's table have in common: sizes, clocks, and a goal beside each figure."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class Sizes:
    """What is run; :meth:`fast` is for a test on a CPU, where goals mean nothing."""

    batch: int = 256
    batches: int = 12
    many_batches: int = 200
    side: int = 224
    vit_batch: int = 128
    vit_batches: int = 10
    neurons: tuple[int, ...] = (100_000, 1_000_000)
    attributed: int = 450
    attributed_of: int = 2560
    smaller_batch: int = 64
    pictures: int = 16
    steps: int = 64
    images: int = 10_000
    repeats: int = 5
    small: bool = False

    @classmethod
    def fast(cls) -> Sizes:
        """Seconds on a CPU."""
        return cls(
            batch=8,
            batches=2,
            many_batches=3,
            side=32,
            vit_batch=4,
            vit_batches=1,
            neurons=(1000,),
            attributed=8,
            attributed_of=32,
            smaller_batch=4,
            pictures=2,
            steps=2,
            images=400,
            repeats=1,
            small=True,
        )


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: What was measured.
        measured: The figure.
        beside: Floors and others, in the same run.
        goal: In words.
        met: Whether the goal is met; None where there is none.
    """

    what: str
    measured: str
    beside: str = ""
    goal: str = ""
    met: bool | None = None

    def cells(self, judged: bool) -> list[str]:
        """What the table shows; without a GPU nothing is met or missed."""
        verdict = {True: "met", False: "**missed**", None: ""}[self.met]
        if self.goal and not judged:
            verdict = "not judged"
        return [self.what, self.measured, self.beside, self.goal, verdict]


@dataclass
class Bench:
    """The device, the sizes, and how much time is left.

    Attributes:
        device: Where it runs.
        sizes: What is run.
        total_s: Seconds for the whole table.
        started: When it began, on the monotonic clock.
    """

    device: torch.device
    sizes: Sizes
    total_s: float = 230.0
    started: float = field(default_factory=time.monotonic)

    @property
    def passed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def wait(self) -> None:
        """Until the device has done all that was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], Any], calls: int = 1) -> float:
        """Wall-clock seconds of a call, between synchronisations before and after ``calls``."""
        self.wait()
        start = time.perf_counter()
        for _ in range(calls):
            run()
        self.wait()
        return (time.perf_counter() - start) / calls

    def medians(
        self,
        variants: Mapping[str, Callable[[], Any]],
        *,
        cap_s: float,
        repeats: int | None = None,
        warm: bool = True,
        calls: int = 1,
    ) -> dict[str, float]:
        """Median seconds of variants that take turns.

        Args:
            variants: What to run, by name.
            cap_s: No round begins after so many seconds; one is always run.
            repeats: Rounds; the sizes' own by default.
            warm: Whether a round of its own warms up.
            calls: Of a variant in a row, as in a validation: the device works on one while the next
                is being asked for.
        """
        begun = time.monotonic()
        if warm:
            for run in variants.values():
                self.seconds(run)
        spent: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(self.sizes.repeats if repeats is None else repeats):
            if any(spent.values()) and time.monotonic() - begun > cap_s:
                break
            for name, run in variants.items():
                spent[name].append(self.seconds(run, calls))
        return {name: statistics.median(times) for name, times in spent.items()}

    def launches(self, run: Callable[[], Any]) -> tuple[int, str]:
        """How many kernels a call launches, and the unit; without a GPU, its operator calls."""
        run()
        if self.device.type != "cuda":
            with _Calls() as calls:
                run()
            return calls.count, "operator calls (no GPU)"
        self.wait()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            run()
            self.wait()
        return launched(seen.events() or ()), "kernel launches"


def launched(events: Iterable[Any]) -> int:
    """Kernels that a profile saw being launched; copies and fills of memory are none.

    Raises:
        RuntimeError: If it saw none, which says more about the profiler than about the call.
    """
    seen = list(events)
    # by CUDA's runtime, and by its driver, as Triton launches them
    count = sum("LaunchKernel" in event.name for event in seen)
    if count == 0:  # a profiler without these sees the kernels themselves
        on_device = [e.name for e in seen if e.device_type == torch.autograd.DeviceType.CUDA]
        count = sum(not name.startswith(("Memcpy", "Memset")) for name in on_device)
    if count == 0:
        raise RuntimeError("the profiler saw no kernel")
    return count


class _Calls(TorchDispatchMode):
    """Counts what PyTorch is asked to compute."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def microseconds(seconds: float) -> str:
    """As the table writes short times."""
    return f"{1e6 * seconds:,.0f} µs"
