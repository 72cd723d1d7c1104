"""Cheaper modules that stand in for a network's own while pictures are made of it.

Weights do not change meanwhile. So a batch norm can be multiplied into the convolution before it,
and a strided convolution of few channels can be a dense one of many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import fuse_conv_bn_weights

from lightning_neurocorr.isolation.torch_private import has_hooks

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_FEW = 8  # input channels; with more, the gradient of a strided convolution is as fast


def stand_ins(
    root: nn.Module,
    state: Mapping[str, Tensor],
    run: Callable[[], Any],
    spared: Collection[nn.Module],
) -> dict[nn.Module, nn.Module]:
    """What can stand in for parts of a network, by the part; empty where nothing would pay.

    Whoever takes them checks that outputs are the same: an output of a convolution may have other
    uses than its batch norm.

    Args:
        root: The network, evaluating.
        state: The tensors it runs on, by their names in ``root``.
        run: One forward.
        spared: Modules to leave alone, beside those with hooks, which would see the difference.
    """
    parts = {part: name for name, part in root.named_modules()}
    free = [part for part in parts if part not in spared and not has_hooks(part)]
    convolutions = [
        part for part in free if isinstance(part, nn.Conv2d) and type(part) is nn.Conv2d
    ]
    norms: list[Any] = [part for part in free if type(part) in _NORMS]
    norms = [norm for norm in norms if norm.running_mean is not None]  # else it takes the batch's

    def tensor(part: nn.Module, name: str) -> Any:
        return state.get(f"{parts[part]}.{name}")

    found: dict[nn.Module, Any] = {}
    for convolution, norm in _pairs(convolutions, norms, run).items():
        statistics = tensor(norm, "running_mean"), tensor(norm, "running_var"), norm.eps
        weight, bias = tensor(convolution, "weight"), tensor(convolution, "bias")
        affine = tensor(norm, "weight"), tensor(norm, "bias")
        fused = fuse_conv_bn_weights(weight, bias, *statistics, *affine)
        found[convolution], found[norm] = _with_weights(convolution, *fused), nn.Identity()
    for convolution in filter(_spreads, convolutions):
        weight, bias = tensor(convolution, "weight"), tensor(convolution, "bias")
        plain = found.get(convolution) or _with_weights(convolution, weight, bias)
        found[convolution] = SpreadConvolution(plain)
    # one level down, so that no name in `state` means them
    return {part: nn.Sequential(new) for part, new in found.items()}


class SpreadConvolution(nn.Module):
    """A strided convolution as a dense one over the pixels at each offset modulo the stride.

    Libraries fill up few channels to the width of their vectors: most of the plain gradient is
    arithmetic on zeros.

    Args:
        convolution: One without groups and dilation, of equal strides, padded with zeros.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self._kernel = convolution.kernel_size
        self._padding: Any = convolution.padding
        self._stride = stride = convolution.stride[0]
        rows, columns = (-size % stride for size in self._kernel)
        weight = F.pixel_unshuffle(F.pad(convolution.weight, (0, columns, 0, rows)), stride)
        self.weight = nn.Parameter(
            weight.detach().contiguous(memory_format=torch.channels_last), False
        )
        self.bias = convolution.bias

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(N, C, H, W)``."""
        edges: list[int] = []
        for axis in (1, 0):  # F.pad begins with the last
            size, kernel, padding = images.shape[axis - 2], self._kernel[axis], self._padding[axis]
            steps = (size + 2 * padding - kernel) // self._stride - (-kernel // self._stride)
            edges += [padding, self._stride * steps - size - padding]
        spread = F.pixel_unshuffle(F.pad(images, edges), self._stride)
        return F.conv2d(spread, self.weight, self.bias)


def _pairs(
    convolutions: Collection[nn.Conv2d], norms: Collection[Any], run: Callable[[], Any]
) -> dict[nn.Conv2d, Any]:
    """The batch norm by the convolution whose output it takes, where both are called once."""
    if not convolutions or not norms:
        return {}
    calls: Counter[nn.Module] = Counter()
    outputs: list[tuple[nn.Conv2d, Any]] = []
    pairs: dict[nn.Conv2d, Any] = {}

    def spoke(convolution: Any, _: Any, output: Any) -> None:
        calls[convolution] += 1
        outputs.append((convolution, output))

    def heard(norm: nn.Module, args: tuple[Any, ...]) -> None:
        calls[norm] += 1
        pairs.update({one: norm for one, output in outputs if args and output is args[0]})

    handles = [part.register_forward_hook(spoke) for part in convolutions]
    handles += [part.register_forward_pre_hook(heard) for part in norms]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return {one: norm for one, norm in pairs.items() if calls[one] == calls[norm] == 1}


def _with_weights(like: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """The same convolution with these weights, which need no gradient."""
    made: Any = nn.utils.skip_init(
        nn.Conv2d,
        like.in_channels,
        like.out_channels,
        like.kernel_size,
        like.stride,
        like.padding,
        like.dilation,
        like.groups,
        bias is not None,
        like.padding_mode,
    )
    made.weight = nn.Parameter(weight.detach(), False)
    made.bias = None if bias is None else nn.Parameter(bias.detach(), False)
    return made


def _spreads(convolution: nn.Conv2d) -> bool:
    return (
        convolution.weight.device.type == "cpu"
        and convolution.in_channels <= _FEW
        and min(convolution.kernel_size) > 3  # filled up to a multiple of the stride, zeros count
        and convolution.groups == 1
        and convolution.stride[0] == convolution.stride[1] > 1
        and convolution.dilation == (1, 1)
        and convolution.padding_mode == "zeros"
        and not isinstance(convolution.padding, str)
    )
