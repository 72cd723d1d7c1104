"""How a module was called, read from one batch and found again in another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
_Find = Callable[[Any], Any]


def argument_reader(
    batch: Any, arguments: Arguments, held: Iterable[Tensor] = ()
) -> Callable[[Any], Arguments] | None:
    """How a module's arguments are read from a batch, learnt from one call.

    Every tensor in the arguments must be a part of the batch itself, such as ``batch[0]`` or
    ``batch["image"]``, or a weight or buffer; others are taken to be the same for every batch.

    Args:
        batch: The batch.
        arguments: Positional and keyword arguments of the call.
        held: Weights and buffers of the model.

    Returns:
        None where an argument was computed from the batch.
    """
    parts, weights = list(_parts(batch, ())), {id(tensor) for tensor in held}
    try:
        return _finder(arguments, parts, weights)
    except LookupError:
        return None


def _finder(value: Any, parts: list[tuple[tuple[Any, ...], Any]], weights: set[int]) -> _Find:
    """How a value is found in another batch.

    Raises:
        LookupError: If it was computed from the batch.
    """
    path = next((path for path, part in parts if part is value), None)
    if path is not None and (isinstance(value, Tensor) or _holds_tensor(value)):
        return lambda other: _follow(other, path)
    if isinstance(value, Tensor) and id(value) not in weights:
        raise LookupError
    if type(value) in (tuple, list) and _holds_tensor(value):
        inner = [_finder(part, parts, weights) for part in value]
        return lambda other: type(value)(find(other) for find in inner)
    if type(value) is dict and _holds_tensor(value):
        named = {key: _finder(part, parts, weights) for key, part in value.items()}
        return lambda other: {key: find(other) for key, find in named.items()}
    if not isinstance(value, Tensor) and _holds_tensor(value):
        raise LookupError
    return lambda _: value


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
