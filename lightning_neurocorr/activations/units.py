"""Which units of which layers are meant: one check for all who are told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

import numpy as np
from torch import Tensor

_LIKE = "such as {'layer': [3, 7]}"


def unit_lists(units: Any) -> dict[str, list[int]]:
    """Sorted units by layer name, from whole numbers or lists, arrays and tensors of them.

    Raises:
        TypeError: If it is no mapping, or a unit is no whole number.
        ValueError: If a unit is negative.
    """
    if not isinstance(units, Mapping):
        raise TypeError(f"Expected `units` to be a dict {_LIKE}, but got {units!r}.")
    return {layer: _unit_list(layer, given) for layer, given in units.items()}


def _unit_list(layer: str, given: Any) -> list[int]:
    values = given.tolist() if isinstance(given, (Tensor, np.ndarray)) else given
    many = isinstance(values, Iterable) and not isinstance(values, (str, bytes))
    listed: list[Any] = list(values) if many else [values]
    wrong = [unit for unit in listed if not isinstance(unit, Integral) or isinstance(unit, bool)]
    if wrong:
        mask = " Of a mask, pass mask.nonzero().flatten()." if isinstance(wrong[0], bool) else ""
        raise TypeError(
            f"Expected units of layer {layer!r} to be whole numbers, {_LIKE}, but got "
            f"{wrong[0]!r}.{mask}"
        )
    chosen = sorted({int(unit) for unit in listed})
    if chosen and chosen[0] < 0:
        raise ValueError(f"Expected units of layer {layer!r} from 0 on, but got {chosen[0]}.")
    return chosen
