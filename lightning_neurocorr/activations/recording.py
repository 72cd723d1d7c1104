"""Hooks that pool what layers return, live inside a ``with``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

from lightning_neurocorr.activations.again import HeardLast, PlainMean, plain_mean
from lightning_neurocorr.activations.axes import Axes, axes_of
from lightning_neurocorr.activations.calls import OverPositions
from lightning_neurocorr.activations.heard import ALWAYS, Heard
from lightning_neurocorr.activations.outputs import Call, Moment, OutputRecorder
from lightning_neurocorr.activations.pooling import (
    Pooling,
    check_pooling,
    first_tensor,
    heeds_masks,
    packed_in,
    pool,
    position_mean,
    rounding_error,
)
from lightning_neurocorr.activations.sites import Place, Site, carrier, listen
from lightning_neurocorr.activations.token_calls import AskedMask, TokenMasks, mask_for, mask_of
from lightning_neurocorr.activations.tokens import UnreadableError
from lightning_neurocorr.isolation.asides import NOTING, depth
from lightning_neurocorr.isolation.torch_private import is_transformed

_EMPTY = "a sample has no real token, so that there is nothing to pool: leave such samples out"
_POOLING = (
    "Expected `pooling` to bring the output of every layer to (N, D), but for layer {!r} got {}. "
    "Name in `layers` those it is made for, or let it look at the number of axes."
)
_TRANSFORMED = (
    "it is called inside a transform of torch.func, such as vmap, where its values cannot be read"
)


class ActivationRecorder:
    """Hooks on some layers of a model, live inside a ``with``.

    A module that is called several times in one forward (shared layers, several views) counts as
    one layer whose calls are pooled like further positions: averaged for ``"mean"`` and callables,
    the maximum for ``"max"``. With ``within`` that holds inside one call of the module whose output
    is the prediction: :meth:`take` gives what belongs to that call.

    Args:
        layers: Layers by name, as :func:`choose_layers` gives them, or where to read them.
        pooling: See :func:`pool`.
        strict: Whether a callable ``pooling`` that fails for a layer is an error of :meth:`take`.
        masks: Opened too: padding of the model's sequences then does not count.
        within: Sees the calls of the module whose output is the prediction; entered after this.

    Attributes:
        over_positions: Of the batch last taken, by layer: each neuron's mean over positions and
            calls ``(N, D)``, which is the very tensor of :meth:`take` where that has the same
            numbers, and how many positions each sample has. Layers whose neurons a callable
            ``pooling`` makes up itself are missing.
        rounding: By how much means of the first batch may be off by rounding, ``(D,)`` by layer.
        lengths: Of token layers without a mask, how many positions they had in any batch.
        unheeded: Layers with a mask that a callable ``pooling`` does not ask for.
        refused: Names of layers that cannot carry a hook (TorchScript), with the reason.
    """

    def __init__(
        self,
        layers: Mapping[str, Place],
        pooling: Pooling = "mean",
        *,
        strict: bool = False,
        masks: TokenMasks | None = None,
        within: OutputRecorder | None = None,
    ) -> None:
        check_pooling(pooling)
        self._masks = masks
        self._strict = strict and callable(pooling)
        self._within = within
        self.layers = dict(layers)
        self.pooling = pooling
        self.lengths: dict[str, set[int]] = {}
        self.unheeded: set[str] = set()
        self.refused: dict[str, str] = {}
        self.rounding: dict[str, Tensor | None] = {}
        self._handles: list[RemovableHandle] = []
        self.over_positions: dict[str, OverPositions] = {}
        self._heard = Heard(within, largest=pooling == "max")
        self._early: list[tuple[str, Place, Tensor, AskedMask, Moment]] = []
        self._unmasked: list[tuple[str, AskedMask]] = []
        self._doubts: dict[str, dict[str, Tensor]] = {}
        self._last = HeardLast()
        self._axes: dict[tuple[Place, int], Axes] = {}
        self._known: dict[str, PlainMean | None] = {}  # how to read what was heard before
        self._elsewhere: dict[str, Site] = {}  # layers that are not heard where they speak
        self._aside = 0

    def __enter__(self) -> Self:
        self._aside = depth()
        try:
            if self._masks is not None:
                self._masks.__enter__()
            for name, place in self.layers.items():
                self._register(name, place)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove every hook and forget what was recorded; closing twice is harmless."""
        while self._handles:
            self._handles.pop().remove()
        if self._masks is not None:
            self._masks.close()
        self.clear()

    def clear(self) -> None:
        """Forget what has been recorded since the last :meth:`take`, after a failed forward say."""
        self._heard = Heard(self._within, largest=self.pooling == "max")
        self._early, self._unmasked, self._last = [], [], HeardLast()

    @property
    def heard_nothing(self) -> bool:
        """Whether no layer was called since the last :meth:`take`."""
        return not (self._heard.anything or self._early)

    def take(
        self, num_samples: int | None = None, call: Call | None = None
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What the forwards since the last call recorded, and what went wrong.

        Args:
            num_samples: Size of the batch; a layer with another number of rows is a problem, not a
                result.
            call: The call of ``within`` that gave the prediction, if there was one.

        Returns:
            Activations ``(N, D)`` by layer name, and one-line reasons by layer name for the layers
            without.

        Raises:
            ValueError: If a callable ``pooling`` failed for a layer, where that is wanted.
        """
        self._settle()
        taken, over, problems = {}, {}, dict(self._heard.failed)
        for name in self.layers:
            if name in problems or name in self.refused:
                continue
            heard = self._heard.of(name, call)
            if isinstance(heard, str):
                problems[name] = heard
                continue
            values, means, calls = heard.values, heard.over, heard.calls
            only = len(self._heard.moments[name]) == 1  # nearly always: no need to count
            heard_in_all = calls if only else self._heard.count(name)
            if name in self._elsewhere and self._heard.spoken[name] != heard_in_all:
                problems[name] = self._astray(name)
                continue
            if num_samples is not None and values.shape[0] != num_samples:
                self._heard.failed[name] = problems[name] = (
                    f"it gave {len(values)} rows for {num_samples} samples, so it has no row for "
                    "each sample. If it should, pass `pooling` to bring it to (N, D)"
                )
                continue
            if calls > 1 and self.pooling != "max":
                values = values / calls
            taken[name] = values
            if means is not None and (means[0] is values or means[0].shape == values.shape):
                over[name] = means
        self.over_positions = over
        failed = self._heard.failed
        self.clear()
        if self._strict and failed:
            raise ValueError(_POOLING.format(*next(iter(failed.items()))))
        return taken, problems

    def _astray(self, name: str) -> str:
        """Why what was heard elsewhere is not what the layer said."""
        heard, where = self._heard, self._elsewhere[name].name
        return (
            f"it was called {heard.spoken[name]} times and heard {heard.count(name)} times at "
            f'{where}: the forward went another way than in the first batch. Read it with at="raw"'
        )

    def _register(self, name: str, place: Place) -> None:
        if isinstance(carrier(place), torch.jit.ScriptModule):
            self.refused[name] = "TorchScript modules take no hooks"
            return
        # Places may become known when the module of the prediction is already listened to.
        judged = self._within is not None and carrier(place) is self._within.module
        self._handles.append(listen(place, partial(self.hear, name), first=judged))
        if isinstance(place, Site) and place.elsewhere:
            self._elsewhere[name] = place
            self._handles.append(place.layer.register_forward_hook(self._counter(name)))

    def _counter(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def count(*_: Any) -> None:
            if depth() == self._aside:
                self._heard.spoken[name] += 1

        return count

    def hear(self, name: str, place: Place, value: Any) -> None:
        """Record what was heard at a place, as one call of a layer."""
        if depth() != self._aside or name in self._heard.failed:
            return
        notes = NOTING.set(True)
        try:
            known, masks = self._known.get(name), self._masks
            if known is None or masks is None or masks.lengths or not known.is_for(place, value):
                self._note(name, place, value)
            else:
                moment = ALWAYS if self._within is None else self._within.now
                pooled = known.of(value)
                self._heard.add(name, moment, pooled, (pooled, known.count))
        except Exception as error:  # noqa: BLE001
            self._fail(name, error)
        finally:
            NOTING.reset(notes)

    def _note(self, name: str, place: Place, value: Any) -> None:
        moment = ALWAYS if self._within is None else self._within.now
        tensor = None if packed_in(value) else first_tensor(value)
        if tensor is not None and is_transformed(tensor):
            raise UnreadableError(_TRANSFORMED)
        value = value if tensor is None else tensor  # all that is read of a tuple
        axes = None if tensor is None else self._axes_of(place, tensor)
        if axes is not None:
            asked = mask_for(axes, value.shape, self._masks)
        else:
            asked = None if tensor is None else mask_of(place, tensor, self._masks)
        if asked is not None and asked.early:  # what follows may change it in place
            kept = first_tensor(value).detach().clone()
            self._early.append((name, place, kept, asked, moment))
        else:
            self._hear(name, place, value, asked, moment, axes)
            if axes is not None and asked is None and self.pooling == "mean":
                self._known[name] = plain_mean(place, value, axes)

    def _axes_of(self, place: Place, value: Tensor) -> Axes | None:
        """The axes of what was heard, looked for once; None where it has none or is nested."""
        if value.ndim < 2 or value.is_nested:
            return None
        axes = self._axes.get((place, value.ndim))
        if axes is None:
            axes = self._axes[place, value.ndim] = axes_of(place, value)
        return axes

    def move_to(self, places: Mapping[str, Place], heard: Mapping[str, str]) -> None:
        """From now on listen at these places; what counts so far was heard under other names.

        Args:
            places: Where to read, by layer.
            heard: The name that :meth:`hear` was given for a layer, where it was.
        """
        names = {key: name for name, key in heard.items()}
        recorded: list[dict[str, Any]] = [
            self._heard.moments, self._heard.failed, self._doubts, self.lengths, self.rounding,
        ]  # fmt: skip
        for kept in recorded:
            found = {names[key]: value for key, value in kept.items() if key in names}
            kept.clear()
            kept.update(found)
        self.unheeded = {names[key] for key in self.unheeded if key in names}
        self._early = [
            (names[key], place, kept, asked, moment)
            for key, place, kept, asked, moment in self._early
            if key in names
        ]
        self._unmasked = [(names[key], asked) for key, asked in self._unmasked if key in names]
        early = [name for name, *_ in self._early]
        for name in heard:
            self._heard.spoken[name] = self._heard.count(name) + early.count(name)
        self._known = {}
        self.layers = dict(places)
        for name, place in places.items():
            self._register(name, place)

    def _fail(self, name: str, error: Exception) -> None:
        """A fault costs the layer, never the user's forward."""
        said = str(error).strip().split("\n")[0]  # PyTorch goes on for pages
        kind = "" if isinstance(error, UnreadableError) else f"{type(error).__name__}: "
        self._heard.failed[name] = kind + said[:300]

    def _hear(
        self,
        name: str,
        place: Place,
        output: Any,
        asked: AskedMask | None,
        moment: Moment,
        axes: Axes | None = None,
    ) -> None:
        mask = None if asked is None else asked.answer()
        if asked is not None and mask is None:
            self._unmasked.append((name, asked))
        if mask is not None:
            for applies, reason in mask.doubts:
                self._doubt(name, applies, reason)
            if not heeds_masks(self.pooling):
                self.unheeded.add(name)
        pooled, over = self._read(output, place, None if mask is None else mask.real, axes)
        if self.pooling == "mean" and name not in self.rounding:
            self.rounding[name] = self._last.once(rounding_error, output, axes, place)
        self._heard.add(name, moment, pooled, over)
        if over is not None and isinstance(over[1], Tensor):
            self._doubt(name, (over[1] == 0).any(), _EMPTY)

    def _settle(self) -> None:
        """After the forward, when all of its masks are known."""
        early, self._early = self._early, []
        for name, place, activation, asked, moment in early:
            if name not in self._heard.failed:
                try:
                    self._hear(name, place, activation, asked, moment)
                except Exception as error:  # noqa: BLE001
                    self._fail(name, error)
        for name, asked in self._unmasked:
            try:
                asked.confirm()
            except UnreadableError as error:
                self._fail(name, error)
            self.lengths.setdefault(name, set()).add(asked.shape[1])

    def _doubt(self, name: str, applies: Tensor, reason: str) -> None:
        known = self._doubts.setdefault(name, {})
        known[reason] = applies if reason not in known else known[reason] | applies

    def doubts(self) -> dict[str, str]:
        """Why what was recorded of a layer does not hold; this waits for the device."""
        found = {}
        for name, doubts in self._doubts.items():
            reasons = [reason for reason, applies in doubts.items() if bool(applies)]
            if reasons:
                found[name] = reasons[0]
        return found

    def _read(
        self, output: Any, place: Place, mask: Tensor | None, axes: Axes | None
    ) -> tuple[Tensor, OverPositions | None]:
        """Pooled, and the mean over positions: None where a callable alone can read the output."""
        if self.pooling == "mean":
            known = axes if mask is None else None
            over = self._last.once(position_mean, output, known, place, mask, axes)
            return over[0], over
        pooled = pool(output, place, self.pooling, mask)
        try:
            return pooled, position_mean(output, place, mask, axes)
        except Exception:
            if callable(self.pooling):
                return pooled, None
            raise
