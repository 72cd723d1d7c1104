"""What watched layers returned, where following their neurons begins: which axes are which."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_neurocorr.activations import layouts as L
from lightning_neurocorr.activations.axes import has_samples_first, known_unit_axis
from lightning_neurocorr.activations.reading import UnitAxis, of_layer
from lightning_neurocorr.activations.sequences import is_sequence_first


class Roots:
    """Gives what layers return its layout.

    Args:
        unit_axis: What the user says of the units.

    Attributes:
        refused: Why what the user says cannot be; empty where it can.
        doubtful: Layers whose samples may lie on either of two axes.
    """

    def __init__(self, unit_axis: UnitAxis) -> None:
        self._unit_axis = unit_axis
        self.refused = ""
        self.doubtful: set[str] = set()

    def layout(
        self, name: str, module: nn.Module, value: Tensor, traced: L.Layout | None
    ) -> L.Layout | None:
        """Which axes of a layer's output are which; None where its units cannot be known.

        Args:
            name: Of the layer.
            module: The layer.
            value: What it returned.
            traced: What the operations before tell of its axes, if anything.
        """
        if value.ndim < 2 or value.is_nested:
            return None
        units = of_layer(self._unit_axis, name, None)
        if units is None:
            units = known_unit_axis(module, value.ndim)
        followed = traced is not None and L.find(traced, L.UNITS) is not None
        if units is None and not followed:
            if value.ndim > 2:
                return None
            units = 1
        samples = None if traced is None else L.find(traced, L.SAMPLES)
        layout = traced if traced is not None else L.axes_of(value.shape)
        if units is not None:
            if not -value.ndim <= units < value.ndim:
                self.refused = (
                    f"Expected `unit_axis` of layer {name!r} to be an axis of what it returns, of "
                    f"shape {tuple(value.shape)}, but got {units}."
                )
                return None
            units %= value.ndim
            layout = L.with_axis(layout, units, L.UNITS, value.shape[units])
        if value.ndim == 3 and is_sequence_first(module):
            samples = 1
            layout = L.with_axis(layout, 1, L.SAMPLES, value.shape[1])
        if samples is None:
            if self._is_square(module, value, units):
                self.doubtful.add(name)
            layout = L.with_axis(layout, 0, L.SAMPLES, value.shape[0])
        return layout if L.is_told(layout) else None

    @staticmethod
    def _is_square(module: nn.Module, value: Tensor, units: int | None) -> bool:
        """Whether another axis than the first is as long, and may be that of the samples."""
        sizes = [n for axis, n in enumerate(value.shape) if axis != units]
        return sizes.count(len(value)) > 1 and not has_samples_first(module)
