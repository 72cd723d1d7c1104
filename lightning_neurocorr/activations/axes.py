"""Along which axes of a layer's activation its units and the samples lie."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from lightning_neurocorr.activations.sequences import is_sequence_first
from lightning_neurocorr.activations.sites import Place, Site, layer_of
from lightning_neurocorr.isolation.torch_private import ConvNd, NormBase

_CHANNEL_SECOND = (ConvNd, NormBase, nn.GroupNorm)
_FEATURE_LAST = (
    nn.Linear,
    nn.Bilinear,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.Transformer,
)


class Axes(NamedTuple):
    """What the axes of an activation are, from 0.

    Attributes:
        samples: That of the samples.
        units: That of the units.
        positions: All others.
    """

    samples: int
    units: int
    positions: tuple[int, ...]


def is_token_convolution(module: nn.Module) -> bool:
    """Whether it is the linear layer that Hugging Face's GPT-2 calls ``Conv1D``."""
    return type(module).__name__ == "Conv1D" and isinstance(getattr(module, "nf", None), int)


def has_samples_first(module: nn.Module) -> bool:
    """Whether modules of its kind take samples first, then channels."""
    return isinstance(module, _CHANNEL_SECOND)


def known_unit_axis(module: nn.Module, ndim: int) -> int | None:
    """The axis that the kind of a module says; None where modules of its kind differ."""
    if ndim < 2:
        return max(ndim - 1, 0)
    if isinstance(module, _FEATURE_LAST) or is_token_convolution(module):
        return ndim - 1
    if isinstance(module, _CHANNEL_SECOND):
        return 1
    shape = getattr(module, "normalized_shape", ())  # of LayerNorm and RMSNorm
    return ndim - 1 if len(shape) == 1 and isinstance(module, (nn.LayerNorm, nn.RMSNorm)) else None


def unit_axis(place: Place, activation: Tensor) -> int:
    """The axis of ``activation`` along which the units of a layer lie (non-negative).

    A site says it. Of a plain module its kind does; of other kinds, with four axes and more,
    channels are taken to come second, else last: :func:`find_sites` knows.

    Raises:
        ValueError: If a site was found on activations with another number of axes.
    """
    ndim = activation.ndim
    if isinstance(place, Site) and place.units is not None:
        if place.ndim is not None and ndim != place.ndim:
            raise ValueError(f"it has {ndim} axes, and had {place.ndim} when its units were found")
        if not -ndim <= place.units < ndim:
            raise ValueError(f"it has {ndim} axes, and `unit_axis` says {place.units}")
        return place.units % ndim
    known = known_unit_axis(layer_of(place), ndim)
    if known is not None:
        return known
    return 1 if ndim >= 4 else ndim - 1


def axes_of(place: Place, activation: Tensor) -> Axes:
    """See :func:`batch_axis` and :func:`unit_axis`; the number of axes is all that they look at."""
    samples, units = batch_axis(place, activation), unit_axis(place, activation)
    others = (axis for axis in range(activation.ndim) if axis not in (samples, units))
    return Axes(samples, units, tuple(others))


def told_unit_axis(place: Place, activation: Tensor) -> int:
    """The same, where it is known.

    Raises:
        ValueError: If a plain module is of a kind whose axes differ from model to model.
    """
    ndim = activation.ndim
    if ndim > 2 and not isinstance(place, Site) and known_unit_axis(place, ndim) is None:
        raise ValueError(
            f"Expected to know which of its {ndim} axes are units, but a {type(place).__name__} "
            "does not say so: pass find_sites(model, lambda: model(inputs)), which follows them, "
            "in place of the model."
        )
    return unit_axis(place, activation)


def batch_axis(place: Place, activation: Tensor) -> int:
    """The axis of ``activation`` with the samples.

    A site may say it. Else it is 1 for modules that say ``batch_first=False``, and so it is for all
    parts of PyTorch's own transformers that were found by ``choose_layers``; and 0 for others.
    """
    if isinstance(place, Site) and place.samples is not None:
        return place.samples
    return int(activation.ndim == 3 and is_sequence_first(layer_of(place)))
