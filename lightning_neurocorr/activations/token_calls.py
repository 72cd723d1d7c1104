"""Token masks are taken from the calls that get one.

A layer counts by the innermost call around it that has a mask of its length; outside of such calls
by any mask of the forward. Where none fits, or several that differ, nothing is guessed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

from lightning_neurocorr.activations.axes import Axes, axes_of
from lightning_neurocorr.activations.sites import Place
from lightning_neurocorr.activations.tokens import (
    PADDING_NAMES,
    REAL_NAMES,
    SAY_IT,
    TokenMask,
    UnreadableError,
    one_of,
    read_mask,
    read_token_mask,
)
from lightning_neurocorr.isolation.asides import depth

# Hands masks to a forward of the model, which never sees it.
TOKEN_MASK = "__token_mask__"  # noqa: S105 -- no secret

_NAMES = (*PADDING_NAMES, *REAL_NAMES)

# A hook on their parts would switch off a fast path of PyTorch's, and they have the mask.
_BLOCKS = (
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)
_PYTORCH = (*_BLOCKS, nn.Transformer, nn.MultiheadAttention)


@dataclass(frozen=True)
class _Call:
    """A call that is going on.

    Attributes:
        around: Its masks, then those of the calls around it, from the inside out.
        takes: Whether it or a call around it takes some.
        closed: Whether one of these is PyTorch's own, which makes none by itself.
    """

    around: tuple[list[TokenMask], ...] = ()
    takes: bool = False
    closed: bool = False


_OUTSIDE = _Call()


@dataclass
class _Forward:
    """The masks of one forward of the model."""

    given: tuple[TokenMask, ...] = ()
    calls: list[_Call] = field(default_factory=list)
    seen: list[TokenMask] = field(default_factory=list)
    met: bool = False  # whether a part that takes masks has been called
    unreadable: str = ""

    @property
    def innermost(self) -> _Call:
        """The call that is going on now."""
        return self.calls[-1] if self.calls else _OUTSIDE


@dataclass(frozen=True, eq=False)
class AskedMask:
    """The question which tokens of a layer are real, as its call stood.

    Attributes:
        forward: The forward that it was called in.
        shape: Its samples and positions.
        around: The masks of the calls around it, the innermost first.
        inside: Whether one of these would have made use of a mask: then no other mask counts.
        early: Whether masks may still come: ask after the forward.
    """

    forward: _Forward
    shape: tuple[int, int]
    around: tuple[list[TokenMask], ...]
    inside: bool
    early: bool

    def answer(self) -> TokenMask | None:
        """The mask, None where every position counts.

        Raises:
            UnreadableError: If there are masks, but none that fits.
        """
        forward = self.forward
        if not (forward.given or forward.seen or forward.unreadable):
            return None
        outside = [] if self.inside else [forward.seen]
        places = [list(forward.given)] if forward.given else [*self.around, *outside]
        for masks in places:
            if fits := [mask for mask in masks if mask.real.shape == self.shape]:
                return one_of(fits)
        if known := [mask for masks in places for mask in masks]:
            shapes = ", ".join(dict.fromkeys(str(tuple(mask.real.shape)) for mask in known))
            raise UnreadableError(
                f"its samples and positions are {self.shape}, but token masks are of shape "
                f"{shapes}: {SAY_IT}"
            )
        if forward.unreadable and not self.inside:
            raise UnreadableError(f"{forward.unreadable}: {SAY_IT}")
        return None

    def confirm(self) -> None:
        """After the forward of a layer without a mask: raise if one came that it fits."""
        if not self.inside and any(mask.real.shape == self.shape for mask in self.forward.seen):
            raise UnreadableError(f"its token mask came after it: {SAY_IT}")


class TokenMasks:
    """Hooks that see the masks with which a model and its parts are called, live in a ``with``.

    Args:
        model: Any module.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._takers = dict(_takers(model))
        self._handles: list[RemovableHandle] = []
        self._aside = 0
        self._given: tuple[TokenMask, ...] = ()
        self._forward = _Forward()

    def __enter__(self) -> Self:
        self.clear()
        self._aside = depth()
        _open.set((*_open.get(), self))
        for module in dict.fromkeys([self._model, *self._takers]):
            if not isinstance(module, torch.jit.ScriptModule):
                self._handles += [
                    module.register_forward_pre_hook(self._begin, with_kwargs=True),
                    module.register_forward_hook(self._end, always_call=True),
                ]
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove every hook; closing twice is harmless."""
        _open.set(tuple(one for one in _open.get() if one is not self))
        while self._handles:
            self._handles.pop().remove()
        self.clear()

    def clear(self, given: Sequence[TokenMask] = ()) -> None:
        """Forget the last forward; ``given`` masks count in the next, whatever its calls say."""
        self._given = tuple(given)
        self._forward = _Forward(self._given)

    def ask(self, samples: int, tokens: int) -> AskedMask:
        """For a layer with so many samples and positions that is called now."""
        forward, call = self._forward, self._forward.innermost
        early = bool(self._takers) and not (forward.given or forward.seen or forward.met)
        return AskedMask(forward, (samples, tokens), call.around, call.closed, early)

    @property
    def given(self) -> list[Tensor]:
        """The masks that were given, whatever calls say."""
        return [mask.real for mask in self._given]

    @property
    def lengths(self) -> set[int]:
        """Of all masks of this forward."""
        known = (*self._forward.given, *self._forward.seen)
        return {mask.real.shape[1] for mask in known} if known else set()

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._is_asked():
            return None
        handed = module is self._model and TOKEN_MASK in kwargs
        if handed:
            kwargs = dict(kwargs)
            self._given = read_token_mask(kwargs.pop(TOKEN_MASK))
        if module is self._model and not self._forward.calls:
            self._forward = _Forward(self._given)
        forward, outer, masks = self._forward, self._forward.innermost, []
        for name, value in self._named(module, args, kwargs).items():
            if (mask := read_mask(name, value)) is not None:
                masks.append(mask)
            elif isinstance(value, Tensor) and value.ndim > 2 and not outer.takes:
                # Inside another call it is what that has made of its own mask.
                forward.unreadable = (
                    f"`{name}` of shape {tuple(value.shape)} does not say which tokens are padding"
                )
        takes = module in self._takers
        closed = outer.closed or (takes and isinstance(module, _PYTORCH))
        forward.calls.append(_Call((masks, *outer.around), outer.takes or takes, closed))
        forward.seen += masks
        forward.met |= takes and module is not self._model
        return (args, kwargs) if handed else None

    def _end(self, *_: Any) -> None:
        if self._is_asked() and self._forward.calls:
            self._forward.calls.pop()

    def _is_asked(self) -> bool:
        """Whether layers ask here: where samples are run again, those opened for that are."""
        return depth() == self._aside

    def _named(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """The arguments of a call that are masks by their names."""
        parts: dict[str, Any] = dict(kwargs)
        if module is self._model:  # a batch is often handed on whole
            for part in args:
                parts |= part if isinstance(part, Mapping) else {}
        parts |= zip(self._takers.get(module, ()), args, strict=False)
        if "query" in parts and parts["query"] is not parts.get("key"):
            return {}  # a mask of the keys: what comes out are queries
        return {name: parts[name] for name in _NAMES if name in parts}


_open: ContextVar[tuple[TokenMasks, ...]] = ContextVar("token_masks", default=())


def mask_of(place: Place, activation: Tensor, masks: TokenMasks | None = None) -> AskedMask | None:
    """Ask for the mask of a layer that says this now; None where every position counts.

    So it is where nobody looks for masks, and where a sample has one position, or several axes of
    them. Without ``masks`` those that were opened last are asked.

    Raises:
        UnreadableError: If one of several axes of positions is as long as a mask.
    """
    if not _open.get() or activation.is_nested or activation.ndim < 3:
        return None
    return mask_for(axes_of(place, activation), activation.shape, masks)


def mask_for(axes: Axes, shape: Sequence[int], masks: TokenMasks | None = None) -> AskedMask | None:
    """The same of an activation of some shape whose axes are known."""
    masks = masks or next(reversed(_open.get()), None)
    if not axes.positions or masks is None:
        return None
    if len(axes.positions) == 1:
        return masks.ask(shape[axes.samples], shape[axes.positions[0]])
    if lengths := masks.lengths:
        sizes = tuple(shape[axis] for axis in axes.positions)
        if lengths.intersection(sizes):
            raise UnreadableError(f"of its positions {sizes} a token mask has one axis only")
    return None


def _takers(model: nn.Module) -> Iterator[tuple[nn.Module, list[str]]]:
    """The modules that can be called with a mask, with the names of positional arguments."""
    parts: set[nn.Module] = set()
    known: dict[Any, inspect.Signature] = {}  # a model has many modules of few classes
    for module in model.modules():
        if module in parts or isinstance(module, torch.jit.ScriptModule):
            continue
        if isinstance(module, _BLOCKS):
            parts.update(module.modules())
        try:
            signature = _signature(module.forward, known)
        except (TypeError, ValueError):
            continue
        if signature.parameters.keys() & set(_NAMES):
            kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
            yield module, [p.name for p in signature.parameters.values() if p.kind in kinds]


def _signature(forward: Any, known: dict[Any, inspect.Signature]) -> inspect.Signature:
    """The signature of a method; those of one function are ``known`` once it was read."""
    function = getattr(forward, "__func__", None)
    if function is None:
        return inspect.signature(forward)
    if function not in known:
        known[function] = inspect.signature(forward)
    return known[function]
