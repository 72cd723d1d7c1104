"""What can be measured in images, as words for them: a pure function."""

from __future__ import annotations

import torch
from torch import Tensor


def image_statistics(images: Tensor) -> dict[str, Tensor]:
    """What can be measured in images, per image.

    Args:
        images: ``(N, C, H, W)`` with one or three channels, in any range.

    Returns:
        ``brightness`` (mean), ``contrast`` (standard deviation), ``edges`` (mean difference of
        neighbours), ``size`` (share of pixels in the upper half of the image's range),
        ``symmetry`` (correlation with the mirror image); for three channels also ``saturation``,
        ``redness``, ``greenness`` and ``blueness``. ``(N,)`` each.
    """
    x = images.detach().float()
    grey = x.mean(1)
    flat = grey.flatten(1)
    low, high = flat.min(1).values, flat.max(1).values
    centred = flat - flat.mean(1, keepdim=True)
    mirrored = grey.flip(-1).flatten(1)
    mirrored = mirrored - mirrored.mean(1, keepdim=True)
    spread = centred.square().sum(1)
    edges = (grey[:, 1:] - grey[:, :-1]).abs().mean((1, 2))
    edges = edges + (grey[:, :, 1:] - grey[:, :, :-1]).abs().mean((1, 2))
    found = {
        "brightness": flat.mean(1),
        "contrast": flat.std(1, unbiased=False),
        "edges": edges,
        "size": (flat > ((low + high) / 2)[:, None]).float().mean(1),
        "symmetry": torch.where(spread > 0, (centred * mirrored).sum(1) / spread, torch.nan),
    }
    if x.shape[1] == 3:
        channels = x.mean((2, 3))
        found["saturation"] = (x.amax(1) - x.amin(1)).mean((1, 2))
        for i, colour in enumerate(("redness", "greenness", "blueness")):
            found[colour] = channels[:, i] - channels.mean(1)
    return found
