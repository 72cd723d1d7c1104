"""Whether kernels did to a first batch what operators of PyTorch do to it.

A compiler or a device that errs must not go unseen. It is asked once per process and kind of batch,
because the answer waits for the device; errors of that sort are much larger than rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_neurocorr.functional import Moments

_ROUNDING = 1e-2  # of a neuron's spread: float32 of a wide range, or far from 0, errs by less


def can_wait(device: torch.device) -> bool:
    """Whether values can be looked at: not those of no device, nor while a CUDA graph is made."""
    return device.type != "meta" and not is_recorded(device)


def is_recorded(device: torch.device) -> bool:
    """Whether a CUDA graph is being made, which repeats later what is launched now."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def agree(found: Moments, expected: Moments) -> bool:
    """Whether moments of ``F`` folds are alike; what float32 could not hold is not compared."""
    n, means, nothing = expected.n[:, None], expected.mean, expected.n[:, None] == 0
    apart = means.masked_fill(nothing, -torch.inf).amax(0)
    apart -= means.masked_fill(nothing, torch.inf).amin(0)
    spread = (expected.m2.sum(0) + n.sum(0) * apart**2).sqrt()  # of all folds, ``(D,)``
    told = spread.isfinite() & (spread > 1e-14 * n.sum(0).sqrt())
    # Of a constant column nothing but rounding is left.
    weights = expected.ww.diagonal(dim1=-2, dim2=-1).sqrt() + 1e-6 * n.sqrt() * expected.w.abs()
    weights += 1e-30
    gaps = [
        (found.mean - means) * n.sqrt() / spread,
        (found.m2 - expected.m2) / spread**2,
        found.active - expected.active,
        ((found.c - expected.c) / (spread * weights[..., None])).abs().amax(1),
    ]
    right = [((gap.abs() <= _ROUNDING) | ~told).all() for gap in gaps]
    heads = [
        found.n - expected.n,
        (found.w - expected.w) * n.sqrt() / weights,
        (found.ww - expected.ww) / (weights[..., None] * weights[:, None]),
    ]
    right += [(gap.abs() <= _ROUNDING).all() | ~expected.w.isfinite().all() for gap in heads]
    return bool(torch.stack(right).all())


def scalars_agree(scalars: Tensor, advantage: Tensor, cell: Tensor) -> bool:
    """Whether these are the samples of each cell and the sum of their advantage, ``(cells, 2)``."""
    values = torch.stack([torch.ones_like(advantage), advantage], 1).double()
    expected = torch.zeros_like(scalars).index_add_(0, cell, values)
    most = values.abs().sum(0)
    return bool((((scalars - expected).abs() <= 1e-9 * most) | ~most.isfinite()).all())


def cells_agree(sums: Tensor, y: Tensor, cell: Tensor) -> bool:
    """Whether sums ``(2, cells, d)`` of a batch and its squares are those of ``y`` ``(N, d)``."""
    expected = torch.zeros_like(sums)
    for part, values in zip(expected, (y, y * y), strict=True):
        part.index_add_(0, cell, values)
    most = (y * y).sum(0)
    scale = torch.stack([most.sqrt(), most])[:, None] * len(y)
    close = (sums - expected).abs() <= 1e-9 * scale
    return bool((close | ~scale.isfinite()).all())
