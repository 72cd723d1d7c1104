"""The metric itself: checks, state, and how it is merged, moved, computed and plotted."""

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_neurocorr.functional import (
    Moments,
    correlation,
    levelled_folds,
    merge_shared_,
    merge_step,
)
from lightning_neurocorr.functional.devices import with_float64
from lightning_neurocorr.functional.side_by_side import read_parts, side_by_side
from lightning_neurocorr.isolation.precision import exact_arithmetic
from lightning_neurocorr.isolation.torchmetrics_private import MERGE, OneState
from lightning_neurocorr.metric import on_device
from lightning_neurocorr.metric.batch import check_columns, read_columns
from lightning_neurocorr.metric.packing import Merge, PackedState
from lightning_neurocorr.metric.reduction import add_batch_


class NeuronAdvantageCorrelation(OneState):
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
        compile: On the CPU, sum large batches in a kernel that ``torch.compile`` makes at the first
            of them: faster for many neurons, once the compiler has had its half minute. Needs a C++
            compiler; where there is none, a warning says so and nothing is lost. On a GPU there are
            other kernels, which are always used.
        kwargs: See ``torchmetrics.Metric``.

    Raises:
        ValueError: If an argument is out of range, shapes disagree, or the advantage is not finite.

    Example:
        >>> import torch
        >>> metric = NeuronAdvantageCorrelation(num_neurons=3)
        >>> activations = torch.tensor([[0.0, 1.0, 5.0], [1.0, 0.0, 5.0], [2.0, -1.0, 5.0]])
        >>> metric.update(activations, advantage=torch.tensor([-1.0, 0.0, 1.0]))
        >>> metric.compute().round(decimals=6)
        tensor([ 1., -1., nan], dtype=torch.float64)
    """

    plot_lower_bound = -1.0
    plot_upper_bound = 1.0

    def __init__(
        self,
        num_neurons: int,
        *,
        num_covariates: int = 0,
        folds: int = 1,
        count_active: bool = False,
        compile: bool = False,  # noqa: A002 -- as in torch
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
        self.compiled = compile  # `compile` is a method of every module
        self._warned = False
        self.layout = PackedState(1 + num_covariates, num_neurons)
        # One packed state: a joint merge of counts, means and moments needs them in one reduction.
        self.add_state(
            "state",
            torch.zeros(
                folds,
                self.layout.size,
                dtype=torch.float64,
                device=with_float64(torch.get_default_device()),
            ),
            dist_reduce_fx=Merge(self.layout),
        )

    def home(self, device: torch.device) -> torch.device:
        """The device, or the CPU where it has no float64."""
        return with_float64(device)

    def update(
        self,
        activations: Tensor | Sequence[Tensor],
        advantage: Tensor,
        covariates: Tensor | None = None,
        fold: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            activations: ``(N, D)``, or those of several layers, ``(N, D_1)``, ``(N, D_2)``, ...,
                whose ``D`` neurons follow each other: a hundred small layers then cost little
                more than one.
            advantage: ``(N,)``, finite.
            covariates: ``(N, num_covariates)``.
            fold: ``(N,)`` integers in ``[0, folds)``; all 0 when left out.

        Raises:
            ValueError: If shapes disagree or, where it is known without waiting for a device, the
                advantage is not finite or a fold is out of range.
        """
        parts = read_parts(activations, self.num_neurons)
        given = (advantage, covariates, fold)
        check_columns(*given, (parts[0].shape[0], self.num_covariates))
        state, in_blocks = self._writable(), partial(self._add_blocks, parts, given)
        of_metric = (self.layout, self.count_active)
        found = on_device.add_batch(state, *of_metric, parts, given, in_blocks)
        if found is None:
            in_blocks(state)
        elif found is not state:
            self.state = found

    def _add_blocks(
        self,
        parts: list[Tensor],
        given: tuple[Tensor, Tensor | None, Tensor | None],
        state: Tensor,
    ) -> None:
        """Add a batch to a state in operators of PyTorch."""
        with exact_arithmetic(parts[0].device):
            columns = read_columns(
                *given, folds=self.folds, device=parts[0].device, state_device=state.device
            )
            if parts[0].shape[0]:
                moments = self.layout.unpack(state)
                step = merge_step(moments, columns.n, columns.w)
                for neurons, x in side_by_side(parts):
                    part = moments.neurons(neurons)
                    add_batch_(part, x, columns, step, self.count_active, self.compiled)
                merge_shared_(moments, step, columns.n, columns.ww)

    def _writable(self) -> Tensor:
        """The state, as a tensor that may be changed in place."""
        # A reset under inference mode leaves an inference tensor, which no later update may change.
        if self.state.is_inference() and not torch.is_inference_mode_enabled():
            self.state = self.state.clone()
        return self.state

    def compute(self) -> Tensor:
        """Pearson's r of every neuron with the advantage, ``(D,)``."""
        return correlation(self._checked(self.layout.unpack(self._merged())))

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the samples that another metric, or its state, has seen."""
        if isinstance(incoming_state, NeuronAdvantageCorrelation):
            self._check_alike(incoming_state)
        super().merge_state(incoming_state)

    def moments(self, device: torch.device | str | None = None) -> tuple[Moments, list[Moments]]:
        """The moments of all samples and those of each fold, over all processes.

        Every process must call it: under ``torch.distributed`` the states are gathered as in
        ``compute``.

        Args:
            device: Where they are wanted, in one transfer; by default where the metric lies.
        """
        with self.gathered():
            states = torch.cat([self._merged()[None], self.state])
        states = states.to(states.device if device is None else device)
        total, folds = self.layout.unpack(states[0]), self.layout.unpack(states[1:])
        folds = levelled_folds(total, folds, self.count_active)
        return self._checked(total), [folds.fold(index) for index in range(self.folds)]

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
        for r in val if isinstance(val, (list, tuple)) else [val]:
            r = torch.as_tensor(r).detach()
            ax.hist(r[r.isfinite()].cpu().numpy(), bins=41, range=(-1, 1), alpha=0.7)
        ax.set(xlabel="correlation with the advantage, r", ylabel="neurons", xlim=(-1, 1))
        return ax.figure, ax

    def _check_alike(self, other: Metric) -> None:
        """Raise unless the state of another one means the same."""
        mine, theirs = (
            f"{metric.num_neurons} neurons, {metric.num_covariates} covariates and "
            f"{metric.folds} folds"
            + (", with active samples counted" if metric.count_active else "")
            for metric in (self, other)
        )
        if mine != theirs:
            raise ValueError(
                f"Expected `incoming_state` to be a metric of {mine}, but got {theirs}. {MERGE}"
            )

    def _merged(self) -> Tensor:
        """All folds in one, ``(size,)``."""
        return Merge(self.layout)(self.state[:, None])[0]

    def _checked(self, merged: Moments) -> Moments:
        """The moments of all samples; says once how many neurons were not finite."""
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
