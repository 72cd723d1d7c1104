"""How much the model's answer rests on each neuron where it wins: the *used* column.

The contribution of neuron j on sample i is k_ij = sum over positions of (a_ij - mean a_j) times
d(logit[truth] - logit[rival]) / d a_ij; the rival is the baseline's answer. This is activation
times gradient (Olah et al. 2018, "The Building Blocks of Interpretability") of the margin by which
the model beats its baseline. The mean is known only when a validation has ended, so u = sum a g and
v = sum g are streamed, and k = u - mean v for any mean.

Shapes: ``n`` samples of one call, ``D`` neurons of a layer, ``C`` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy import special
from torch import Tensor, nn

from lightning_neurocorr.attribution.gradients import attribute as attribute
from lightning_neurocorr.functional import BOTH, ONLY_MODEL

_ENOUGH = 256  # samples per group that are worth their time in the smallest validation set


@dataclass(frozen=True)
class Attribution:
    """Settings of the *used* column.

    Args:
        max_samples: ``only_model`` samples per validation and process, with as many of ``both``.
        max_share: Both groups together are at most this share of all validation samples, once each
            has 256: a sample costs about two more forwards.
        method: ``"gradient"`` takes the gradient at the activation; ``"path"`` averages it over the
            line from zero to the activation, one layer at a time (Sundararajan et al. 2017): also
            right where the gradient saturates, but ``path_steps`` passes per layer.
        path_steps: Points on that line.
        samples_per_pass: Samples that go through the model at once; bounds the graph's memory.
    """

    max_samples: int = 1024
    max_share: float = 0.15
    method: Literal["gradient", "path"] = "gradient"
    path_steps: int = 16
    samples_per_pass: int = 64

    def __post_init__(self) -> None:
        for name in ("max_samples", "path_steps", "samples_per_pass"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"Expected `{name}` to be at least 1, but got {getattr(self, name)}."
                )
        if not 0 < self.max_share <= 1:
            raise ValueError(f"Expected `max_share` to be in (0, 1], but got {self.max_share}.")
        if self.method not in ("gradient", "path"):
            raise ValueError(
                f"Expected `method` to be 'gradient' or 'path', but got {self.method!r}."
            )

    def limit(self, total: int | None = None) -> int:
        """At most so many ``only_model`` samples in a validation of ``total`` samples."""
        share = self.max_samples if total is None else int(self.max_share * total / 2)
        return min(self.max_samples, max(share, _ENOUGH))

    def keep_rate(self, expected: int | None = None, total: int | None = None) -> float:
        """The share of ``only_model`` samples to take so that about :meth:`limit` are taken.

        Args:
            expected: ``only_model`` samples this process will see: the last validation's count.
            total: All samples it will see; a quarter counts as ``expected`` where that is None.
        """
        if expected is None:
            expected = (total or 0) // 4
        return min(1.0, self.limit(total) / max(expected, 1))


# --- which samples -------------------------------------------------------------------------------


def match_by_class(target: Tensor, outcome: Tensor, draw: Tensor | None = None) -> Tensor:
    """For each ``only_model`` sample a sample of ``both`` with the same class, none used twice.

    Args:
        target: Class ids ``(N,)``.
        outcome: Outcome groups ``(N,)``, as in ``functional.outcome_groups``.
        draw: A number per sample, ``(N,)``, such as a hash of its position; the lowest come first.
            ``None`` takes the order of the batch.

    Returns:
        Indices ``(M,)`` in the order of the ``only_model`` samples, -1 where there is no partner.
    """
    classes, groups = target.tolist(), outcome.tolist()
    order = range(len(groups)) if draw is None else torch.argsort(draw, stable=True).tolist()
    free: dict[int, list[int]] = {}
    for i in reversed(order):
        if groups[i] == BOTH:
            free.setdefault(classes[i], []).append(i)
    partner = {
        i: free[classes[i]].pop() for i in order if groups[i] == ONLY_MODEL and free.get(classes[i])
    }
    rows = [partner.get(i, -1) for i, group in enumerate(groups) if group == ONLY_MODEL]
    return torch.tensor(rows, dtype=torch.long)


def choose_samples(
    target: Tensor, outcome: Tensor, draw: Tensor, rate: float = 1.0, room: int | None = None
) -> tuple[Tensor, Tensor]:
    """The samples of a batch to attribute: ``only_model`` and class-matched ``both``.

    Args:
        target: Class ids ``(N,)``.
        outcome: Outcome groups ``(N,)``.
        draw: Numbers in [0, 1), ``(N,)``, from a hash of the sample's position: the choice depends
            neither on the order of the data nor on a random state.
        rate: Take ``only_model`` samples with a ``draw`` below, see :meth:`Attribution.keep_rate`.
        room: At most so many of them, those with the lowest ``draw``.

    Returns:
        Indices ``(n,)`` and their group ``(n,)``: 0 ``only_model``, 1 matched ``both``.
    """
    target, outcome, draw = target.cpu(), outcome.cpu(), draw.cpu()
    kept = ((outcome == ONLY_MODEL) & (draw < rate)).nonzero().flatten()
    kept = kept[torch.argsort(draw[kept], stable=True)][:room].sort().values
    wanted = torch.where(outcome == BOTH, BOTH, -1)
    wanted[kept] = ONLY_MODEL
    partners = match_by_class(target, wanted, draw)
    rows = torch.cat([kept, partners[partners >= 0]])
    return rows, (torch.arange(len(rows)) >= len(kept)).long()


# --- one validation ------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttributionColumns:
    """The *used* columns of a layer, float64 ``(D,)`` arrays; NaN where undefined.

    Attributes:
        attribution: Mean contribution over ``only_model`` samples.
        low: Lower end of its 95 % interval over samples (Student's t).
        high: Upper end.
        p_value: Two-sided p of a mean of 0.
        contrast: The same mean minus that over class-matched ``both`` samples.
        contrast_low: Lower end of its 95 % interval (Welch 1947).
        contrast_high: Upper end.
        contrast_t: Its t.
        per_fold: ``attribution`` of each fold, ``(2, D)``.
        n: How many ``only_model`` samples were attributed.
        n_shared: How many of ``both``.
    """

    attribution: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p_value: np.ndarray
    contrast: np.ndarray
    contrast_low: np.ndarray
    contrast_high: np.ndarray
    contrast_t: np.ndarray
    per_fold: np.ndarray
    n: int
    n_shared: int


class AttributionSums:
    """Sums of one validation, from which every column follows for any mean of the neurons.

    Args:
        sizes: Neurons ``D`` by layer name; they fix the shapes, the same in every process.
        settings: See :class:`Attribution`.
        device: Where the sums live.
        total: Samples this process will see in the validation, where that is known.

    Attributes:
        problems: One-line reasons by name for the layers without columns.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        settings: Attribution | None = None,
        device: torch.device | str = "cpu",
        total: int | None = None,
    ) -> None:
        self.settings = settings or Attribution()
        self.problems: dict[str, str] = {}
        wide: dict[str, Any] = {"dtype": torch.float64, "device": device}
        # Rows u, v, u^2, uv, v^2; cells are group x fold, whose samples all layers share.
        self._sums = {name: torch.zeros(5, 4, size, **wide) for name, size in sizes.items()}
        self._counts = torch.zeros(4, **wide)
        self._limit, self._taken = self.settings.limit(total), 0

    @property
    def room(self) -> int:
        """How many more ``only_model`` samples this process may take."""
        return max(self._limit - self._taken, 0)

    def update(
        self,
        forward: Callable[[], Tensor],
        layers: Mapping[str, nn.Module],
        target: Tensor,
        rival: Tensor | None,
        group: Tensor,
        fold: Tensor,
    ) -> None:
        """Add samples, see :func:`attribute`.

        Args:
            forward: Runs the model on these ``n`` samples.
            layers: Watched layers by name; those without a size are left out.
            target: Class ids ``(n,)``.
            rival: The baseline's answers ``(n,)``, or None.
            group: 0 for ``only_model``, 1 for matched ``both``, ``(n,)``.
            fold: 0 or 1, ``(n,)``.
        """
        layers = {name: layers[name] for name in self._sums if name in layers}
        method, steps = self.settings.method, self.settings.path_steps
        found = attribute(forward, layers, target, rival, method=method, path_steps=steps)
        cells = nn.functional.one_hot((2 * group + fold).long().cpu(), 4).T.double()
        for name, sums in self._sums.items():
            if name not in found:
                self._drop(
                    name,
                    "it lies outside the module named by `output`, or no gradient of the "
                    "prediction reaches it",
                )
                continue
            u, v = (values.to(sums.device) for values in found[name])
            if u.shape[1] != sums.shape[2]:
                self._drop(name, f"it has {u.shape[1]} neurons, not {sums.shape[2]} as before")
                continue
            where = cells.to(sums.device)
            for row, values in enumerate((u, v, u * u, u * v, v * v)):
                sums[row] += where @ values
        self._counts += cells.sum(1).to(self._counts.device)
        self._taken += int((group == 0).sum())

    def tensors(self) -> list[Tensor]:
        """The live sums, to be added up in place over the processes: same order, same shapes."""
        return [self._counts, *self._sums.values()]

    def restrict(self, names: Iterable[str]) -> None:
        """Keep these layers only, in this order: the same in every process before a sum."""
        self._sums = {name: self._sums[name] for name in names}

    def merge(self, other: AttributionSums) -> None:
        """Add the samples of ``other``, which has the same sizes."""
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            mine += theirs.to(mine.device)
        self.problems = {**other.problems, **self.problems}
        self._taken += other._taken

    def compute(self, means: Mapping[str, Tensor | np.ndarray]) -> dict[str, AttributionColumns]:
        """The columns of the layers in ``means``: mean activation over all samples, ``(D,)``."""
        counts = self._counts.cpu().numpy().reshape(2, 2)
        return {
            name: _columns(sums.cpu().numpy(), counts, np.asarray(means[name], np.float64))
            for name, sums in self._sums.items()
            if name in means
        }

    def _drop(self, name: str, reason: str) -> None:
        """A layer missed once has no columns anywhere: NaN survives the sum over processes."""
        self.problems.setdefault(name, reason)
        self._sums[name].fill_(torch.nan)


@np.errstate(invalid="ignore", divide="ignore")
def _columns(sums: np.ndarray, counts: np.ndarray, mean: np.ndarray) -> AttributionColumns:
    """Columns from sums ``(5, 4, D)``, counts (group, fold) and means ``(D,)``."""
    u, v, uu, uv, vv = sums.reshape(5, 2, 2, -1)
    k, kk = u - mean * v, uu - 2 * mean * uv + mean**2 * vv  # sums of k and k^2, (2, 2, D)
    n = counts.sum(1)[:, None]
    k_mean = _over(k.sum(1), n)
    error = _over(_over(np.maximum(kk.sum(1) - n * k_mean**2, 0), n - 1), n)  # squared, (2, D)
    dof, se = np.maximum(n[0] - 1, 1), np.sqrt(error[0])
    half = special.stdtrit(dof, 0.975) * se
    p_value = np.where(se > 0, 2 * special.stdtr(dof, -np.abs(k_mean[0]) / se), np.nan)
    contrast, both = k_mean[0] - k_mean[1], np.sqrt(error.sum(0))
    dof = error.sum(0) ** 2 / (error**2 / np.maximum(n - 1, 1)).sum(0)
    spread = special.stdtrit(dof, 0.975) * both
    return AttributionColumns(
        attribution=k_mean[0],
        low=k_mean[0] - half,
        high=k_mean[0] + half,
        p_value=p_value,
        contrast=contrast,
        contrast_low=contrast - spread,
        contrast_high=contrast + spread,
        contrast_t=np.where(both > 0, contrast / both, np.nan),
        per_fold=_over(k[0], counts[0][:, None]),
        n=int(n[0, 0]),
        n_shared=int(n[1, 0]),
    )


def _over(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """``total / count``, NaN where nothing was counted."""
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
