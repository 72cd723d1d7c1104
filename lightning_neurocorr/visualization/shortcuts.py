"""Cheaper ways through a convolutional network, to the same activations and image gradients.

Weights stand still while pictures are made. So an evaluating batch norm can be multiplied into the
convolution before it, and the gradient of an image through a strided convolution can be one dense
convolution over the phases of the stride.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# What one may ask a tensor without looking at its values.
_ATTRIBUTES: tuple[Any, ...] = (Tensor.ndim, Tensor.shape, Tensor.dtype, Tensor.device)
_FORM = {Tensor.dim, Tensor.size, *(attribute.__get__ for attribute in _ATTRIBUTES)}
_FEW = 8  # input channels; with more, the plain gradient is as fast


class Surprised(BaseException):
    """The forward went another way than when it was watched; no ``except Exception`` takes it."""


class Norm(NamedTuple):
    """An evaluating batch norm whose statistics stand still."""

    mean: Tensor
    variance: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float


class _Convolution(NamedTuple):
    """The arguments of ``torch.conv2d``, with weights that stand still."""

    images: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: Any
    dilation: tuple[int, int]
    groups: int


def still_tensors(model: nn.Module, state: Mapping[str, Tensor]) -> set[int]:
    """Ids of the tensors in ``state`` that shortcuts may build on; none where none would pay.

    These are the weights of convolutions and batch norms, except of modules with hooks, which
    would see what a shortcut leaves out.
    """
    still: set[int] = set()
    hooked: set[int] = set()
    pays = False
    for prefix, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, _BatchNorm)):
            names = (f"{prefix}.{name}" for name in (*module._parameters, *module._buffers))
            ids = {id(state[name]) for name in names if name in state}
            (hooked if any(vars(module).get(kind) for kind in _HOOKS) else still).update(ids)
            pays |= isinstance(module, _BatchNorm) or (
                max(module.stride) > 1 and module.in_channels <= _FEW
            )
    everywhere = any(getattr(nn.modules.module, f"_global{kind}") for kind in _HOOKS)
    return still - hooked if pays and not everywhere else set()


class Watch(TorchFunctionMode):
    """Notes inside a ``with`` who takes the outputs of convolutions.

    Args:
        still: Ids of the weights to look at.
    """

    def __init__(self, still: set[int]) -> None:
        super().__init__()
        self._still = still
        # By id of the output: itself, so that the id stays its own, and its convolution's weight.
        self._outputs: dict[int, tuple[Tensor, int]] = {}
        self._takers: dict[int, list[Norm | None]] = {}  # None for any other use
        self._elsewhere: set[int] = set()  # norms that see anything else

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """See ``torch.overrides.TorchFunctionMode``."""
        if func in _FORM:
            return func(*args, **(kwargs or {}))
        norm = _as_norm(func, args, kwargs, self._still)
        if norm is not None and id(args[0]) not in self._outputs:
            self._elsewhere.add(id(norm.mean))
        for value in tree_leaves((args, kwargs)):
            if id(value) in self._outputs:
                self._takers[id(value)].append(norm if value is args[0] else None)
        result = func(*args, **(kwargs or {}))
        convolution = _as_convolution(func, args, kwargs, self._still)
        if convolution is not None:
            self._outputs[id(result)] = result, id(convolution.weight)
            self._takers[id(result)] = []
        return result

    def pairs(self) -> dict[int, Norm]:
        """The batch norm behind a convolution, by id of its weight, where these two are alone.

        That is, every output of the convolution goes into the norm and nowhere else, and nothing
        but outputs of such convolutions goes into the norm.
        """
        behind: dict[int, set[int]] = {}
        for key, (_, weight) in self._outputs.items():
            takers = [id(norm.mean) if norm else 0 for norm in self._takers[key]]
            behind.setdefault(weight, set()).update(takers if len(takers) == 1 else [0, *takers])
        shared = set(self._elsewhere).union(*(norms for norms in behind.values() if len(norms) > 1))
        return {
            weight: norm
            for key, (_, weight) in self._outputs.items()
            for norm in self._takers[key]
            if norm is not None and len(behind[weight]) == 1 and id(norm.mean) not in shared
        }


class Shortcuts(TorchFunctionMode):
    """Takes the shortcuts inside a ``with``.

    Args:
        still: Ids of the weights that stand still.
        pairs: Convolutions and their batch norms, as :meth:`Watch.pairs` gives them.

    Raises:
        Surprised: If the output of such a convolution meets anything but its batch norm.
    """

    def __init__(self, still: set[int], pairs: Mapping[int, Norm]) -> None:
        super().__init__()
        self._still, self._pairs = still, pairs
        self._norms = {id(norm.mean) for norm in pairs.values()}
        # By id of a stand-in for a convolution's output: itself, so that the id stays its own, and
        # what its norm makes of it, until then.
        self._waiting: dict[int, tuple[Tensor, Tensor | None, int]] = {}
        self._kernels: dict[tuple[int, int], tuple[Tensor, Tensor | None]] = {}
        self._phases: dict[tuple[int, int], Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """See ``torch.overrides.TorchFunctionMode``."""
        if func in _FORM:
            return func(*args, **(kwargs or {}))
        norm = _as_norm(func, args, kwargs, self._still)
        if norm is not None and id(norm.mean) in self._norms:
            stand_in, output, mean = self._waiting.get(id(args[0]), (args[0], None, 0))
            if output is None or mean != id(norm.mean):
                raise Surprised
            self._waiting[id(stand_in)] = stand_in, None, mean
            return output
        if self._waiting and any(id(v) in self._waiting for v in tree_leaves((args, kwargs))):
            raise Surprised
        convolution = _as_convolution(func, args, kwargs, self._still)
        if convolution is None:
            return func(*args, **(kwargs or {}))
        return self._convolve(convolution)

    def __exit__(self, *error: object) -> None:
        """Forget a forward that was stopped halfway."""
        self._waiting.clear()
        super().__exit__(*error)

    def _convolve(self, call: _Convolution) -> Tensor:
        norm, own = self._pairs.get(id(call.weight)), id(call.weight)
        if norm is not None:
            key = own, id(call.bias)
            if key not in self._kernels:
                self._kernels[key] = _folded(call, norm)
            weight, bias = self._kernels[key]
            call = call._replace(weight=weight, bias=bias)
        if _has_phases(call):
            stride = call.stride[0]
            if (own, stride) not in self._phases:
                self._phases[own, stride] = _phases(call.weight, stride)
            phases = self._phases[own, stride]
            output = _Strided.apply(*call[:3], phases, stride, call.padding)
        else:
            output = torch.conv2d(*call)
        if norm is None:
            return output
        stand_in = output.detach()
        self._waiting[id(stand_in)] = stand_in, output, id(norm.mean)
        return stand_in


class _Strided(torch.autograd.Function):
    """A strided convolution of few channels, with the gradient of its images by phases.

    Libraries fill up few channels to the width of their vectors: most of the plain gradient is
    arithmetic on zeros. The pixels at one offset modulo the stride are a phase; the phases of all
    channels have the gradient of one convolution without a stride.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        phases: Tensor,  # noqa: ARG004
        stride: int,
        padding: tuple[int, int],
    ) -> Tensor:
        return torch.conv2d(images, weight, bias, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        images, _, _, phases, ctx.stride, ctx.padding = inputs
        ctx.size = images.shape[-2:]
        ctx.save_for_backward(phases)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (phases,) = ctx.saved_tensors
        spread = F.conv_transpose2d(gradient, phases.to(gradient.dtype))
        spread = F.pixel_shuffle(spread, ctx.stride)
        (top, left), (height, width) = ctx.padding, ctx.size
        right, bottom = width + left - spread.shape[-1], height + top - spread.shape[-2]
        return F.pad(spread, (-left, right, -top, bottom)), None, None, None, None, None


def _phases(weight: Tensor, stride: int) -> Tensor:
    """The kernel ``(D, C, h, w)`` with a channel per phase, ``(D, C stride², h', w')``."""
    rest = [-size % stride for size in weight.shape[2:]]
    grown = F.pad(weight, (0, rest[1], 0, rest[0]))
    split = grown.unflatten(3, (-1, stride)).unflatten(2, (-1, stride))  # (D, C, h', s, w', s)
    return split.permute(0, 1, 3, 5, 2, 4).flatten(1, 3).contiguous()


def _has_phases(call: _Convolution) -> bool:
    return (
        call.images.device.type == "cpu"
        and call.weight.shape[1] <= _FEW
        and call.groups == 1
        and call.stride[0] == call.stride[1] > 1
        and call.dilation == (1, 1)
        and isinstance(call.padding, tuple)
    )


def _folded(call: _Convolution, norm: Norm) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution with its batch norm multiplied in."""
    scale = (norm.variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = (0 if call.bias is None else call.bias) - norm.mean
    bias = shift * scale if norm.bias is None else torch.addcmul(norm.bias, shift, scale)
    return call.weight * scale[:, None, None, None], bias


def _as_convolution(func: Any, args: Any, kwargs: Any, still: set[int]) -> _Convolution | None:
    """The call as ``nn.Conv2d`` makes it; None for any other."""
    if func is not torch.conv2d or kwargs or len(args) != len(_Convolution._fields):
        return None
    call = _Convolution(*args)
    pairs = isinstance(call.stride, tuple) and len(call.stride) == 2
    stands = id(call.weight) in still and (call.bias is None or id(call.bias) in still)
    return call if pairs and stands and call.images.ndim == 4 else None


def _as_norm(func: Any, args: Any, kwargs: Any, still: set[int]) -> Norm | None:
    """The call as ``nn.BatchNorm2d`` makes it when evaluating; None for any other."""
    if func is not F.batch_norm or len(args) != 3 or kwargs["training"] or args[1] is None:
        return None
    norm = Norm(args[1], args[2], kwargs["weight"], kwargs["bias"], kwargs["eps"])
    return norm if all(value is None or id(value) in still for value in norm[:4]) else None
