"""Choose layers, record what their neurons do, and pool space or tokens away.

Shapes: ``N`` samples, ``D`` neurons of one layer. A *neuron* is one unit of a layer: an output
channel of a convolution, an output feature of a linear layer.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

Layers = str | Sequence[str] | Callable[[str, nn.Module], bool] | None
Pooling = str | Callable[[Tensor], Tensor]

_CHANNEL_SECOND = (_ConvNd, _NormBase, nn.GroupNorm)
_FEATURE_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


# --- choosing layers ------------------------------------------------------------------------------


def layer_names(model: nn.Module) -> dict[str, nn.Module]:
    """Every submodule by its dotted name, without the parts that ``torch.compile`` and wrappers insert."""
    named = {}
    for name, module in model.named_modules():
        clean = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if clean:
            named.setdefault(clean, module)
            if any(part in _WRAPPERS for part in name.split(".")[-1:]):
                named[clean] = module  # the wrapped module, not its wrapper, is the layer
    return named


def choose_layers(model: nn.Module, layers: Layers = None) -> dict[str, nn.Module]:
    """The layers to watch, by dotted name, in the order of ``model.named_modules()``.

    Args:
        model: Any module.
        layers: ``None`` for every convolution and linear layer; a dotted name for exactly that
            module; a glob such as
            ``"features.*"`` (``*`` crosses dots) for the convolutions and linear layers among its
            matches, or for all
            its matches where there is none; a sequence of names and globs; or a predicate ``(name,
            module) -> bool``.

    Raises:
        ValueError: If a name or glob matches nothing (the message lists close names) or no layer is
            left.
        TypeError: If ``layers`` is none of the above.
    """
    named = layer_names(model)
    if layers is None:
        chosen = set(_default_layers(named))
    elif callable(layers):
        chosen = {name for name, module in named.items() if layers(name, module)}
    else:
        patterns = [layers] if isinstance(layers, str) else layers
        if not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
            raise TypeError(
                "Expected `layers` to be None, a name, a glob, a list of these or a predicate "
                "(name, module) -> bool, "
                f"but got {layers!r}."
            )
        chosen = {name for pattern in patterns for name in _match(named, pattern)}
    if not chosen:
        raise ValueError(
            f"Expected `layers` to choose at least one layer, but {layers!r} chose none of the "
            f"{len(named)} submodules "
            f"of {type(model).__name__}. Name one of: {_listed(named)}."
        )
    return {name: module for name, module in named.items() if name in chosen}


def _default_layers(named: Mapping[str, nn.Module]) -> Iterator[str]:
    """Convolutions and linear layers, but not the ones attention reads the weights of without calling them."""
    attention = tuple(f"{n}." for n, m in named.items() if isinstance(m, nn.MultiheadAttention))
    for name, module in named.items():
        if isinstance(module, (_ConvNd, nn.Linear)) and not name.startswith(attention):
            yield name


def _match(named: Mapping[str, nn.Module], pattern: str) -> list[str]:
    if pattern in named:
        return [pattern]
    matches = fnmatch.filter(named, pattern)
    if not matches:
        close = difflib.get_close_matches(pattern, named, n=5, cutoff=0.4)
        hint = (
            f"Did you mean {', '.join(map(repr, close))}?"
            if close
            else f"There are: {_listed(named)}."
        )
        raise ValueError(
            f"Expected `layers` to be names of submodules, but got {pattern!r}, which matches "
            f"none. {hint}"
        )
    return list(_default_layers({name: named[name] for name in matches})) or matches


def _listed(named: Mapping[str, nn.Module]) -> str:
    names = list(_default_layers(named)) or list(named)
    return ", ".join(map(repr, names[:12])) + (
        f" and {len(names) - 12} more" if len(names) > 12 else ""
    )


# --- reading a layer's output ---------------------------------------------------------------------


def first_tensor(output: Any) -> Tensor:
    """The tensor that holds a layer's activations: the output itself, or the first tensor in a
    tuple, dict or dataclass.

    Raises:
        TypeError: If there is no tensor.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        parts: Any = output.values()
    elif is_dataclass(output):
        parts = (getattr(output, field.name) for field in fields(output))
    else:
        parts = output if isinstance(output, (tuple, list)) else ()
    for part in parts:
        if part is not None:
            return first_tensor(part)
    raise TypeError(f"Expected a layer's output to hold a tensor, but got {type(output).__name__}.")


def unit_axis(module: nn.Module, activation: Tensor) -> int:
    """The axis of ``activation`` along which the units of ``module`` lie (non-negative)."""
    if isinstance(module, _FEATURE_LAST):
        return activation.ndim - 1
    if isinstance(module, _CHANNEL_SECOND) or activation.ndim >= 4:
        return 1
    return activation.ndim - 1


def batch_axis(module: nn.Module, activation: Tensor) -> int:
    """The axis of ``activation`` along which the samples lie: 1 for sequence-first modules, else 0."""
    owner = getattr(module, "self_attn", module)
    sequence_first = getattr(owner, "batch_first", True) is False
    return 1 if sequence_first and activation.ndim == 3 else 0


def pool(output: Any, module: nn.Module, pooling: Pooling = "mean") -> Tensor:
    """One number per sample and neuron, ``(N, D)``: space, time or tokens pooled away.

    Args:
        output: What ``module`` returned. A tuple, dict or dataclass counts by its first tensor.
        module: The layer; its kind says where units and samples lie (see :func:`unit_axis`,
            :func:`batch_axis`).
        pooling: ``"mean"``, ``"max"``, or a callable from the layer's output tensor to ``(N, D)``.

    Returns:
        A tensor that shares no memory with ``output``; ``"mean"`` reduces half precision in
        float32, integers and bools
        become float32, complex numbers their magnitude.
    """
    packed = next(
        (
            o
            for o in (output if type(output) is tuple else (output,))
            if isinstance(o, PackedSequence)
        ),
        None,
    )
    if packed is not None and not callable(pooling):
        return _pool_packed(packed, pooling)
    activation = first_tensor(output).detach()
    if callable(pooling):
        pooled = pooling(activation)
        if not isinstance(pooled, Tensor) or pooled.ndim != 2:
            got = tuple(pooled.shape) if isinstance(pooled, Tensor) else type(pooled).__name__
            raise ValueError(
                f"Expected `pooling` to return a tensor of shape (N, D), but got {got}."
            )
        return _as_real(pooled).clone()
    activation = _as_real(activation)
    if activation.ndim < 2:
        return activation.reshape(-1, 1).clone()
    keep = {batch_axis(module, activation), unit_axis(module, activation)}
    reduce = [axis for axis in range(activation.ndim) if axis not in keep]
    if not reduce:
        return activation.clone()  # an in-place activation after the layer would overwrite it
    if pooling == "max":
        return activation.amax(reduce)
    wide = (
        torch.float32 if activation.dtype in (torch.float16, torch.bfloat16) else activation.dtype
    )
    return activation.mean(reduce, dtype=wide)


def _as_real(activation: Tensor) -> Tensor:
    if activation.is_complex():
        return activation.abs()
    return activation if activation.is_floating_point() else activation.float()


def _pool_packed(packed: PackedSequence, pooling: str) -> Tensor:
    """Pool over the valid steps of each sequence only."""
    padded, lengths = pad_packed_sequence(packed, batch_first=True)
    valid = torch.arange(padded.shape[1])[None, :] < lengths[:, None]
    mask = valid.to(padded.device)[..., None]
    padded = padded.detach().float()
    if pooling == "max":
        return padded.masked_fill(~mask, -torch.inf).amax(1)
    return (padded * mask).sum(1) / lengths.to(padded.device)[:, None]


def check_pooling(pooling: Pooling) -> None:
    """Raise unless ``pooling`` is ``"mean"``, ``"max"`` or a callable."""
    if pooling not in ("mean", "max") and not callable(pooling):
        raise ValueError(
            "Expected `pooling` to be 'mean', 'max' or a callable from a layer's output to (N, "
            f"D), but got {pooling!r}."
        )


# --- recording ------------------------------------------------------------------------------------


_aside: ContextVar[bool] = ContextVar("aside", default=False)


@contextmanager
def aside() -> Iterator[None]:
    """No recorder counts the forwards inside: a baseline's, or our own for evidence."""
    token = _aside.set(True)
    try:
        yield
    finally:
        _aside.reset(token)


class ActivationRecorder:
    """Hooks on some layers of a model, live inside a ``with``.

    A module that is called several times in one forward (shared layers, several views) counts as
    one layer whose calls
    are pooled like further positions: averaged for ``"mean"`` and callables, the maximum for
    ``"max"``.

    Args:
        layers: Layers by name, as :func:`choose_layers` gives them.
        pooling: See :func:`pool`.

    Attributes:
        refused: Names of layers that cannot carry a hook (TorchScript), with the reason.
    """

    def __init__(self, layers: Mapping[str, nn.Module], pooling: Pooling = "mean") -> None:
        check_pooling(pooling)
        self.layers = dict(layers)
        self.pooling = pooling
        self.refused: dict[str, str] = {}
        self._handles: list[RemovableHandle] = []
        self._pooled: dict[str, Tensor] = {}
        self._calls: dict[str, int] = {}
        self._failed: dict[str, str] = {}

    def __enter__(self) -> Self:
        try:
            for name, module in self.layers.items():
                self._register(name, module)
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
        self.clear()

    def clear(self) -> None:
        """Forget what the current batch has recorded."""
        self._pooled, self._calls, self._failed = {}, {}, {}

    def take(self, num_samples: int | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What the forwards since the last call recorded, and what went wrong.

        Args:
            num_samples: Size of the batch; a layer with another number of rows is a problem, not a
                result.

        Returns:
            Activations ``(N, D)`` by layer name, and one-line reasons by layer name for the layers
            without.
        """
        taken, problems = {}, dict(self._failed)
        for name in self.layers:
            if name in problems or name in self.refused:
                continue
            if name not in self._pooled:
                problems[name] = "its forward was not called"
                continue
            pooled = self._pooled[name]
            if num_samples is not None and len(pooled) != num_samples:
                problems[name] = (
                    f"it gave {len(pooled)} rows for {num_samples} samples; pass `pooling` to "
                    "bring it to (N, D)"
                )
                continue
            taken[name] = (
                pooled
                if self.pooling == "max"
                else pooled / self._calls[name]
                if self._calls[name] > 1
                else pooled
            )
        self.clear()
        return taken, problems

    def _register(self, name: str, module: nn.Module) -> None:
        if isinstance(module, torch.jit.ScriptModule):
            self.refused[name] = "TorchScript modules take no hooks"
            return
        self._handles.append(module.register_forward_hook(self._hook(name)))

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            if _aside.get() or name in self._failed:
                return
            try:
                self._add(name, pool(output, module, self.pooling))
            except Exception as error:  # never let a fault of ours end the user's forward
                self._failed[name] = f"{type(error).__name__}: {error}"

        return hook

    def _add(self, name: str, pooled: Tensor) -> None:
        self._calls[name] = self._calls.get(name, 0) + 1
        seen = self._pooled.get(name)
        if seen is None:
            self._pooled[name] = pooled
        elif seen.shape != pooled.shape:
            self._failed[name] = (
                f"its calls in one forward gave {tuple(seen.shape)} and {tuple(pooled.shape)}"
            )
        else:
            self._pooled[name] = (
                torch.maximum(seen, pooled) if self.pooling == "max" else seen + pooled
            )


def record(
    model: nn.Module, layers: Layers = None, pooling: Pooling = "mean"
) -> ActivationRecorder:
    """Record activations in a ``with``, without Lightning.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        >>> with record(model) as recorder:
        ...     _ = model(torch.zeros(5, 3))
        ...     activations, _ = recorder.take()
        >>> activations["0"].shape
        torch.Size([5, 2])
    """
    return ActivationRecorder(choose_layers(model, layers), pooling)


class OutputRecorder:
    """Keeps what a module returned last, and what it was called with.

    Where its forward nests (a wrapper calls it again), the innermost call counts: under DDP,
    Lightning runs ``validation_step`` through the forward of the LightningModule, so a plain hook
    there sees the prediction first and the step's return value after it.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._handles: list[RemovableHandle] = []
        self._depth = 0
        self._deepest = 0
        self.called = False
        self.output: Any = None
        self.arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def __enter__(self) -> Self:
        self._handles = [
            self._module.register_forward_pre_hook(self._before),
            self._module.register_forward_hook(self._after, with_kwargs=True, always_call=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the hooks and drop the output; closing twice is harmless."""
        while self._handles:
            self._handles.pop().remove()
        self.clear()

    def clear(self) -> None:
        """Forget the current batch."""
        self._depth, self._deepest = 0, 0
        self.called, self.output, self.arguments = False, None, ((), {})

    def _before(self, *_: Any) -> None:
        self._depth += not _aside.get()

    def _after(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if _aside.get():
            return
        if self._depth >= self._deepest:
            self._deepest, self.called = self._depth, True
            self.output, self.arguments = output, (args, kwargs)
        self._depth -= 1


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Run compiled parts of ``model`` eagerly: a graph compiled without our hooks would never call them."""
    if not _is_compiled(model):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _is_compiled(model: nn.Module) -> bool:
    def compiled(value: Any) -> bool:
        return callable(value) and hasattr(value, "_torchdynamo_orig_callable")

    return any(
        type(module).__name__ == "OptimizedModule"
        or getattr(module, "_compiled_call_impl", None) is not None
        or any(map(compiled, vars(module).values()))
        or any(map(compiled, vars(type(module)).values()))
        for module in model.modules()
    )
