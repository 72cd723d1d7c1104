"""The metric's update on a GPU, against what reads or copies the batch once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchmetrics import PearsonCorrCoef

from lightning_neurocorr import NeuronAdvantageCorrelation
from tests.benchmarks.gpu_table import Bench, Row, microseconds

# Convolutions of ResNet-50 in order, and its head: 54 layers.
RESNET50 = [64] + [
    width
    for blocks, narrow in ((3, 64), (4, 128), (6, 256), (3, 512))
    for block in range(blocks)
    for width in [narrow, narrow, 4 * narrow] + [4 * narrow] * (block == 0)
] + [1000]  # fmt: skip
_GOALS = {
    (100_000, torch.float32): 150e-6,
    (1_000_000, torch.float32): 700e-6,
    (1_000_000, torch.bfloat16): 700e-6,
}
_CALLS = 10  # between synchronisations
_PEER = 8  # times faster than PearsonCorrCoef, at 100,000


def plain_sums(x: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a correlation needs of a batch, in float32 and around no shift: the floor, compiled."""
    x = x.float()
    return x.sum(0), (x * x).sum(0), (x * a[:, None]).sum(0)


def fused(bench: Bench, x: Tensor, a: Tensor) -> dict[str, Callable[[], Any]]:
    """The floor as one kernel on a GPU, as it stands without one; none where it cannot be made."""
    if bench.device.type != "cuda":
        return {"plain fused": partial(plain_sums, x, a)}
    compiled = torch.compile(plain_sums, dynamic=False)
    try:
        compiled(x, a)
    except Exception:  # noqa: BLE001 -- the other figures are worth having
        return {}
    return {"plain fused": partial(compiled, x, a)}


def sized(bench: Bench, neurons: int, dtype: torch.dtype) -> list[Row]:
    """One update of ``batch × neurons``."""
    batch, device = bench.sizes.batch, bench.device
    x = torch.randn(batch, neurons, device=device).to(dtype)
    a = torch.randint(-1, 2, (batch,), device=device).float()
    metric, peer = NeuronAdvantageCorrelation(neurons), PearsonCorrCoef(num_outputs=neurons)
    metric, peer = metric.to(device), peer.to(device)
    spread, copied = a[:, None].expand(-1, neurons).contiguous(), torch.empty_like(x)
    variants = {
        "update": partial(metric.update, x, a),
        "`X.sum(0)`": partial(x.sum, 0),
        "copy": partial(copied.copy_, x),
        **fused(bench, x, a),
    }
    if dtype == torch.float32:
        variants["`PearsonCorrCoef`"] = lambda: peer.update(x, spread)
    found = bench.medians(variants, cap_s=6, repeats=2 * bench.sizes.repeats, calls=_CALLS)
    ours = found.pop("update")
    bandwidth = 2 * x.nbytes / found["copy"]  # it reads and writes
    share = x.nbytes / ours / bandwidth
    limit = _GOALS.get((neurons, dtype))
    goal = "" if limit is None else f"≤ {microseconds(limit)}"
    met = None if limit is None else ours <= limit
    if neurons == 100_000 and dtype == torch.float32:
        goal += f"; ≥ {_PEER}× `PearsonCorrCoef`"
        met = bool(met) and found["`PearsonCorrCoef`"] >= _PEER * ours
    kind = str(dtype).removeprefix("torch.")
    return [
        Row(
            f"`update`, {batch} × {neurons:,} {kind}",
            f"{microseconds(ours)} ({share:.0%} of copy bandwidth)",
            ", ".join(f"{name} {microseconds(value)}" for name, value in found.items()),
            goal,
            met,
        )
    ]


def layers(bench: Bench) -> list[Row]:
    """One update with the layers of a ResNet-50, each a matrix of its own."""
    batch, device = bench.sizes.batch, bench.device
    sizes = RESNET50[-4:] if bench.sizes.small else RESNET50
    xs = [torch.randn(batch, d, device=device) for d in sizes]
    a = torch.randint(-1, 2, (batch,), device=device).float()
    metric = NeuronAdvantageCorrelation(sum(sizes)).to(device)
    joined = torch.cat(xs, 1)
    variants = {
        "update": lambda: metric.update(xs, a),
        "joined before": lambda: metric.update(joined, a),
        **fused(bench, joined, a),
    }
    found = bench.medians(variants, cap_s=6, repeats=2 * bench.sizes.repeats, calls=_CALLS)
    count, unit = bench.launches(variants["update"])
    ours = found.pop("update")
    return [
        Row(
            f"`update` of {len(sizes)} layers ({sum(sizes):,} neurons, batch {batch}) in one call",
            f"{microseconds(ours)}, {count} {unit}",
            ", ".join(f"{name} {microseconds(value)}" for name, value in found.items()),
            "≤ 400 µs, ≤ 12 kernel launches",
            ours <= 400e-6 and count <= 12,
        )
    ]


def all_sizes(bench: Bench) -> list[Row]:
    """Both widths, in both kinds of number."""
    return [
        row
        for dtype in (torch.float32, torch.bfloat16)
        for neurons in bench.sizes.neurons
        for row in sized(bench, neurons, dtype)
    ]
