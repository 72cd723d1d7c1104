"""Whether tensors are the same numbers: shared, made one from another, or in another order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_neurocorr.baselines import returned as R
from lightning_neurocorr.samples import reordered


def check_order(prediction: Tensor, target: Tensor, batch: Any, output: Any) -> None:
    """Raise if prediction or target have the rows of the batch in another order."""
    if "meta" in (prediction.device.type, target.device.type):
        return  # they hold no values
    parts = [part for _, part in R.tensors_in(batch)]
    if not any(shares(part, target) for part in parts) and _moved(target, parts):
        raise ValueError(
            "Expected the target to have its rows in the order of the batch, but got those of a "
            "part of the batch in another order. The baseline is asked about the batch as it is. "
            "Let validation_step return rows in that order, or sort samples in `collate_fn`."
        )
    outputs = [part for _, part in R.tensors_in(output)]
    if not any(shares(part, prediction) for part in outputs) and _moved(
        prediction, [made for part in outputs for made in _made(part)]
    ):
        raise ValueError(
            "Expected the prediction to have its rows in the order in which the module named by "
            "`output` returned them, but got them in another order. Activations are in the order "
            "of that call. Sort samples in `collate_fn` instead of in validation_step, or name "
            "with `output` a module that sorts and sorts back inside."
        )


def _moved(rows: Tensor, parts: Sequence[Tensor]) -> bool:
    """Whether rows are those of a part in another order, and those of no part in this one."""
    alike = [part for part in parts if part.shape == rows.shape]
    return not any(_equals(rows, part) for part in alike) and any(
        reordered(rows, part) for part in alike
    )


def holds(output: Any, value: Tensor) -> bool:
    """Whether a tensor is a part of an output."""
    return any(shares(part, value) for _, part in R.tensors_in(output))


def shares(part: Tensor, value: Tensor) -> bool:
    """Whether two tensors are the same numbers in the same place; a detached one is."""
    if part is value:
        return True
    same = part.shape == value.shape and part.dtype == value.dtype and part.device == value.device
    if not same or part.device.type == "meta" or part.stride() != value.stride():
        return False
    return part.data_ptr() == value.data_ptr()


def made_from(value: Tensor, output: Any) -> bool:
    """Whether a prediction equals a part of an output, its class ids or its probabilities."""
    return any(_equals(value, made) for _, part in R.tensors_in(output) for made in _made(part))


def _made(part: Tensor) -> Iterable[Tensor]:
    yield part
    if part.ndim == 2 and part.is_floating_point():
        yield part.argmax(1)
        yield part.softmax(1)
        yield part.log_softmax(1)
        yield part.sigmoid()


def _equals(value: Tensor, made: Tensor) -> bool:
    if value.shape != made.shape:
        return False
    if not value.is_floating_point():
        return bool((value.to(made.device) == made).all())
    slack = 1e-2 if torch.float16 in (value.dtype, made.dtype) else 1e-5
    return bool(torch.allclose(value.float().to(made.device), made.float(), rtol=slack, atol=slack))
