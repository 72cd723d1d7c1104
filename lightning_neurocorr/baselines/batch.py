"""Read a batch: its inputs, its target, or a field by key, position or attribute.

A batch may be a tensor, a tuple, a list, a dict, a dataclass or any object with named parts.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import reduce
from typing import Any

import numpy as np
from torch import Tensor

from lightning_neurocorr.baselines.prediction import as_tensor

Field = int | Callable[[Any], Any] | str
"""Where to find something in a batch: a position, a function of the batch, or a key or dotted
attribute."""

INPUT_NAMES = ("x", "input", "inputs", "image", "images", "img", "pixel_values", "features", "data")
TARGET_NAMES = ("target", "targets", "label", "labels", "y")

_SAY_TARGET = (
    "Say where the target is: `target=`, a key, an index or a function of the batch, such as "
    "target=2 or target=lambda batch: batch[2]."
)


def default_inputs(batch: Any) -> Any:
    """The model's input in a batch, where that is plain.

    A tensor is the input itself. A tuple or list is ``(x, y, ...)``: its first element. Named parts
    (a dict, a dataclass, a named tuple, an object): the one called like one of `INPUT_NAMES`, in
    that order; else the only tensor that is not called like a target.

    Raises:
        ValueError: If it is not plain; the message names the parts that were found.
    """
    if isinstance(batch, (Tensor, np.ndarray)):
        return batch
    named = named_parts(batch)
    for name in INPUT_NAMES:
        if named and name in named:
            return named[name]
    others = [
        k for k, v in (named or {}).items() if k not in TARGET_NAMES and isinstance(v, Tensor)
    ]
    if named and len(others) == 1:
        return named[others[0]]
    if isinstance(batch, (tuple, list)) and batch:
        return batch[0]
    raise ValueError(
        f"Expected the batch to be a tensor, (x, y) or to have one of {', '.join(INPUT_NAMES)}, "
        f"but got {described(batch)}. Say where the input is with `inputs=` or `features=`: a key, "
        "a position or a function of the batch."
    )


def default_target(batch: Any) -> Tensor:
    """The target in a batch, where that is plain; see `target_field`.

    Raises:
        ValueError: If it is not plain; the message names the parts that were found.
        TypeError: If it is not made of numbers.
    """
    field = target_field(batch)
    if isinstance(field, str):
        return _numbers((named_parts(batch) or {})[field], f"the batch's {field!r}")
    return _numbers(batch[field], "the target, the second element of the batch,")


def target_field(batch: Any) -> int | str:
    """Where the target is in a batch, where that is plain.

    Named parts: the one called like one of `TARGET_NAMES`. A tuple or list is ``(x, y)``: its
    second element. Of three and more elements any may be the target.

    Raises:
        ValueError: If there is none or it could be several; the message names the parts.
    """
    named = named_parts(batch) or {}
    found = [name for name in TARGET_NAMES if named.get(name) is not None]
    if found and all(named[name] is named[found[0]] for name in found):
        return found[0]
    if found:
        raise ValueError(
            f"Expected one part of the batch to be the target, but got {described(batch)}, of "
            f"which {' and '.join(map(repr, found))} may be. {_SAY_TARGET}"
        )
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return 1
    raise ValueError(
        f"Expected the batch to be (x, y) or to have one of {', '.join(TARGET_NAMES)}, but got "
        f"{described(batch)}. {_SAY_TARGET}"
    )


def read_inputs(batch: Any, inputs: Field | None) -> Any:
    """The input by `read_field`, or by `default_inputs` where ``inputs`` is ``None``."""
    return default_inputs(batch) if inputs is None else read_field(batch, inputs, "inputs")


def read_target(batch: Any, target: Field | None) -> Tensor:
    """The target by `read_field`, or by `default_target` where ``target`` is ``None``."""
    if target is None:
        return default_target(batch)
    return _numbers(read_field(batch, target, "target"), f"`target` ({target!r}) of the batch")


def _numbers(values: Any, what: str) -> Tensor:
    """As `as_tensor`; several tensors would be several targets."""
    several = isinstance(values, (tuple, list)) and any(
        isinstance(part, (Tensor, np.ndarray)) and part.ndim for part in values
    )
    if several:
        raise TypeError(
            f"Expected {what} to be one tensor or array, but got {described(values)}. {_SAY_TARGET}"
        )
    try:
        return as_tensor(values, what)
    except TypeError as error:
        raise TypeError(f"{error} {_SAY_TARGET}") from None


def read_field(batch: Any, field: Field, argument: str = "field") -> Any:
    """The part of ``batch`` that ``field`` names.

    Args:
        batch: Any batch.
        field: A position in a tuple or list; a key of a dict; an attribute; keys, attributes and
            positions joined by dots (``"meta.reader"``); or a function of the batch.
        argument: The name of the argument that ``field`` was given as, for the error message.

    Raises:
        ValueError: If the batch has no such part; the message names the parts that were found.
    """
    if callable(field):
        return field(batch)
    if isinstance(field, str) and isinstance(batch, Mapping) and field in batch:
        return batch[field]
    parts = field.split(".") if isinstance(field, str) else [field]
    try:
        return reduce(_part, parts, batch)
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        raise ValueError(
            f"Expected `{argument}` to name a part of the batch, but got {field!r} for "
            f"{described(batch)}."
        ) from error


def check_field(field: Any, argument: str) -> None:
    """Raise unless ``field`` can be given to `read_field`."""
    if (
        isinstance(field, bool)
        or not (isinstance(field, (int, str)) or callable(field))
        or field == ""
    ):
        raise TypeError(
            f"Expected `{argument}` to be a key, a position, a dotted attribute or a function of "
            f"the batch, but got {field!r}."
        )


def count_samples(batch: Any, target: Field | None = None) -> tuple[int, Tensor]:
    """``N`` of a batch and the tensor it was read from: the target, else the first tensor found."""
    try:
        found = read_target(batch, target)
    except (ValueError, TypeError):
        if target is not None:
            raise
        found = _first_tensor(batch)
    if found is None or found.ndim == 0:
        raise ValueError(
            "Expected the batch to hold a tensor with one row per sample, but got "
            f"{described(batch)}."
        )
    return found.shape[0], found


def named_parts(batch: Any) -> dict[str, Any] | None:
    """The named parts of a batch, ``None`` if it has none."""
    if isinstance(batch, (Tensor, np.ndarray, str, bytes, type)) or batch is None:
        return None
    if hasattr(batch, "keys") and hasattr(batch, "__getitem__"):  # dicts and everything like them
        return {str(key): batch[key] for key in batch.keys()}  # noqa: SIM118
    if is_dataclass(batch):
        return {field.name: getattr(batch, field.name) for field in fields(batch)}
    if hasattr(batch, "_asdict"):  # named tuples
        return dict(batch._asdict())
    if isinstance(batch, (tuple, list)) or not hasattr(batch, "__dict__"):
        return None
    return {name: value for name, value in vars(batch).items() if not name.startswith("_")}


def described(batch: Any) -> str:
    """What a batch is, in words for an error message."""
    named = named_parts(batch)
    if named is not None:
        names = ", ".join(repr(name) for name in list(named)[:12]) or "nothing"
        return f"a {type(batch).__name__} with {names}{', ...' if len(named) > 12 else ''}"
    if isinstance(batch, (tuple, list)):
        shapes = ", ".join(
            str(tuple(part.shape))
            if isinstance(part, (Tensor, np.ndarray))
            else type(part).__name__
            for part in batch[:12]
        )
        return f"a {type(batch).__name__} of {len(batch)}{f': {shapes}' if shapes else ''}"
    if isinstance(batch, (Tensor, np.ndarray)):
        return f"a {type(batch).__name__} of shape {tuple(batch.shape)}"
    return f"a {type(batch).__name__}"


def _part(value: Any, part: int | str) -> Any:
    """One step into a batch."""
    if isinstance(part, int) or (part.lstrip("-").isdigit() and isinstance(value, (tuple, list))):
        if isinstance(value, (Tensor, np.ndarray)):  # batch[2] would be a sample, not a field
            raise TypeError
        return value[int(part)]
    if hasattr(value, "keys") and part in value.keys():  # noqa: SIM118
        return value[part]
    return getattr(value, part)


def _first_tensor(batch: Any) -> Tensor | None:
    """The first tensor with rows in a batch, searched in depth."""
    if isinstance(batch, Tensor):
        return batch if batch.ndim else None
    named = named_parts(batch)
    parts = (
        named.values() if named is not None else batch if isinstance(batch, (tuple, list)) else ()
    )
    found = (_first_tensor(part) for part in parts)
    return next((tensor for tensor in found if tensor is not None), None)


class BatchBaseline:
    """Answers that are already in the batch: a second label, another system's output.

    Args:
        field: Key, position, dotted attribute (``"readings.first"``) or a function of the batch.

    Example:
        >>> import torch
        >>> BatchBaseline("reader")({"x": torch.rand(2, 3), "reader": torch.tensor([1, 1])})
        tensor([1, 1])
    """

    def __init__(self, field: Field) -> None:
        check_field(field, "field")
        self.field = field

    def __call__(self, batch: Any) -> Tensor:
        """``(N,)`` class ids or ``(N, C)`` scores, as they stand in the batch."""
        return as_tensor(read_field(batch, self.field), f"`field` ({self.field!r}) of the batch")

    def __repr__(self) -> str:
        return f"BatchBaseline({self.field!r})"
