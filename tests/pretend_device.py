"""A device that is none: tensors say that they lie on it, and lie on the CPU.

What a device does not forgive is an error here too: tensors of two devices in one operation,
float64 on Apple's GPU. What is copied to the host without waiting is garbage until somebody waits.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import Self

from lightning_neurocorr.metric import on_device

KINDS = ("cuda", "mps")
_GARBAGE = 77
_CPU = torch.device("cpu")
_on_the_way: list[Callable[[], Any]] = []  # copies to the host that nobody has waited for


class OnDevice(Tensor):
    """A tensor of a pretended device; ``inner`` has its values."""

    inner: Tensor
    home: torch.device

    @staticmethod
    def __new__(cls, inner: Tensor, home: torch.device, required: bool = False) -> Self:
        # Autograd asks a device that PyTorch was not built for too much: only Python sees another.
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="cpu",
            requires_grad=required,
        )
        made.inner, made.home = inner, home
        return made

    @property
    def device(self) -> torch.device:
        return self.home

    @property
    def is_cuda(self) -> bool:
        return self.home.type == "cuda"

    @property
    def is_mps(self) -> bool:
        return self.home.type == "mps"

    @property
    def is_cpu(self) -> bool:
        return False

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.home}, {self.inner})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            if func is Tensor.data_ptr:
                return args[0].inner.data_ptr()
            if func is Tensor.numpy:
                raise TypeError("can't convert a device's tensor to numpy. Use Tensor.cpu() first.")
            if func is Tensor.tolist:
                settle()
                return args[0].inner.tolist()
            if func is Tensor.cpu:
                return _moved(args[0], _CPU, None, False)
            if func is Tensor.to:
                return _to(*args, **kwargs)
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, dict(kwargs or {}))


def settle() -> None:
    """All copies to the host arrive: somebody waits for the device."""
    while _on_the_way:
        _on_the_way.pop(0)()


def _to(value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``Tensor.to``, of which PyTorch would think that it stays on the CPU."""
    device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
    late, copy = kwargs.pop("non_blocking", False), kwargs.pop("copy", False)
    for one in args:
        if isinstance(one, Tensor):
            device, dtype = one.device, one.dtype
        elif isinstance(one, torch.dtype):
            dtype = one
        elif isinstance(one, bool):
            late = one
        elif one is not None:
            device = one
    where = value.device if device is None else _device(device)
    same = where == value.device and dtype in (None, value.dtype)
    if same and not copy and not kwargs:
        return value
    return _moved(value, where, dtype, late, **kwargs)


def _moved(
    value: Tensor, where: torch.device, dtype: torch.dtype | None, late: bool, **more: Any
) -> Tensor:
    if where == value.device and dtype is None and not more:
        return value
    given = {"dtype": dtype or value.dtype, "device": where, "non_blocking": late, **more}
    return _Move.apply(value, given)


class _Move(torch.autograd.Function):
    """A copy to another device, whose gradient comes back."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, given: dict[str, Any]) -> Tensor:
        ctx.back = {"dtype": value.dtype, "device": value.device}
        return torch.ops.aten._to_copy.default(value, **given)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return torch.ops.aten._to_copy.default(gradient, **ctx.back), None


def _device(device: Any) -> torch.device:
    found = torch.device(device)
    return torch.device(found.type, 0) if found.type in KINDS and found.index is None else found


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    ours = [leaf for leaf in leaves if isinstance(leaf, OnDevice)]
    name, source = func._schema.name, ours[0].home if ours else None
    copies = name in ("aten::copy_", "aten::_to_copy", "aten::_foreach_copy_")
    if not copies:
        _check_devices(name, leaves, {leaf.home for leaf in ours})
    target = _device(kwargs["device"]) if kwargs.get("device") is not None else source
    if name.startswith("aten::new_"):  # autograd names the device that PyTorch sees
        target = source
    if name == "aten::copy_":
        target = args[0].device if isinstance(args[0], OnDevice) else _CPU
    to_host = copies and source is not None and target == _CPU
    late = bool(kwargs.get("non_blocking") or (name == "aten::copy_" and (*args, 0, 0)[2]))
    inner = pytree.tree_map_only(OnDevice, lambda part: part.inner, (args, kwargs))
    given, named = inner
    if "device" in named:
        named["device"] = _CPU if named["device"] is not None else None
    if "pin_memory" in named:
        named["pin_memory"] = None
    if name == "aten::_local_scalar_dense" or (to_host and not late):
        settle()
    result = func(*given, **named)
    if to_host and late:
        true = result.clone()
        result.fill_(_GARBAGE)
        _on_the_way.append(lambda: result.copy_(true))
    known = {id(leaf.inner): leaf for leaf in ours}

    def wrapped(part: Any) -> Any:
        if not isinstance(part, Tensor) or isinstance(part, OnDevice):
            return part
        if id(part) in known:
            return known[id(part)]
        if target is None or target.type not in KINDS:
            return part
        _check_dtype(part.dtype, target)
        return OnDevice(part, target)

    return pytree.tree_map(wrapped, result)


def _check_devices(name: str, leaves: list[Tensor], devices: set[torch.device]) -> None:
    host = [leaf for leaf in leaves if not isinstance(leaf, OnDevice) and leaf.ndim]
    if name in ("aten::index.Tensor", "aten::index", "aten::index_put_", "aten::_index_put_impl_"):
        host = [leaf for leaf in host if leaf.is_floating_point()]  # indices may lie on the host
    if len(devices) > 1 or (devices and host):
        where = [*map(str, devices), *(["cpu"] if host else [])]
        raise RuntimeError(f"Expected all tensors to be on the same device, {name} got {where}")


def _check_dtype(dtype: torch.dtype, device: torch.device) -> None:
    if device.type == "mps" and dtype in (torch.float64, torch.complex128):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as MPS has no float64.")


class _Made(TorchDispatchMode):
    """What is made on a pretended device, or moved to it, is of it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, dict(kwargs or {}))


class _Moves(TorchFunctionMode):
    """A plain tensor that goes to a pretended device, too, gets its gradient back."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.to and not isinstance(args[0], OnDevice):
            with torch._C.DisableTorchFunctionSubclass():
                return _to(*args, **dict(kwargs or {}))
        return func(*args, **(kwargs or {}))


class _Event:
    """An event of a pretended device."""

    def __init__(self, *_: Any) -> None: ...

    def record(self, *_: Any) -> None: ...

    def synchronize(self) -> None:
        settle()


def _making(maker: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def make(data: Any, *, device: Any = None, **settings: Any) -> Tensor:
        if isinstance(data, OnDevice):
            return data if device is None else data.to(device)
        where = torch.zeros(0).device if device is None else device
        return maker(data, device="cpu", **settings).to(where)

    return make


@contextmanager
def pretended() -> Iterator[None]:
    """Inside, ``device="mps"`` and the like give tensors of that device."""
    _on_the_way.clear()
    with pytest.MonkeyPatch.context() as patch, _Made(), _Moves():
        patch.setattr(on_device, "DEVICES", set())  # a kernel reads memory of a true device
        patch.setattr(torch, "Event", _Event)
        patch.setattr(torch.cuda, "Event", _Event)
        patch.setattr(torch.cuda, "current_stream", lambda *_: None)
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "init", lambda: None)
        state = torch.Generator().get_state()
        patch.setattr(torch.cuda, "get_rng_state", lambda *_: state)
        patch.setattr(torch.cuda, "set_rng_state", lambda *_: None)
        apple = torch.Generator()
        patch.setattr(torch.mps, "get_rng_state", apple.get_state)
        patch.setattr(torch.mps, "set_rng_state", apple.set_state)
        patch.setattr(torch.mps, "manual_seed", apple.manual_seed)
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "default_generators", [torch.Generator() for _ in range(4)])
        patch.setattr(torch.cuda, "mem_get_info", lambda *_: (1 << 34, 1 << 35))
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        for maker in ("tensor", "as_tensor"):  # which ask no mode
            patch.setattr(torch, maker, _making(getattr(torch, maker)))
        yield
    _on_the_way.clear()


def to(values: Tensor, device: str) -> OnDevice:
    """A tensor on a pretended device."""
    where = _device(device)
    _check_dtype(values.dtype, where)
    return OnDevice(values.detach().clone(), where)


def move(module: nn.Module, device: str) -> nn.Module:
    """A module's parameters and buffers to a pretended device, in place."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                part._parameters[name] = nn.Parameter(to(parameter, device))
        for name, buffer in list(part._buffers.items()):
            if buffer is not None:
                part._buffers[name] = to(buffer, device)
    return module
