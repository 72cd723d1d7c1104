"""Small random shifts, zooms and rotations, so that no pattern relies on single pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample


def draw_warps(
    count: int,
    height: int,
    width: int,
    *,
    shift: float,
    scale: float,
    degrees: float,
    generator: torch.Generator,
) -> Tensor:
    """Random affine maps ``(count, 2, 3)`` in the coordinates of ``affine_grid``, drawn uniformly.

    Args:
        count: How many.
        height: Rows of the image.
        width: Columns of the image; a rotation in pixels depends on both.
        shift: The farthest shift, as a share of the side.
        scale: The strongest zoom: ``0.1`` is from 0.9 to 1.1.
        degrees: The widest rotation.
        generator: A CPU generator, so that every device gets the same maps.
    """
    uniform = 2 * torch.rand(4, count, generator=generator, dtype=torch.float32, device="cpu") - 1
    zoom = 1 + scale * uniform[0]
    angle = math.radians(degrees) * uniform[1]
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    columns = torch.stack([cos, -sin * height / width, 2 * shift * uniform[2]], 1)
    rows = torch.stack([sin * width / height, cos, 2 * shift * uniform[3]], 1)
    return torch.stack([columns, rows], 1)


def warp(images: Tensor, warps: Tensor) -> Tensor:
    """Each image under its own map, ``(K, C, H, W)``; the outside mirrors the inside."""
    grid = affine_grid(warps, list(images.shape), align_corners=False)
    return grid_sample(images, grid, padding_mode="reflection", align_corners=False)
