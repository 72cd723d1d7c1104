"""How the user wants layers to be read: ``at`` and ``unit_axis``, for all layers or by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

At = Literal["activation", "raw"] | Mapping[str, Literal["activation", "raw"]]
UnitAxis = int | Mapping[str, int] | None


def check_reading(at: Any, unit_axis: Any) -> None:
    """Raise for values of the two options that can never work."""
    kinds = list(at.values()) if isinstance(at, Mapping) else [at]
    for kind in kinds:
        if kind not in ("activation", "raw"):
            raise ValueError(
                "Expected `at` to be 'activation', 'raw' or a dict of these by layer name, but got "
                f"{kind!r}."
            )
    axes = list(unit_axis.values()) if isinstance(unit_axis, Mapping) else [unit_axis]
    for axis in axes:
        if type(axis) is not int and unit_axis is not None:
            raise TypeError(
                "Expected `unit_axis` to be None, an axis such as -1 or a dict of axes by layer "
                f"name, but got {axis!r}."
            )


def check_names(at: At, unit_axis: UnitAxis, layers: Collection[str]) -> None:
    """Raise for a name in one of the options that is no watched layer."""
    for option, value in (("at", at), ("unit_axis", unit_axis)):
        unknown = [n for n in value if n not in layers] if isinstance(value, Mapping) else []
        if unknown:
            raise ValueError(
                f"Expected the names in `{option}` to be watched layers, but got "
                f"{unknown[0]!r}. There are: {', '.join(list(layers)[:12])}."
            )


def of_layer(option: Any, name: str, default: Any) -> Any:
    """What an option says of one layer."""
    return option.get(name, default) if isinstance(option, Mapping) else option
