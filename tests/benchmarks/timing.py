"""CPU time of functions that take turns, so that noise of the machine hits all of them alike."""

from __future__ import annotations

import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any


def turns(variants: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each call of each variant; one call of each goes first to warm up.

    Who goes first changes from round to round: what runs before leaves its mark on caches.
    """
    spent: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values():
        run()
    order = random.Random(0)
    for _ in range(repeats):
        for name in order.sample(list(variants), len(variants)):
            start = time.process_time()
            variants[name]()
            spent[name].append(time.process_time() - start)
    return spent


def medians(variants: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median CPU seconds per call of each variant."""
    found = turns(variants, repeats)
    return {name: statistics.median(times) for name, times in found.items()}


def forget_peak() -> None:
    """Let the peak of this process's memory begin here (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Peak resident bytes of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def machine(*packages: str, threads: str = "1 thread") -> str:
    """Date, processor, load and versions, for the line under a table.

    Args:
        packages: Further packages whose versions matter.
        threads: What ran, where it was not one thread of the CPU.
    """
    versions = [f"{name} {version(name)}" for name in ("torch", *packages)]
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    said = [
        f"{datetime.now(timezone.utc):%Y-%m-%d}",
        *versions,
        f"Python {platform.python_version()}",
        f"{_processor()} ({os.cpu_count()} cores, {load}), {threads}",
    ]
    return f"*{', '.join(said)}*"


def _processor() -> str:
    """The processor as Linux names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = {line.split(":")[1].strip() for line in lines if line.startswith("model name")}
    return ", ".join(sorted(models)) or platform.processor()
