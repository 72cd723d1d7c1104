"""Which layers of a model to watch."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import nn

from lightning_neurocorr.activations.axes import is_token_convolution
from lightning_neurocorr.activations.sequences import find_sequence_first
from lightning_neurocorr.isolation.torch_private import ConvNd

Layers = str | Sequence[str] | Callable[[str, nn.Module], bool] | None

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def layer_names(model: nn.Module, *, aliases: bool = False) -> dict[str, nn.Module]:
    """Every submodule by its dotted name, without what ``torch.compile`` and wrappers insert.

    Args:
        model: Any module.
        aliases: A module may be registered in several places: by all names, not the first alone.
    """
    find_sequence_first(model)
    named: dict[str, nn.Module] = {}
    try:
        everything = list(model.named_modules(remove_duplicate=not aliases))
    except RecursionError:  # a module that holds one that holds it
        everything = list(model.named_modules())
    for name, module in everything:
        parts = name.split(".")
        clean = ".".join(part for part in parts if part not in _WRAPPERS)
        if clean and (clean not in named or parts[-1] in _WRAPPERS):
            named[clean] = module  # the wrapped module, not its wrapper, is the layer
    return named


def choose_layers(model: nn.Module, layers: Layers = None) -> dict[str, nn.Module]:
    """The layers to watch, by dotted name, in the order of ``model.named_modules()``.

    Args:
        model: Any module.
        layers: ``None`` for every convolution, linear layer and ``nn.MultiheadAttention``; a dotted
            name for exactly that module; a glob such as ``"features.*"`` (``*`` crosses dots) for
            those kinds among its matches, or for all its matches where there is none; a sequence
            of names and globs; or a predicate ``(name, module) -> bool``.

    Raises:
        ValueError: If a name or glob matches nothing (the message lists close names) or no layer is
            left.
        TypeError: If ``layers`` is none of the above.
    """
    named = layer_names(model)
    if layers is None:
        chosen = {name: named[name] for name in _default_layers(named)}
    elif callable(layers) and not isinstance(layers, nn.Module):
        chosen = {name: module for name, module in named.items() if layers(name, module)}
    else:
        patterns = [layers] if isinstance(layers, str) else layers
        if not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
            raise TypeError(
                "Expected `layers` to be None, a name, a glob, a list of these or a predicate "
                f"(name, module) -> bool, but got {layers!r}."
            )
        chosen = _named_by(model, named, patterns)
    if not chosen:
        raise ValueError(
            f"Expected `layers` to choose at least one layer, but {layers!r} chose none of the "
            f"{len(named)} submodules of {type(model).__name__}. {_listed(named)}"
        )
    return chosen


def _default_layers(named: Mapping[str, nn.Module]) -> Iterator[str]:
    """Convolutions, linear layers and attention, which computes its linear layers by itself."""
    attention = {name for name, m in named.items() if isinstance(m, nn.MultiheadAttention)}
    for name, module in named.items():
        linear = isinstance(module, (ConvNd, nn.Linear)) or is_token_convolution(module)
        if name in attention or (linear and attention.isdisjoint(_above(name))):
            yield name


def _above(name: str) -> Iterator[str]:
    """The names of the modules that hold this one, from the inside out."""
    while name := name.rpartition(".")[0]:
        yield name


def _named_by(
    model: nn.Module, named: Mapping[str, nn.Module], patterns: Sequence[str]
) -> dict[str, nn.Module]:
    """Modules that a name or glob matches; a module's first name goes before its others."""
    every = layer_names(model, aliases=True)
    names: dict[nn.Module, str] = {}
    for pattern in patterns:
        for name in _match(every, pattern, named):
            if every[name] not in names or name in named:
                names[every[name]] = name
    return {names[module]: module for module in named.values() if module in names}


def _match(
    every: Mapping[str, nn.Module], pattern: str, named: Mapping[str, nn.Module]
) -> list[str]:
    if pattern in every:
        return [pattern]
    matches = fnmatch.filter(every, pattern)
    if matches:
        inside = set(matches)
        return [name for name in _default_layers(every) if name in inside] or matches
    close = difflib.get_close_matches(pattern, every, n=5, cutoff=0.4)
    hint = f"Did you mean {', '.join(map(repr, close))}?" if close else _listed(named)
    raise ValueError(
        f"Expected `layers` to be names of submodules, but got {pattern!r}, which matches none. "
        f"{hint}"
    )


def _listed(named: Mapping[str, nn.Module], limit: int = 12) -> str:
    names = list(_default_layers(named)) or list(named)
    if not names:
        return "It has no submodules."
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"There are: {', '.join(map(repr, names[:limit]))}{more}."
