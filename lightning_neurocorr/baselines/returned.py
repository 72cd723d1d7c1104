"""Which tensor of what a module returned is its prediction.

A module may return a tensor, or tensors in a tuple, dict, dataclass or object with named parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_neurocorr.baselines.batch import named_parts

Path = tuple[Any, ...]
"""Keys, indices and attributes that lead to a part, from the outside in."""

SCORE_NAMES = ("logits", "log_probs", "probs", "probabilities")
ANSWER_NAMES = ("preds", "prediction", "predictions", "y_hat", "y_pred", "output")
PREDICTION_NAMES = (*SCORE_NAMES, *ANSWER_NAMES)

_DEEPEST = 6  # of a nest; deeper ones are objects that hold each other


def prediction_path(
    returned: Any,
    *,
    names: Sequence[str] = PREDICTION_NAMES,
    num_classes: int | None = None,
    what: str = "the module",
    instead: str = "",
) -> Path:
    """Where the prediction lies in what a module returned.

    In order: a part called like one of ``names``; the only tensor; the only ``(N, C)`` with as
    many columns as there are classes. Losses and single numbers do not count.

    Args:
        returned: What the module returned.
        names: Known names, the first that is there counts.
        num_classes: ``C``, where it is known.
        what: What returned it, for the error message.
        instead: What else can be done about it, for the error message.

    Raises:
        ValueError: If it is none of these; the message lists the tensors with their shapes.
        TypeError: If there is no tensor.
    """
    if isinstance(returned, Tensor):
        return ()
    for name in names:
        part = _named(returned, name)
        if part is not None and any(True for _ in tensors_in(part)):
            inner = prediction_path(
                part, names=names, num_classes=num_classes, what=what, instead=instead
            )
            return (name, *inner)
    found = {id(tensor): (path, tensor) for path, tensor in tensors_in(returned)}
    if not found:
        raise TypeError(
            f"Expected {what} to return a tensor with one row per sample, but got "
            f"{type(returned).__name__}. {instead}".rstrip()
        )
    fits = [
        path
        for path, tensor in found.values()
        if tensor.ndim == 2 and tensor.is_floating_point() and tensor.shape[1] == num_classes
    ]
    if len(found) == 1:
        return next(iter(found.values()))[0]
    if len(fits) == 1:
        return fits[0]
    classes = "" if num_classes is None else f" with {num_classes} classes"
    raise ValueError(
        f"Expected {what} to return one tensor{classes} or to call its prediction {names[0]!r}, "
        f"but got {listed(found.values())}. {instead}".rstrip()
    )


def tensors_in(value: Any) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor with rows and where it lies; losses are left out."""
    yield from _tensors(value, ())


def follow(value: Any, path: Path) -> Any:
    """The part at a path.

    Raises:
        LookupError: If there is none.
    """
    for key in path:
        try:
            value = value[key] if _by_key(value, key) else getattr(value, key)
        except (LookupError, AttributeError, TypeError) as error:
            raise LookupError(f"there is no {shown(path)}") from error
    return value


def shown(path: Path) -> str:
    """A path in words: ``'logits'``, ``[1]``, ``[0]['logits']``."""
    if len(path) == 1 and isinstance(path[0], str):
        return repr(path[0])
    return "".join(f"[{key!r}]" for key in path)


def listed(parts: Any, most: int = 12) -> str:
    """Paths and tensors in words: ``[0] (32, 64), [1] (32, 10)``."""
    words = [f"{shown(path)} {tuple(tensor.shape)}" for path, tensor in parts]
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def _tensors(value: Any, path: Path) -> Iterator[tuple[Path, Tensor]]:
    if isinstance(value, Tensor):
        if value.ndim:
            yield path, value
        return
    if len(path) < _DEEPEST and not isinstance(value, nn.Module):
        for key, part in _children(value):
            if "loss" not in str(key).lower():
                yield from _tensors(part, (*path, key))


def _children(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        yield from enumerate(value)
    else:
        yield from (named_parts(value) or {}).items()


def _named(value: Any, name: str) -> Any:
    """A part by its name: also a property of an object, as distributions have."""
    if isinstance(value, Mapping):
        return value.get(name)
    return None if type(value) in (tuple, list) else getattr(value, name, None)


def _by_key(value: Any, key: Any) -> bool:
    return isinstance(key, int) or hasattr(value, "keys")
