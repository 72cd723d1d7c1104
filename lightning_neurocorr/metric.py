"""Pearson's r of every neuron with the advantage, streamed over batches and processes.

Moments are shifted and one-pass: each batch is reduced around a provisional mean, then merged in
float64. That keeps r exact to 1e-6 where means are a million times the spread, where a neuron fires
five times in 20,000 samples, and in half precision (Chan, Golub & LeVeque 1983, "Algorithms for
computing the sample variance").
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_neurocorr.functional import Moments, correlation, merge_moments_, merge_shared_

# Scratch that stays in cache: large temporaries cost more than the arithmetic. A block is
# subtracted and multiplied, a chunk of several blocks is merged into the state.
_BLOCK_BYTES = 1 << 18
_CHUNK = 1 << 14


class NeuronAdvantageCorrelation(Metric):
    """Correlation of each of ``D`` neurons with the advantage of a model over a baseline.

    As input to ``forward`` and ``update``: activations ``(N, D)`` of any real dtype and advantage
    ``(N,)``. As output of ``compute``: Pearson's r ``(D,)``, float64; NaN for neurons that are
    constant or were ever not finite.

    Args:
        num_neurons: ``D``.
        num_covariates: Further columns per sample that :meth:`moments` holds co-moments of: group
            indicators, say.
        folds: Disjoint parts of the samples that :meth:`moments` can tell apart.
        count_active: Also count in how many samples each neuron is not 0.
        kwargs: See ``torchmetrics.Metric``.

    Raises:
        ValueError: If an argument is out of range, shapes disagree, or the advantage is not finite.

    Example:
        >>> import torch
        >>> metric = NeuronAdvantageCorrelation(num_neurons=3)
        >>> activations = torch.tensor([[0.0, 1.0, 5.0], [1.0, 0.0, 5.0], [2.0, -1.0, 5.0]])
        >>> metric.update(activations, advantage=torch.tensor([-1.0, 0.0, 1.0]))
        >>> metric.compute()
        tensor([ 1., -1., nan], dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0

    state: Tensor

    def __init__(
        self,
        num_neurons: int,
        *,
        num_covariates: int = 0,
        folds: int = 1,
        count_active: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value, least in (
            ("num_neurons", num_neurons, 1),
            ("num_covariates", num_covariates, 0),
            ("folds", folds, 1),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(
                    f"Expected `{name}` to be an integer of at least {least}, but got {value!r}."
                )
        self.num_neurons = num_neurons
        self.num_covariates = num_covariates
        self.folds = folds
        self.count_active = count_active
        self._warned = False
        self._layout = _Layout(1 + num_covariates, num_neurons)
        # One packed state: a joint merge of counts, means and moments needs them in one reduction.
        self.add_state(
            "state",
            torch.zeros(folds, self._layout.size, dtype=torch.float64),
            dist_reduce_fx=_Merge(self._layout),
        )

    def update(
        self,
        activations: Tensor,
        advantage: Tensor,
        covariates: Tensor | None = None,
        fold: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            activations: ``(N, D)``.
            advantage: ``(N,)``, finite.
            covariates: ``(N, num_covariates)``.
            fold: ``(N,)`` integers in ``[0, folds)``; all 0 when left out.

        Raises:
            ValueError: If shapes disagree or, where it is known without waiting for a device, the
                advantage is not finite or a fold is out of range.
        """
        for name, value in (("activations", activations), ("advantage", advantage)):
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"Expected `{name}` to be a tensor, but got {type(value).__name__}. "
                    "Pass it through torch.as_tensor."
                )
        columns = self._columns(activations, advantage, covariates)
        if len(activations) == 0:
            return
        member = self._members(len(activations), fold, activations.device)
        # A reset under inference mode leaves an inference tensor, which no later update may change.
        if self.state.is_inference() and not torch.is_inference_mode_enabled():
            self.state = self.state.clone()
        moments = self._layout.unpack(self.state)
        _add_batch_(moments, activations.detach(), columns, member, self.count_active)

    def compute(self) -> Tensor:
        """Pearson's r of every neuron with the advantage, ``(D,)``."""
        return correlation(self._checked())

    def _wrap_compute(self, compute: Callable) -> Callable:
        """Torchmetrics makes a number of ``(1,)``; one neuron is still a layer of one."""
        wrapped = super()._wrap_compute(compute)

        @wraps(compute)
        def shaped(*args: Any, **kwargs: Any) -> Tensor:
            return wrapped(*args, **kwargs).reshape(-1)

        return shaped

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the samples that another metric, or its state, has seen."""
        super().merge_state(incoming_state)
        self._computed = None  # the parent class would go on answering with the old r
        self._update_count = max(1, self._update_count)  # or compute() warns that it has no data

    def moments(self) -> tuple[Moments, list[Moments]]:
        """The moments of all samples and those of each fold, over all processes.

        Every process must call it: under ``torch.distributed`` the states are gathered as in
        ``compute``.
        """
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn,
            should_sync=self._to_sync,
            should_unsync=self._should_unsync,
        ):
            parts = self._layout.unpack(self.state.clone())
            return self._checked(), [parts.fold(i) for i in range(self.folds)]

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Histogram of r over the neurons; returns figure and axes as other metrics do.

        Args:
            val: r, or several of them; by default that of :meth:`compute`.
            ax: Axes to draw into; by default those of a new figure.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        if ax is None:
            figure = Figure(figsize=(5, 3), layout="constrained")
            FigureCanvasAgg(figure)
            ax = figure.add_subplot()
        val = self.compute() if val is None else val
        for r in [val] if isinstance(val, Tensor) else val:
            ax.hist(r[r.isfinite()].cpu().numpy(), bins=41, range=(-1, 1), alpha=0.7)
        ax.set(xlabel="correlation with the advantage, r", ylabel="neurons", xlim=(-1, 1))
        return ax.figure, ax

    def _checked(self) -> Moments:
        """All folds in one; says once how many neurons were not finite."""
        merged = self._layout.unpack(_Merge(self._layout)(self.state[:, None])[0])
        broken = int(((merged.n > 0) & ~(merged.mean.isfinite() & merged.m2.isfinite())).sum())
        if broken and not self._warned:
            self._warned = True
            warnings.warn(
                f"{broken} of {self.num_neurons} neurons had activations that are not finite; "
                "their r is NaN.",
                stacklevel=3,
            )
        if not bool(merged.w[0].isfinite()):
            raise ValueError("Expected `advantage` to be finite, but a batch held NaN or infinity.")
        return merged

    def _members(self, n: int, fold: Tensor | None, device: torch.device) -> Tensor:
        """Which samples are in which fold, ``(folds, N)`` bool."""
        if fold is None:
            fold = torch.zeros(n, dtype=torch.long, device=device)
        if fold.shape != (n,):
            raise ValueError(f"Expected `fold` to have shape ({n},), but got {tuple(fold.shape)}.")
        member = fold.to(device)[None, :] == torch.arange(self.folds, device=device)[:, None]
        if device.type == "cpu" and not bool(member.any(0).all()):
            raise ValueError(
                f"Expected `fold` to hold integers in [0, {self.folds}), but got {fold.unique()}."
            )
        return member

    def _columns(self, activations: Tensor, advantage: Tensor, covariates: Tensor | None) -> Tensor:
        """Check shapes; advantage and covariates as ``(N, k)`` in float64 (float32 on MPS)."""
        n = len(activations) if activations.ndim else 0
        if activations.ndim != 2 or activations.shape[1] != self.num_neurons:
            raise ValueError(
                f"Expected `activations` to have shape (N, {self.num_neurons}), but got "
                f"{tuple(activations.shape)}. Pool space and tokens away first."
            )
        if activations.is_complex():
            raise ValueError(
                "Expected `activations` to be real, but got complex numbers. Pass their magnitude."
            )
        if advantage.shape != (n,):
            raise ValueError(
                f"Expected `advantage` to have shape ({n},), but got {tuple(advantage.shape)}."
            )
        columns = advantage.detach().to(activations.device, _wide(activations.device))[:, None]
        # A check on an accelerator would wait for it at every batch; there compute() raises.
        if columns.device.type == "cpu" and not bool(columns.isfinite().all()):
            raise ValueError(
                "Expected `advantage` to be finite, but got NaN or infinity. "
                "Drop or clip those samples."
            )
        if covariates is None:
            covariates = columns[:, :0]
        if covariates.shape != (n, self.num_covariates):
            raise ValueError(
                f"Expected `covariates` to have shape ({n}, {self.num_covariates}), but got "
                f"{tuple(covariates.shape)}."
            )
        return torch.cat([columns, covariates.detach().to(columns)], 1)

    def _apply(self, fn: Callable, exclude_state: Sequence[str] = ()) -> nn.Module:
        """Move with the module but stay float64: bfloat16 would ruin counts and means."""
        super()._apply(fn, exclude_state=["state", *exclude_state])
        self._computed = None  # r that was cached would be rounded
        device = fn(torch.zeros(1, device=self.state.device)).device
        if device.type == "mps":  # no float64 there
            device = torch.device("cpu")
        self.state = self.state.to(device)
        self._defaults["state"] = cast(Tensor, self._defaults["state"]).to(device)
        return self


class _Layout:
    """Where moments of ``k`` columns and ``D`` neurons lie in a packed tensor ``(..., size)``."""

    def __init__(self, columns: int, neurons: int) -> None:
        self.columns, self.neurons = columns, neurons
        self.head = 1 + columns + columns * columns
        self.size = self.head + (3 + columns) * neurons

    def unpack(self, packed: Tensor) -> Moments:
        """Views, so that in-place changes reach ``packed``."""
        k = self.columns
        head = packed[..., : self.head]
        rows = packed[..., self.head :].unflatten(-1, (3 + k, self.neurons))
        return Moments(
            n=head[..., 0],
            w=head[..., 1 : 1 + k],
            ww=head[..., 1 + k :].unflatten(-1, (k, k)),
            mean=rows[..., 0, :],
            m2=rows[..., 1, :],
            active=rows[..., 2, :],
            c=rows[..., 3:, :],
        )


class _Merge:
    """Reduces stacked states ``(W, folds, size)``; a class, so that the metric can be pickled."""

    def __init__(self, layout: _Layout) -> None:
        self.layout = layout

    def __call__(self, states: Tensor) -> Tensor:
        merged = states[0].clone()
        total = self.layout.unpack(merged)
        for state in states[1:]:
            part = self.layout.unpack(state)
            merge_moments_(total, part)
            merge_shared_(total, part)
        return merged


def _add_batch_(
    state: Moments, x: Tensor, columns: Tensor, member: Tensor, count_active: bool
) -> None:
    """Add the moments of one batch to ``state`` in place, a chunk of neurons at a time."""
    k = columns.shape[1]
    inside = member.to(columns.dtype)
    n = inside.sum(1)
    w = (inside @ columns) / n.clamp_min(1)[:, None]
    centred = (columns - w[:, None]) * inside[:, :, None]  # (folds, N, k)
    left = torch.cat([inside[:, None], centred.mT], 1).flatten(0, 1)
    where = state.mean.device
    shared = {
        "n": n.to(where, torch.float64),
        "w": w.to(where, torch.float64),
        "ww": (centred.mT @ centred).to(where, torch.float64),
    }
    width = x.shape[1] if x.device.type != "cpu" else _CHUNK
    batch = None
    for start in range(0, x.shape[1], width):
        chunk = slice(start, start + width)
        shift = _shift(state, x[:3, chunk], chunk)
        sums, squares, active = _reduce(x[:, chunk], left, inside, shift, count_active)
        sums = sums.unflatten(0, (len(n), 1 + k))
        offset = sums[:, 0] / n.to(sums).clamp_min(1)[:, None]
        batch = Moments(
            **shared,
            mean=((shift + offset) * (n > 0)[:, None]).to(where),
            m2=(squares - n.to(sums)[:, None] * offset**2).clamp_min(0).to(where),
            active=active.to(where),
            c=sums[:, 1:].to(where),
        )
        merge_moments_(state, batch, chunk)
    if batch is not None:
        merge_shared_(state, batch)


def _shift(state: Moments, first: Tensor, chunk: slice) -> Tensor:
    """A provisional mean per neuron: that of a fold with samples, at first a median of three.

    Either is exactly the constant of a constant neuron, whose second moment must come out as
    exactly 0.
    """
    a, b, c = first[0], first[len(first) // 2], first[-1]
    median = torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))
    shift = median.to(state.mean.device, torch.float64)
    for fold in reversed(range(len(state.n))):
        shift = torch.where(state.n[fold] > 0, state.mean[fold, chunk], shift)
    # Float32 is enough for differences from the mean, except of numbers that it cannot hold.
    narrow = first.dtype.is_floating_point and first.dtype != torch.float64
    exact = narrow or first.dtype in (torch.bool, torch.uint8, torch.int8, torch.int16)
    return shift.to(first.device, torch.float32 if exact else _wide(first.device))


def _reduce(
    x: Tensor, left: Tensor, inside: Tensor, shift: Tensor, count_active: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of Y = X - shift, of Y^2 and of X != 0 per row of ``left`` and ``inside``.

    With S0 = sum Y and Q = sum Y^2 per fold, mean = shift + S0/n and M2 = Q - S0^2/n. The columns
    in ``left`` are centred, so their sums need no correction for the shift. Results are float64,
    float32 on MPS.
    """
    wide, d = left.dtype, x.shape[1]
    sums = x.new_empty(len(left), d, dtype=wide)
    squares = x.new_empty(len(inside), d, dtype=wide)
    active = x.new_zeros(len(inside), d, dtype=wide)
    left_, inside_ = left.to(shift.dtype), inside.to(shift.dtype)
    width = max(64, _BLOCK_BYTES // (shift.element_size() * len(x)))
    for start in range(0, d, width if x.device.type == "cpu" else d):
        block = slice(start, start + width if x.device.type == "cpu" else d)
        values = x[:, block].to(shift.dtype)
        y = values - shift[block]
        sums[:, block] = left_ @ y
        squares[:, block] = inside_ @ y.square_()
        if count_active:
            active[:, block] = inside_ @ values.sign().abs_()
    if x.device.type == "cpu" and shift.dtype != torch.float64:
        # Squares beyond float32's range read as 0 or infinity: do those neurons again in float64.
        moved = (sums[:: len(left) // len(inside)] != 0) | (squares != 0)
        lost = ((squares < 1e-30) & moved) | ~squares.isfinite()
        redo = torch.nonzero(lost.any(0)).squeeze(1)
        if len(redo):
            sums[:, redo], squares[:, redo], _ = _reduce(
                x[:, redo].double(), left, inside, shift[redo].double(), False
            )
    return sums, squares, active


def _wide(device: torch.device) -> torch.dtype:
    """The widest floating type of a device."""
    return torch.float32 if device.type == "mps" else torch.float64
