"""Run a module with other weights or in evaluation mode, and leave its own in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_neurocorr.isolation.torch_private import buffers_of, copy_all, parameters_of


def call_with(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """What ``module`` returns with some of its parameters and buffers replaced.

    PyTorch's own handling of ties leaves the replacements in a module that is registered under two
    names, so ties are resolved here.

    Args:
        module: Any module.
        tensors: By name, as ``named_parameters`` and ``named_buffers`` give them; whatever is tied
            to one of them is replaced with it.
        args: What the module is called with.
        kwargs: The same, by name.
    """
    first: dict[int, str] = {}
    placed: dict[str, Tensor] = {}
    for name, tensor in own_tensors(module):
        known = first.setdefault(id(tensor), name)
        if known in tensors:
            placed[name] = tensors[known]
    return functional_call(module, placed, args, dict(kwargs or {}), tie_weights=False)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Inside, every part of ``module`` is in evaluation mode; each gets its own mode back."""
    # Flags are set one by one: train() may be overridden, and parts may be in different modes.
    modes = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def preserved_buffers(module: nn.Module) -> Iterator[None]:
    """Forwards inside leave the buffers of ``module`` as they were, also those they replace.

    A forward in evaluation mode may count or average; PyTorch's instance norm rounds its running
    statistics in some versions.
    """
    kept = [
        (buffers_of(part), name, buffer)
        for part in module.modules()
        if not isinstance(part, torch.jit.ScriptModule)
        for name, buffer in buffers_of(part).items()
        if buffer is not None
    ]
    copies = _copies([buffer for *_, buffer in kept])
    try:
        yield
    finally:
        for buffers, name, buffer in kept:
            buffers[name] = buffer
        # All of them: batch norm writes its statistics without counting that as a change.
        for places, values in copies:
            with torch.no_grad(), torch.inference_mode(places[0].is_inference()):
                copy_all([place.data for place in places], values)


def _copies(tensors: Sequence[Tensor]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Tensors beside copies of them. All of a kind are one operation: a network has hundreds."""
    kinds: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        plain = type(tensor) is Tensor and tensor.layout == torch.strided
        kind = (tensor.device, tensor.dtype, tensor.is_inference()) if plain else id(tensor)
        kinds.setdefault(kind, []).append(tensor)
    found = []
    for alike in kinds.values():
        if len(alike) == 1:
            found.append((alike, [alike[0].clone()]))
            continue
        with torch.no_grad():
            values = [torch.empty_like(tensor) for tensor in alike]
            copy_all(values, alike)
        found.append((alike, values))
    return found


class KeptWeights:
    """A copy of a module's parameters and buffers, to run it with them again later.

    Args:
        module: Any module whose tensors are whole on this process.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._kept = {name: _copied(tensor) for name, tensor in _distinct(module).items()}

    @classmethod
    def of(cls, module: nn.Module, values: Mapping[str, Tensor]) -> KeptWeights:
        """Other values for the module: all of its parameters and buffers, by name."""
        found = cls.__new__(cls)
        found._module, found._kept = module, dict(values)
        return found

    def move_to_cpu(self) -> None:
        """Leave the device to training."""
        self._kept = {name: tensor.cpu() for name, tensor in self._kept.items()}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the module has the kept values; its own come back bit by bit.

        Raises:
            ValueError: If the module has other parameters or buffers by now.
        """
        live = _distinct(self._module)
        shapes = {name: tensor.shape for name, tensor in live.items()}
        if shapes != {name: tensor.shape for name, tensor in self._kept.items()}:
            raise ValueError(
                "Expected the model to have the parameters and buffers that were validated, but "
                "some were added, removed or reshaped since."
            )
        # What a forward changes is set back too, so all that is other now goes in and out.
        other = {n: t for n, t in live.items() if not torch.equal(t, self._kept[n].to(t.device))}
        own = {name: _copied(tensor) for name, tensor in other.items()}
        try:
            _write(other, self._kept)
            yield
        finally:
            _write(other, own)


def _distinct(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; tied ones count once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _copied(tensor: Tensor) -> Tensor:
    """On the same device, or where that is full, on the CPU."""
    with torch.inference_mode(False), torch.no_grad():
        try:
            return tensor.detach().clone()
        except torch.OutOfMemoryError:
            return tensor.detach().cpu()


def _write(places: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Through ``data``: no step of a graph is to see it as a change."""
    for name, place in places.items():
        with torch.no_grad(), torch.inference_mode(place.is_inference()):
            place.data.copy_(values[name])
    torch.clear_autocast_cache()  # else it goes on with casts of the weights before


def own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every place of a parameter or buffer once, tied ones too; TorchScript takes no others."""
    for prefix, part in module.named_modules():  # a module with two names counts once
        if isinstance(part, torch.jit.ScriptModule):
            continue
        for name, tensor in (*parameters_of(part).items(), *buffers_of(part).items()):
            if tensor is not None:
                yield f"{prefix}.{name}" if prefix else name, tensor
