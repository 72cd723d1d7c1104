"""Read a model's prediction and the target from what a validation step leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from lightning_neurocorr.activations import OutputRecorder, first_tensor
from lightning_neurocorr.baselines import default_target

Predictions = Callable[[Any, Any], tuple[Tensor, Tensor]]

_PREDICTION_KEYS = ("preds", "logits", "predictions", "y_hat")
_SCORE_KEYS = ("logits", "preds", "predictions", "y_hat")
_TARGET_KEYS = ("target", "targets", "labels", "label", "y")


def read_prediction(
    outputs: Any,
    batch: Any,
    recorder: OutputRecorder,
    predictions: Predictions | None = None,
    *,
    scores: bool = False,
) -> tuple[Tensor, Tensor]:
    """The model's prediction and the target of a batch, each with ``N`` rows.

    In order: the callable ``predictions``; a dict returned by ``validation_step``; the output of
    the watched module with the target of the batch.

    Args:
        outputs: What ``validation_step`` returned.
        batch: The batch.
        recorder: Saw the module whose output is the prediction.
        predictions: ``(outputs, batch) -> (prediction, target)``.
        scores: Prefer scores to class ids where a dict has both.

    Raises:
        ValueError: If none of these gives a prediction; says what would.
    """
    if predictions is not None:
        found = predictions(outputs, batch)
        if not (isinstance(found, (tuple, list)) and len(found) == 2):
            raise ValueError(
                "Expected `predictions(outputs, batch)` to return (prediction, target), but got "
                f"{type(found).__name__}."
            )
        prediction, target = found
    else:
        prediction, target = _from_dict(outputs, scores)
        if prediction is None:
            prediction = _from_module(recorder)
        if prediction is None:
            raise ValueError(_nothing_found(outputs))
        if target is None:
            target = default_target(batch)
    for name, value in (("prediction", prediction), ("target", target)):
        if not isinstance(value, Tensor) or value.ndim == 0:
            raise ValueError(
                f"Expected the {name} to be a tensor with one row per sample, but got "
                f"{'a number' if isinstance(value, Tensor) else type(value).__name__}. "
                "Say with `predictions=lambda outputs, batch: (prediction, target)` how to read it."
            )
    if len(prediction) != len(target):
        raise ValueError(
            f"Expected prediction and target to have the same length, but got {len(prediction)} "
            f"and {len(target)}. Say with `predictions` how to read them."
        )
    return prediction.detach(), target.detach()


def _from_dict(outputs: Any, scores: bool) -> tuple[Tensor | None, Tensor | None]:
    if not isinstance(outputs, Mapping):
        return None, None
    keys = _SCORE_KEYS if scores else _PREDICTION_KEYS
    prediction = next((outputs[key] for key in keys if key in outputs), None)
    target = next((outputs[key] for key in _TARGET_KEYS if key in outputs), None)
    return (prediction, target) if prediction is not None else (None, target)


def _from_module(recorder: OutputRecorder) -> Tensor | None:
    return logits_of(recorder.output) if recorder.called else None


def logits_of(output: Any) -> Tensor:
    """The logits in what a module returned: under that name, or its first tensor."""
    named = output.get("logits") if isinstance(output, Mapping) else None
    named = getattr(output, "logits", None) if named is None else named
    return named if isinstance(named, Tensor) else first_tensor(output)


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def argument_reader(batch: Any, arguments: Arguments) -> Callable[[Any], Arguments] | None:
    """How a module's arguments are read from a batch, learnt from one call.

    Every argument that holds a tensor must be a part of the batch itself, such as ``batch[0]`` or
    ``batch["image"]``; others are taken to be the same for every batch.

    Returns:
        None where an argument was computed from the batch.
    """
    args, kwargs = arguments
    parts = list(_parts(batch, ()))
    paths: list[tuple[Any, ...] | None] = []
    for value in (*args, *kwargs.values()):
        path = next((path for path, part in parts if part is value), None)
        if path is None and _holds_tensor(value):
            return None
        paths.append(path)

    def read(other: Any) -> Arguments:
        found = [
            value if path is None else _follow(other, path)
            for path, value in zip(paths, (*args, *kwargs.values()), strict=True)
        ]
        return tuple(found[: len(args)]), dict(zip(kwargs, found[len(args) :], strict=True))

    return read


def rows_of(arguments: Arguments) -> int:
    """The number of samples in a module's arguments: the length of their first tensor."""
    tensors = (part for _, part in _parts(arguments, ()) if isinstance(part, Tensor) and part.ndim)
    return len(next(tensors))


def _parts(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    yield path, value
    if isinstance(value, Mapping):
        items: Any = value.items()
    else:
        items = enumerate(value) if isinstance(value, (tuple, list)) else ()
    for key, part in items:
        yield from _parts(part, (*path, key))


def _follow(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _holds_tensor(value: Any) -> bool:
    return any(isinstance(part, Tensor) for _, part in _parts(value, ()))


def _nothing_found(outputs: Any) -> str:
    keys = f" with the keys {list(outputs)}" if isinstance(outputs, Mapping) else ""
    return (
        "Expected to find the model's prediction, but the forward of the module named by `output` "
        f"was not called and validation_step returned {type(outputs).__name__}{keys}. Either "
        "return {'preds': ..., 'target': ...} from validation_step, or name with `output` the "
        'submodule whose output is the prediction (`output="model"` for `self.model(x)`), or '
        "pass `predictions=lambda outputs, batch: (prediction, target)`."
    )
