"""Which tensors share their memory."""

from __future__ import annotations

from torch import Tensor


def storage_of(tensor: Tensor) -> int:
    """What tells views of one tensor from others, as long as they live."""
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (RuntimeError, NotImplementedError):  # nested and sparse tensors have none
        return id(tensor)
