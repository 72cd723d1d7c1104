"""CPU time of functions that take turns, so that noise of the machine hits all of them alike."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def medians(variants: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median CPU seconds per call of each variant; one call of each goes first to warm up."""
    spent: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values():
        run()
    for _ in range(repeats):
        for name, run in variants.items():
            start = time.process_time()
            run()
            spent[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in spent.items()}


def machine() -> str:
    """Versions and processor, for the line under a table."""
    with open("/proc/cpuinfo") as file:
        models = {line.split(":")[1].strip() for line in file if line.startswith("model name")}
    processor = ", ".join(sorted(models)) or platform.processor()
    return f"torch {torch.__version__}, Python {platform.python_version()}, {processor}, 1 thread"
