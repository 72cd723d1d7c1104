"""How a module was called, read from one batch and found again in another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

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
