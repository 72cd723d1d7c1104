"""What PyTorch keeps to itself and we read all the same: here, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase as NormBase
from torch.nn.modules.conv import _ConvNd as ConvNd
from torch.nn.modules.conv import _ConvTransposeNd as ConvTransposeNd
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "ConvNd",
    "ConvTransposeNd",
    "NormBase",
    "TorchDispatchMode",
    "buffers_of",
    "composite_kernel",
    "computes_as_torch",
    "copy_all",
    "has_hooks",
    "hook_tables",
    "is_compiled_function",
    "is_compiled_in_place",
    "is_mutable",
    "is_transformed",
    "operation_name",
    "parameters_of",
    "pytree",
    "version_of",
]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_functorch: Any = vars(torch._C)["_functorch"]
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """The table of a module's own parameters, tied and missing ones too."""
    return module._parameters


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """The table of a module's own buffers."""
    return module._buffers


def copy_all(places: list[Tensor], values: list[Tensor]) -> None:
    """Write tensors in place; on a GPU in one launch where all have one dtype."""
    torch.ops.aten._foreach_copy_.default(places, values)


def computes_as_torch(module: nn.Module) -> bool:
    """Whether a linear layer, convolution or norm returns what PyTorch's own class returns."""
    steps = ("forward", "_conv_forward", "_apply_instance_norm")
    defined = [
        next(kind.__module__ for kind in type(module).__mro__ if step in vars(kind))
        for step in steps
        if hasattr(type(module), step)
    ]
    replaced = any(step in vars(module) for step in steps)
    return not replaced and all(name.startswith("torch.nn.modules.") for name in defined)


def hook_tables(module: nn.Module) -> list[dict[int, Any]]:
    """The tables of a module's hooks."""
    tables = [getattr(module, kind, None) for kind in _HOOKS]
    return [table for table in tables if table is not None]


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of ``module`` calls hooks, its own or those on every module."""
    everywhere = any(getattr(nn.modules.module, f"_global{kind}") for kind in _HOOKS)
    return everywhere or any(hook_tables(module))


def is_compiled_in_place(module: nn.Module) -> bool:
    """Whether ``module.compile()`` was called."""
    return getattr(module, "_compiled_call_impl", None) is not None


def is_compiled_function(value: Any) -> bool:
    """Whether ``torch.compile`` made this function."""
    return callable(value) and hasattr(value, "_torchdynamo_orig_callable")


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written to in place; 0 where nobody counts."""
    return 0 if tensor.is_inference() else tensor._version


# Whether a tensor stands for others inside of ``torch.func``'s transforms, such as ``vmap``.
is_transformed: Callable[[Tensor], bool] = _functorch.is_functorch_wrapped_tensor


def operation_name(operation: Any) -> str:
    """The name that a ``TorchDispatchMode`` sees, with its namespace."""
    return operation._schema.name


def is_mutable(operation: Any) -> bool:
    """Whether an operation writes to what it is given."""
    return operation._schema.is_mutable


def composite_kernel(operation: Any) -> Callable[..., Any] | None:
    """What runs an operation by its parts, where it has any."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key(operation.name(), _COMPOSITE)
    return partial(operation._op_dk, _COMPOSITE) if has else None
