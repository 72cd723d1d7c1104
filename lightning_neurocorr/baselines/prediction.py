"""Turn whatever a baseline returned into one checked tensor."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr.functional.devices import sent
from lightning_neurocorr.functional.exactness import check_exact

_INT64_MAX = torch.iinfo(torch.int64).max


def as_tensor(values: Any, what: str) -> Tensor:
    """A tensor of bools, integers or floats from a tensor, an array or a list of numbers.

    Args:
        values: The numbers.
        what: What they are, for the error message.

    Raises:
        TypeError: If ``values`` is not made of real numbers.
    """
    values = _stacked(values)
    if isinstance(values, Tensor):
        if values.is_complex():
            raise TypeError(f"Expected {what} to be real numbers, but got {values.dtype}.")
        return values.detach()
    try:
        array = np.asarray(values)
    except (
        ValueError,
        TypeError,
        OverflowError,
        RuntimeError,
    ):  # ragged lists, integers beyond 64 bits
        array = np.asarray(None)
    if array.dtype.kind == "u" and array.size and int(array.max()) > _INT64_MAX:
        raise TypeError(f"Expected {what} to fit 64-bit integers, but got {array.max()}.")
    if array.dtype.kind not in "buif":
        raise TypeError(
            f"Expected {what} to be a tensor or an array of numbers, but got {_shown(values)}."
        )
    kinds = {"b": np.bool_, "u": np.int64, "i": np.int64}
    floating = np.float32 if array.dtype.itemsize <= 4 else np.float64
    return torch.from_numpy(np.array(array, dtype=kinds.get(array.dtype.kind, floating), order="C"))


def check_prediction(
    prediction: Any,
    num_samples: int,
    num_classes: int | None = None,
    *,
    device: torch.device | str | None = None,
    name: str = "baseline",
    classification: bool = True,
    values: bool = True,
) -> Tensor:
    """What a baseline returned for a batch, as a tensor to compare with the model's prediction.

    Args:
        prediction: Class ids ``(N,)`` (integers, bools or integral floats) or scores ``(N, C)``; a
            tensor, an array or a list.
        num_samples: ``N`` of the batch.
        num_classes: ``C`` of the model, where the baseline must have the same classes.
        device: Where the result should be; ``None`` leaves it where it is.
        name: The baseline, for the error message.
        classification: False for an advantage of one's own: then only the numbers' type and ``N``
            are checked.
        values: False skips the checks that read values, which on an accelerator wait for it.

    Returns:
        int64 class ids ``(N,)`` or floating scores ``(N, C)``; with ``classification=False`` the
        numbers unchanged.

    Raises:
        TypeError: If it is not made of numbers.
        ValueError: If the shape does not fit, an id is not a class, or a score is NaN.
    """
    tensor = as_tensor(prediction, f"the prediction of `baseline` ({name})")
    fits = tensor.ndim >= 1 and tensor.shape[0] == num_samples
    if not fits or (classification and tensor.ndim > 2):
        form = "(N,) class ids or (N, C) scores" if classification else "one answer per sample"
        raise ValueError(
            f"Expected `baseline` ({name}) to return {form} for the N = {num_samples} samples of "
            f"the batch, but got shape {tuple(tensor.shape)}."
        )
    if classification and tensor.ndim == 1:
        tensor = _ids(tensor, num_classes, name, values)
    elif classification:
        tensor = _scores(tensor, num_classes, name, values)
    return tensor if device is None else sent(tensor, torch.device(device))


def _ids(ids: Tensor, num_classes: int | None, name: str, values: bool) -> Tensor:
    """Integral ids as int64."""
    if ids.dtype == torch.bool and num_classes is not None and num_classes > 2:
        raise ValueError(
            f"Expected `baseline` ({name}) to return class ids from 0 to {num_classes - 1}, but "
            "got bools. If they say where it is right, return its class ids instead."
        )
    if values and ids.is_floating_point():
        wanted = "integral class ids (N,), or scores (N, C)"
        _refuse((ids != ids.round()) | ~ids.isfinite(), ids, name, wanted)
        check_exact(ids, f"class ids of `baseline` ({name})")
    if ids.is_floating_point():
        ids = ids.round()
    ids = ids.to(torch.int64)
    if values:
        wanted = f"class ids from 0{'' if num_classes is None else f' to {num_classes - 1}'}"
        beyond = ids < 0 if num_classes is None else (ids < 0) | (ids >= num_classes)
        _refuse(beyond, ids, name, wanted)
    return ids


def _scores(scores: Tensor, num_classes: int | None, name: str, values: bool) -> Tensor:
    """Scores as floats, one column per class."""
    columns = scores.shape[1]
    if columns < 2:
        raise ValueError(
            f"Expected `baseline` ({name}) to return (N,) class ids or (N, C) scores with a column "
            f"per class, but got shape {tuple(scores.shape)}. For a single logit return the ids "
            "(logit > 0)[:, 0]."
        )
    if num_classes is not None and columns != num_classes:
        raise ValueError(
            f"Expected `baseline` ({name}) to return scores for the model's {num_classes} classes, "
            f"but got {columns} columns. {_other_classes(columns < num_classes)}"
        )
    if not scores.is_floating_point():
        scores = scores.float()
    if values:
        _refuse(scores.isnan().any(dim=1), scores, name, "scores without NaN")
    return scores


def _other_classes(fewer: bool) -> str:
    """What to do about scores of other classes than the model's."""
    if fewer:
        return (
            "Give the missing classes scores too, such as probability 0: EstimatorBaseline takes "
            "`num_classes=` where an estimator has not seen the last classes."
        )
    return "Leave out the columns of classes that the model has not, and count classes from 0."


def _refuse(bad: Tensor, values: Tensor, name: str, wanted: str) -> None:
    """Raise for the first sample that is bad."""
    if bool(bad.any()):
        first = int(bad.int().argmax())
        cure = ""
        if values.ndim == 1 and bool(values[first] < 0):
            cure = (
                " If that is no answer, leave these samples out of the validation set; if it is a "
                "class, count classes from 0."
            )
        raise ValueError(
            f"Expected `baseline` ({name}) to return {wanted}, but got {values[first].tolist()} "
            f"for sample {first} of the batch.{cure}"
        )


def _stacked(values: Any) -> Any:
    """A list of equally shaped tensors as one tensor; anything else as it is."""
    if not (isinstance(values, (list, tuple)) and any(isinstance(v, Tensor) for v in values)):
        return values
    try:
        return torch.stack([torch.as_tensor(value) for value in values])
    except (RuntimeError, TypeError, ValueError):
        return values


def _shown(values: Any) -> str:
    """A short description for an error message."""
    if isinstance(values, (list, tuple)) and values:
        return f"a {type(values).__name__} that starts with {values[0]!r:.60}"
    if (dtype := getattr(values, "dtype", None)) is not None:
        return f"a {type(values).__name__} of {dtype}"
    return f"{values!r:.60}" if values is None else f"a {type(values).__name__}"
