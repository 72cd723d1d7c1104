"""Which samples to attribute: ``only_model``, and ``both`` of the same classes.

A stream of batches is sampled by each sample's own hash, class and outcome, at rates known when the
validation begins: the choice depends neither on the batches nor on who else is in this process.

Shapes: ``N`` samples of a batch, ``C`` classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_neurocorr.attribution.settings import Attribution
from lightning_neurocorr.functional import BOTH, ONLY_MODEL


class SampleChoice:
    """Chooses samples for attribution while they pass.

    ``only_model`` samples are taken at one rate. Those of ``both`` are taken at a rate per class,
    half as many as of ``only_model`` by what ``seen`` says; :class:`AttributionSums` evens out what
    is left of the difference. Without ``seen`` a quarter of all samples is expected to be
    ``only_model``, half to be ``both``.

    Where a group turns out more than twice as large as expected, a process stops taking it after
    its part of twice the expected number, in the order in which samples arrive. Only then does the
    choice depend on the number of processes, and on the order.

    Args:
        settings: See :class:`Attribution`.
        total: Samples of all processes, where that is known.
        seen: Samples per class and outcome group in an earlier validation of all processes,
            ``(C, 4)``.
        processes: How many share the validation set.
    """

    def __init__(
        self,
        settings: Attribution,
        total: int | None = None,
        seen: Tensor | None = None,
        processes: int = 1,
    ) -> None:
        limit = settings.limit(total)
        expected = (total or 0) / 4 if seen is None else float(seen[:, ONLY_MODEL].sum())
        self.rate = min(1.0, limit / max(expected, 1.0))
        if seen is None:
            self.shared_rates = torch.tensor([min(1.0, limit / max(total or 0, 1))])
        else:
            self.shared_rates = (odds(seen) * self.rate / 2).clamp(max=1)
        self.room = {ONLY_MODEL: -(-2 * limit // processes), BOTH: -(-limit // processes)}

    def __call__(self, target: Tensor, outcome: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
        """The samples of a batch to attribute.

        Args:
            target: Class ids ``(N,)``.
            outcome: Outcome groups ``(N,)``, as in ``functional.outcome_groups``.
            draw: Numbers in [0, 1), ``(N,)``, from a hash of the sample's position.

        Returns:
            Indices ``(n,)`` and their group ``(n,)``: 0 ``only_model``, 1 ``both``.
        """
        target, outcome, draw = target.cpu(), outcome.cpu(), draw.cpu()
        shared_rates = self.shared_rates[target.clamp(0, len(self.shared_rates) - 1)]
        parts = []
        for group, rates in ((ONLY_MODEL, self.rate), (BOTH, shared_rates)):
            rows = ((outcome == group) & (draw < rates)).nonzero().flatten()[: self.room[group]]
            self.room[group] -= len(rows)
            parts.append(rows)
        rows = torch.cat(parts)
        return rows, (torch.arange(len(rows)) >= len(parts[0])).long()


def odds(seen: Tensor) -> Tensor:
    """How many ``only_model`` samples there are for one of ``both``, by class, ``(C + 1,)``.

    The last entry is that of all classes together, for labels beyond the table. Half a sample is
    added to the one and one to the other, so that rare classes stay possible.
    """
    counts = torch.cat([seen, seen.sum(0, keepdim=True)]).double().cpu()
    return (counts[:, ONLY_MODEL] + 0.5) / (counts[:, BOTH] + 1)


def pool_classes(seen: Tensor, strata: int) -> Tensor:
    """A stratum per class, ``(C + 1,)``: classes with like odds, equal shares of ``only_model``.

    Subclassification on the propensity score (Rosenbaum and Rubin 1984), which here is a class's
    odds of a win; the last entry is for labels beyond the table.
    """
    order = odds(seen)[:-1].argsort(stable=True)
    wins = seen[:, ONLY_MODEL].double().cpu()[order] + 0.5
    share = (wins.cumsum(0) - wins / 2) / wins.sum()
    found = torch.zeros(len(seen) + 1, dtype=torch.long)
    found[order] = (share * strata).long().clamp(max=strata - 1)
    return found


def match_by_class(target: Tensor, outcome: Tensor, draw: Tensor | None = None) -> Tensor:
    """For each ``only_model`` sample a sample of ``both`` with the same class, none used twice.

    Args:
        target: Class ids ``(N,)``.
        outcome: Outcome groups ``(N,)``, as in ``functional.outcome_groups``.
        draw: A number per sample, ``(N,)``, such as a hash of its position; the lowest come first.
            ``None`` takes the given order.

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
    target: Tensor, outcome: Tensor, draw: Tensor, room: int | None = None
) -> tuple[Tensor, Tensor]:
    """``only_model`` samples of a whole validation, with a partner of ``both`` for each.

    Args:
        target: Class ids ``(N,)``.
        outcome: Outcome groups ``(N,)``.
        draw: Numbers in [0, 1), ``(N,)``, from a hash of the sample's position.
        room: At most so many ``only_model`` samples, those with the lowest ``draw``.

    Returns:
        Indices ``(n,)`` and their group ``(n,)``: 0 ``only_model``, 1 matched ``both``.
    """
    target, outcome, draw = target.cpu(), outcome.cpu(), draw.cpu()
    kept = (outcome == ONLY_MODEL).nonzero().flatten()
    kept = kept[torch.argsort(draw[kept], stable=True)][:room].sort().values
    wanted = torch.where(outcome == BOTH, BOTH, -1)
    wanted[kept] = ONLY_MODEL
    partners = match_by_class(target, wanted, draw)
    rows = torch.cat([kept, partners[partners >= 0]])
    return rows, (torch.arange(len(rows)) >= len(kept)).long()
