"""One forward and one backward: activation times gradient of the margin, for every watched layer.

Shapes: ``n`` samples of one call, ``D`` neurons of a layer, ``C`` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

from lightning_neurocorr.activations import (
    Place,
    carrier,
    first_tensor,
    listen,
    mask_of,
    packed_in,
)
from lightning_neurocorr.activations.token_calls import AskedMask
from lightning_neurocorr.attribution.positions import Sums, sums_of_calls, wide
from lightning_neurocorr.isolation import without_checkpointing
from lightning_neurocorr.isolation.precision import exact_arithmetic
from lightning_neurocorr.isolation.randomness import preserved_randomness
from lightning_neurocorr.isolation.torch_private import pytree


def attribute(
    forward: Callable[[], Tensor],
    layers: Mapping[str, Place],
    target: Tensor,
    rival: Tensor | None = None,
    *,
    method: str = "gradient",
    path_steps: int = 16,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Activation times gradient of ``logit[target] - logit[rival]``, and the gradient alone.

    Only activations are differentiated, nothing in front of the first watched layer and no weight;
    neither ``.grad`` nor the random state changes. The model must be in evaluation mode, where
    samples do not mix.

    Args:
        forward: Runs the model on ``n`` samples and returns logits ``(n, C)``, or ``(n,)`` or
            ``(n, 1)`` for one logit of class 1 against class 0. It is called outside inference mode
            with gradients on, and has to clone tensors that were made in inference mode.
        layers: Watched layers by name, or where to read them.
        target: Class ids ``(n,)``.
        rival: Class ids ``(n,)``. The model's next best class counts where it is negative or the
            target itself, and for every sample if it is None.
        method: See :class:`~lightning_neurocorr.attribution.Attribution`.
        path_steps: See :class:`~lightning_neurocorr.attribution.Attribution`.

    Returns:
        u and v, each ``(n, D)`` float64 and summed over positions and calls, by layer name. Layers
        that were not called, or that no gradient reached, are missing.

    Raises:
        ValueError: If the logits have another shape or another number of rows than ``target``.
    """
    found = sums_near({}, forward, layers, target, rival, method=method, path_steps=path_steps)
    return {name: sums.from_zero() for name, sums in found.items()}


def sums_near(
    near: Mapping[str, Tensor],
    forward: Callable[[], Tensor],
    layers: Mapping[str, Place],
    target: Tensor,
    rival: Tensor | None = None,
    *,
    method: str = "gradient",
    path_steps: int = 16,
) -> dict[str, Sums]:
    """What :func:`attribute` is made of, in few operations for each layer.

    Args:
        near: A finite number near the mean of each neuron, ``(D,)`` by layer; without it the mean
            of the samples is taken.
        forward: As for :func:`attribute`.
        layers: As for :func:`attribute`.
        target: As for :func:`attribute`.
        rival: As for :func:`attribute`.
        method: As for :func:`attribute`.
        path_steps: As for :func:`attribute`.
    """
    objective = _Margin(forward, target, rival)
    found: dict[str, Sums] = {}
    with own_graph(target.device):
        taps = Taps(layers)
        gradients = _differentiate(objective, taps)
        zero = target.new_zeros(1, dtype=torch.float32)
        with exact_arithmetic(target.device):
            for name, of_calls in gradients.items():
                place, kept = layers[name], [one.detach() for one in taps.kept[name]]
                if method == "path":
                    of_calls = _path_gradients(objective, {name: place}, kept, path_steps)
                calls = zip(kept, of_calls, taps.known[name], strict=True)
                sums = sums_of_calls(place, calls, len(target), near.get(name), zero)
                if sums is not None:
                    found[name] = sums
    return found


class _Margin:
    """``logit[target] - logit[rival]``; along a path the rivals stay those of the first call."""

    def __init__(self, forward: Callable[[], Tensor], target: Tensor, rival: Tensor | None) -> None:
        self.forward = forward
        self.target = target.long()[:, None]
        self.given = torch.full_like(self.target, -1) if rival is None else rival.long()[:, None]
        self.rival: Tensor | None = None

    def __call__(self) -> Tensor:
        logits = self.forward()
        if logits.ndim == 1 or (logits.ndim == 2 and logits.shape[1] == 1):
            one = logits.reshape(-1, 1)
            logits = torch.cat([torch.zeros_like(one), one], 1)
        if logits.ndim != 2 or len(logits) != len(self.target):
            raise ValueError(
                f"Expected the prediction to be logits of shape ({len(self.target)}, C), but got "
                f"{tuple(logits.shape)}. Say with `output` which module returns the logits, or "
                "switch attribution off."
            )
        if self.rival is None:
            best = logits.detach().scatter(1, self.target, -torch.inf).argmax(1, keepdim=True)
            unknown = (self.given < 0) | (self.given == self.target)
            self.rival = torch.where(unknown, best, self.given)
        return (logits.gather(1, self.target) - logits.gather(1, self.rival)).squeeze(1)


@contextmanager
def own_graph(device: torch.device) -> Iterator[None]:
    """Outside inference mode, with gradients, and with the random state put back."""
    torch.clear_autocast_cache()  # weights that were cast in inference mode carry no gradient
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        preserved_randomness(device),
        without_checkpointing(),
    ):
        yield


class Taps:
    """Hooks that start the graph at the watched layers and keep what these put out.

    A layer that does not depend on an earlier watched one becomes a leaf of the graph and the
    others stay in it, so that one backward gives them all. The model gets a copy, because an
    in-place activation would overwrite what was kept.
    """

    def __init__(self, layers: Mapping[str, Place], values: list[Tensor] | None = None) -> None:
        self.layers = layers
        self.values = values  # given to the model in place of the output, call by call
        self.kept: dict[str, list[Tensor]] = {}
        # Of each call: the packed sequence that it is the data of, the question for a token mask.
        self.known: dict[str, list[tuple[PackedSequence | None, AskedMask | None]]] = {}
        # Activation checkpointing calls layers again during the backward: those are no new calls.
        self.recording = True
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        self.kept, self.known, self.recording = {}, {}, True
        try:
            for name, place in self.layers.items():
                if not isinstance(carrier(place), torch.jit.ScriptModule):
                    self._handles.append(listen(place, self._hook(name)))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _hook(self, name: str) -> Callable[[Place, Any], Any]:
        def tap(place: Place, output: Any) -> Any:
            if torch.is_inference_mode_enabled():
                return None
            activation = first_tensor(output)
            if not activation.is_floating_point():
                return None
            torch.set_grad_enabled(True)  # the layer may stand in a part that runs under no_grad
            first = self.recording and not self.kept
            if self.values is not None:
                call = len(self.kept.get(name, ())) if self.recording else 0
                activation = self.values[call]
            leaf = first or self.values is not None or not activation.requires_grad
            kept = activation.detach().requires_grad_() if leaf else activation
            changed = _with_first(output, kept.clone())
            if changed is not None and self.recording:
                self.kept.setdefault(name, []).append(kept)
                packed = packed_in(output)
                asked = None if packed else mask_of(place, activation)
                self.known.setdefault(name, []).append((packed, asked))
            return changed

        return tap


def _with_first(output: Any, new: Tensor) -> Any:
    """``output`` with another first tensor; None where PyTorch does not know its kind."""
    if isinstance(output, Tensor):
        return new
    old = first_tensor(output)

    def swapped(part: Any) -> Any:
        if isinstance(part, PackedSequence):  # a leaf before torch 2.7
            return part._replace(data=new) if part.data is old else part
        return new if part is old else part

    changed = pytree.tree_map(swapped, output)
    return changed if first_tensor(changed) is new else None


def _differentiate(objective: _Margin, taps: Taps) -> dict[str, list[Tensor]]:
    """One forward and one backward: the gradients by layer, one for each call of the layer."""
    try:
        return _differentiate_once(objective, taps)
    except RuntimeError as error:
        if "cudnn RNN backward" not in str(error):  # cuDNN refuses it in evaluation mode
            raise
        with torch.backends.cudnn.flags(enabled=False):
            return _differentiate_once(objective, taps)


def _differentiate_once(objective: _Margin, taps: Taps) -> dict[str, list[Tensor]]:
    with taps:
        margin = objective().sum()
        taps.recording = False
        flat = [kept for calls in taps.kept.values() for kept in calls]
        if not flat or not margin.requires_grad:
            return {}
        # float16 has no room for small gradients; a power of two leaves the digits alone.
        scale = 1024.0 if any(kept.dtype == torch.float16 for kept in flat) else 1.0
        flat_gradients = iter(torch.autograd.grad(margin * scale, flat, allow_unused=True))
    gradients = {}
    for name, calls in taps.kept.items():
        found = [(next(flat_gradients), activation) for activation in calls]
        if any(g is not None for g, _ in found):
            some = [torch.zeros_like(a) if g is None else g for g, a in found]
            gradients[name] = some if scale == 1 else [wide(g) / scale for g in some]
    return gradients


def _path_gradients(
    objective: _Margin, layer: Mapping[str, Place], ends: list[Tensor], steps: int
) -> list[Tensor]:
    """The mean gradient at the midpoints of the line from zero to the activations of a layer."""
    total = [torch.zeros_like(wide(end)) for end in ends]
    for step in range(steps):
        values = [end * ((step + 0.5) / steps) for end in ends]
        for calls in _differentiate(objective, Taps(layer, values)).values():
            total = [t + wide(g) / steps for t, g in zip(total, calls, strict=True)]
    return total
