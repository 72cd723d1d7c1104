"""How many pictures a device can make at once."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_AT_ONCE = 16  # on a CPU, whose caches are small
_SHARE = 1 / 4  # of the free memory; a recorded step needs as much again as the steps before it


def most_at_once(free: int | None, needed: int) -> int:
    """How many pictures to make at once.

    Args:
        free: Bytes that can be had; None is not known.
        needed: Bytes that a step of one picture needs.
    """
    return _AT_ONCE if free is None else max(1, int(_SHARE * free) // max(1, needed))


def bytes_per_image(read: Callable[[Tensor], object], images: Tensor) -> int:
    """What a forward keeps for the gradient of one image, and the image's own way to it.

    Weights are kept too, whatever the number of images. So this is a difference of two counts.

    Args:
        read: A forward on some images, with gradients.
        images: At least two images ``(n, C, H, W)``.
    """
    count, fewer = len(images), len(images) // 2
    kept = _bytes_kept(lambda: read(images)) - _bytes_kept(lambda: read(images[:fewer].clone()))
    passes = 8  # of a parametrization over its pixels, and of the augmentation
    return math.ceil(kept / (count - fewer)) + passes * images[0].nbytes


def _bytes_kept(run: Callable[[], object]) -> int:
    """Bytes of all storages that autograd keeps in ``run()``."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return sum(kept.values())
