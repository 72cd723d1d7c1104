"""Where the moments of a metric lie in its one packed state, and how packed states merge."""

from __future__ import annotations

from torch import Tensor

from lightning_neurocorr.functional import Moments, merge_moments_


class PackedState:
    """Where moments of ``k`` columns and ``D`` neurons lie in a packed tensor ``(..., size)``.

    All parts are views, so that in-place changes reach the packed tensor.
    """

    def __init__(self, columns: int, neurons: int) -> None:
        self.columns, self.neurons = columns, neurons
        self.head_size = 1 + columns + columns * columns
        self.size = self.head_size + (3 + columns) * neurons

    def unpack(self, packed: Tensor) -> Moments:
        """All moments."""
        return self.moments(self.head(packed), self.rows(packed))

    def head(self, packed: Tensor) -> Tensor:
        """What all neurons share, ``(..., 1 + k + k k)``."""
        return packed[..., : self.head_size]

    def rows(self, packed: Tensor) -> Tensor:
        """What each neuron has, ``(..., 3 + k, D)``."""
        return packed[..., self.head_size :].unflatten(-1, (3 + self.columns, self.neurons))

    def moments(self, head: Tensor, rows: Tensor) -> Moments:
        """The moments in a head and in rows."""
        k = self.columns
        return Moments(
            n=head[..., 0],
            w=head[..., 1 : 1 + k],
            ww=head[..., 1 + k :].unflatten(-1, (k, k)),
            mean=rows[..., 0, :],
            m2=rows[..., 1, :],
            active=rows[..., 2, :],
            c=rows[..., 3:, :],
        )


class Merge:
    """Reduces stacked states ``(W, folds, size)``; a class, so that the metric can be pickled."""

    def __init__(self, layout: PackedState) -> None:
        self.layout = layout

    def __call__(self, states: Tensor) -> Tensor:
        """One state."""
        merged = states[0].clone()
        total = self.layout.unpack(merged)
        for state in states[1:]:
            merge_moments_(total, self.layout.unpack(state))
        return merged
