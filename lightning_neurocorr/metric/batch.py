"""What the neurons of a batch are correlated with: the same for every layer, so made only once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_neurocorr.functional.devices import sent, widest, with_float64


@dataclass(frozen=True)
class BatchColumns:
    """Advantage and covariates of a batch: ``N`` samples, ``k`` columns, ``F`` folds.

    Attributes:
        n: Samples in each fold, ``(F,)``, float64 where the state lies, as ``w`` and ``ww`` are.
        w: Means of the columns, ``(F, k)``.
        ww: Centred co-moments of the columns, ``(F, k, k)``.
        inside: 1 where a sample is in a fold, ``(F, N)``, where the activations lie.
        left: Of each fold ``inside``, then the centred columns, 0 elsewhere, ``(F (1 + k), N)``.
    """

    n: Tensor
    w: Tensor
    ww: Tensor
    inside: Tensor
    left: Tensor


def check_columns(
    advantage: Tensor, covariates: Tensor | None, fold: Tensor | None, shape: tuple[int, int]
) -> None:
    """Raise unless these come with ``(samples, covariates)``."""
    given = {"advantage": advantage, "covariates": covariates, "fold": fold}
    for name, values in given.items():
        if values is not None and not isinstance(values, Tensor):
            raise TypeError(
                f"Expected `{name}` to be a tensor, but got {type(values).__name__}. "
                "Pass it through torch.as_tensor."
            )
        if values is not None and values.is_complex():
            raise ValueError(f"Expected `{name}` to be real, but got complex numbers.")
    if advantage.shape != shape[:1]:
        raise ValueError(
            f"Expected `advantage` to have shape {shape[:1]}, but got {tuple(advantage.shape)}. "
            "Give one number for each sample."
        )
    found = (shape[0], 0) if covariates is None else tuple(covariates.shape)
    if found != shape:
        raise ValueError(
            f"Expected `covariates` to have shape {shape}, but got {found}. How many there are is "
            "said with `num_covariates`."
        )
    if fold is not None and fold.shape != shape[:1]:
        raise ValueError(f"Expected `fold` to have shape {shape[:1]}, but got {tuple(fold.shape)}.")


def read_columns(
    advantage: Tensor,
    covariates: Tensor | None,
    fold: Tensor | None,
    *,
    folds: int,
    device: torch.device,
    state_device: torch.device,
) -> BatchColumns:
    """Centre what comes with activations on ``device`` in each fold.

    Raises:
        ValueError: If, where it is known without waiting for a device, the advantage is not finite
            or a fold is out of range.
    """
    home = with_float64(device)  # float32 would leave a spread to a column that is constant
    columns = _columns(advantage, covariates, home)
    inside = _inside(columns, fold, folds)
    n = inside.sum(1)
    w = (inside @ columns) / n.clamp_min(1)[:, None]
    centred = (columns.mT - w[:, :, None]) * inside[:, None]  # (F, k, N)
    left = torch.cat([inside[:, None], centred], 1).flatten(0, 1)
    n, w, ww = (exact(part, state_device) for part in (n, w, centred @ centred.mT))
    return BatchColumns(n, w, ww, sent(inside, device), sent(left, device))


def _columns(advantage: Tensor, covariates: Tensor | None, device: torch.device) -> Tensor:
    """Advantage and covariates, ``(N, k)``."""
    columns = advantage.detach().to(device, widest(device))[:, None]
    # A check on an accelerator would wait for it at every batch; there compute() raises.
    if device.type == "cpu" and not _are_finite(columns):
        raise ValueError(
            "Expected `advantage` to be finite, but got NaN or infinity. "
            "Drop or clip those samples."
        )
    if covariates is None:
        return columns
    return torch.cat([columns, covariates.detach().to(columns)], 1)


def _are_finite(values: Tensor) -> bool:
    """Whether all are finite: so they are where their sum is, which is one operation."""
    return math.isfinite(float(values.sum())) or bool(values.isfinite().all())


def _inside(columns: Tensor, fold: Tensor | None, folds: int) -> Tensor:
    """Which samples are in which fold, ``(F, N)``."""
    if fold is None:
        inside = columns.new_ones(1, len(columns))
        return inside if folds == 1 else nn.functional.pad(inside, (0, 0, 0, folds - 1))
    inside = fold.to(columns.device) == torch.arange(folds, device=columns.device)[:, None]
    if columns.device.type == "cpu" and not bool(inside.any(0).all()):
        raise ValueError(
            f"Expected `fold` to hold integers in [0, {folds}), but got {fold.unique()}."
        )
    return inside.to(columns.dtype)


def exact(values: Tensor, device: torch.device) -> Tensor:
    """As float64 on the device of a state, which has it."""
    return values.to(device).double()
