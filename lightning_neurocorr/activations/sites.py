"""Where a layer's neurons are read: at the output of a module, or at the input of another.

Everything that listens to a layer, or says something in its place, takes a module or a
:class:`Site`. A plain module is read at its own output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

# An axis that holds several, with their sizes; one of them may be -1.
Unfold = tuple[tuple[int, tuple[int, ...]], ...]


@dataclass(frozen=True, eq=False)
class Site:
    """Where the neurons of a layer are read, and which axes are units and samples there.

    Attributes:
        layer: The layer itself.
        module: The module that carries the hook: the layer, or one behind it.
        name: What is read, in words: ``"relu"``, ``"input of conv2"``.
        argument: The argument of ``module`` that is read, by position or keyword; None reads what
            it returns.
        ndim: Number of axes, once unfolded; None where axes are what the layer's kind says.
        units: The axis of the units, from 0, or from the end where negative; None as above.
        samples: The axis of the samples; None as the layer's kind says.
        unfold: Axes that hold several in one, such as channels and places in front of a linear
            layer: they are taken apart before anything is read, the last one first.
    """

    layer: nn.Module
    module: nn.Module
    name: str
    argument: int | str | None = None
    ndim: int | None = None
    units: int | None = None
    samples: int | None = None
    unfold: Unfold = ()

    @property
    def elsewhere(self) -> bool:
        """Whether it is another module than the layer that is listened to."""
        return self.module is not self.layer

    def spread(self, value: Any) -> Any:
        """What is heard, with axes that hold several taken apart."""
        if isinstance(value, Tensor):
            for axis, sizes in sorted(self.unfold, reverse=True):
                value = value.unflatten(axis, sizes)
        return value

    def packed(self, value: Any) -> Any:
        """The reverse of :meth:`spread`."""
        if isinstance(value, Tensor):
            for axis, sizes in sorted(self.unfold):
                value = value.flatten(axis, axis + len(sizes) - 1)
        return value


Place = nn.Module | Site


def carrier(place: Place) -> nn.Module:
    """The module that carries the hook."""
    return place.module if isinstance(place, Site) else place


def layer_of(place: Place) -> nn.Module:
    """The layer whose neurons are read."""
    return place.layer if isinstance(place, Site) else place


def listen(
    place: Place, hook: Callable[[Place, Any], Any], *, first: bool = False
) -> RemovableHandle:
    """Call ``hook(place, value)`` with what a layer says, at every call.

    What the hook returns goes on in place of ``value``; None changes nothing. An output is given as
    the module returned it, be it a tuple or a dict. ``first`` puts the hook before the module's
    others: a call that they take to have ended is still going on then.
    """
    if not isinstance(place, Site):
        return place.register_forward_hook(lambda _m, _i, out: hook(place, out), prepend=first)
    site, argument = place, place.argument

    def changed(value: Any) -> Any:
        new = hook(site, site.spread(value))
        return None if new is None else site.packed(new)

    if argument is None and not site.unfold:
        return site.module.register_forward_hook(lambda _m, _i, out: hook(site, out), prepend=first)
    if argument is None:
        return site.module.register_forward_hook(lambda _m, _i, out: changed(out), prepend=first)

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given: Any = kwargs if isinstance(argument, str) else args
        new = changed(given[argument])
        if new is None:
            return None
        if isinstance(argument, str):
            return args, {**kwargs, argument: new}
        return (*args[:argument], new, *args[argument + 1 :]), kwargs

    return site.module.register_forward_pre_hook(before, with_kwargs=True)
