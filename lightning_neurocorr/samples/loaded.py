"""A batch as it was loaded, whatever a validation step writes into it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Path = tuple[Any, ...]

_DEEPEST = 4


class LoadedBatch:
    """Keeps a batch for after the validation step: baselines are asked about what was loaded.

    A step may put other tensors into the batch, take some out (``batch.pop("labels")``), or write
    into them (``x.sub_(mean)``). Containers are copied, and those tensors that are known to be
    written into: all of them, where that is still to be found out.

    Args:
        batch: The batch before the step.
        written: Where tensors are written into; None finds out.

    Attributes:
        kept: The batch with the very tensors that were loaded, whatever was written into them.
    """

    def __init__(self, batch: Any, written: frozenset[Path] | None = None) -> None:
        self.written = written
        self.kept = _copied(batch)
        self._copies = {
            path: part.clone()
            for path, part in _tensors(batch, ())
            if written is None or path in written
        }

    def restored(self, batch: Any) -> Any:
        """The batch as it was loaded: itself where nothing was changed. What was added stays.

        Args:
            batch: The same batch after the step.
        """
        if self.written is None:
            now = dict(_tensors(self.kept, ()))
            self.written = frozenset(
                path for path, was in self._copies.items() if not _is_same(now[path], was)
            )
            self._copies = {path: self._copies[path] for path in self.written}
        return self._restored(self.kept, batch, ())

    def _restored(self, kept: Any, now: Any, path: Path) -> Any:
        if path in self._copies:
            return self._copies[path]
        before = _parts(kept) if len(path) < _DEEPEST else None
        if before is None:
            return kept
        after = (_parts(now) if type(now) is type(kept) else None) or {}
        parts = {
            key: self._restored(part, after.get(key), (*path, key)) for key, part in before.items()
        }
        same = len(after) == len(before) or isinstance(now, Mapping)
        if same and all(key in after and after[key] is part for key, part in parts.items()):
            return now
        added = {key: part for key, part in after.items() if key not in parts}
        return _with_parts(kept, {**parts, **added} if isinstance(kept, Mapping) else parts)


def _parts(value: Any) -> dict[Any, Any] | None:
    """What a container holds by key, index or name; None of anything else."""
    if isinstance(value, Tensor):
        return None
    if isinstance(value, (tuple, list)):
        return dict(enumerate(value))
    if isinstance(value, Mapping):
        return dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None


def _with_parts(value: Any, parts: dict[Any, Any]) -> Any:
    """A container of the same kind that holds other parts."""
    if isinstance(value, (tuple, list)):
        made = list(parts.values())
        return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)
    if type(value) is dict:
        return parts
    other: Any = copy.copy(value)
    for key, part in parts.items():
        if isinstance(value, Mapping):
            other[key] = part
        else:
            object.__setattr__(other, key, part)
    return other


def _copied(value: Any, depth: int = 0) -> Any:
    """Containers of their own, as deep as they are looked into."""
    parts = _parts(value) if depth < _DEEPEST else None
    if parts is None:
        return value
    try:
        return _with_parts(value, {key: _copied(part, depth + 1) for key, part in parts.items()})
    except (TypeError, AttributeError, ValueError):  # of its own kind: who cannot write, need not
        return value


def _tensors(value: Any, path: Path) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor that can be compared and where it lies."""
    if isinstance(value, Tensor):
        if not value.is_nested and value.layout == torch.strided and value.device.type != "meta":
            yield path, value
        return
    for key, part in ((_parts(value) or {}) if len(path) < _DEEPEST else {}).items():
        yield from _tensors(part, (*path, key))


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers; NaN is NaN."""
    if one.shape != other.shape or torch.equal(one, other):
        return one.shape == other.shape
    return bool(((one == other) | ((one != one) & (other != other))).all())
