"""Which samples to attribute: ``only_model``, and ``both`` of the same classes.

A stream of batches is sampled by each sample's own hash, class and outcome, at rates known when the
validation begins: the choice depends neither on the batches nor on who else is in this process.

Shapes: ``N`` samples of a batch, ``C`` classes.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr.attribution.settings import Attribution
from lightning_neurocorr.functional import BOTH, ONLY_MODEL

_STEP = 0.8  # how much lower the rates become at once


class SampleChoice:
    """Chooses samples for attribution while they pass.

    ``only_model`` samples are taken at one rate. Those of ``both`` are taken at a rate per class,
    as many as of ``only_model`` by what ``seen`` says. Without ``seen`` all are taken at first.

    Where more samples of a group come than there is room for, its rates become lower, as if they
    had been so from the beginning: a sample counts while its score is below the ``scale``. At the
    end those with the lowest scores are wanted, over all processes.

    Args:
        settings: See :class:`Attribution`.
        total: Samples of all processes, where only a share of them is wanted.
        seen: Samples per class and outcome group in an earlier validation of all processes,
            ``(C, 4)``.
        processes: How many share the validation set.

    Attributes:
        scale: What is left of the rates of each group, 1 in the beginning. It depends on
            which samples there are, and neither on their order nor on the batches.
        wanted: Samples of each group, over all processes, ``(2,)``.
        room: Samples of each group that this process keeps: its part of twice the number.
    """

    def __init__(
        self,
        settings: Attribution,
        total: int | None = None,
        seen: Tensor | None = None,
        processes: int = 1,
    ) -> None:
        limit = settings.limit(total)
        self.rate, self.shared_rates = 1.0, torch.ones(1, dtype=torch.float64, device="cpu")
        if seen is not None:
            self.rate = min(1.0, limit / max(float(seen[:, ONLY_MODEL].sum()), 1.0))
            self.shared_rates = (odds(seen) * self.rate).clamp(max=1)
        # Of unknown classes there have to be more, so that most of the others find a partner.
        self._more = 2 if seen is None else 1
        self.wanted = (limit, self._more * limit)
        self.room = tuple(-(-2 * wanted // processes) for wanted in self.wanted)
        self.scale = [1.0, 1.0]

    def __call__(
        self, target: Tensor, outcome: Tensor, draw: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The samples of a batch to attribute.

        Args:
            target: Class ids ``(N,)``.
            outcome: Outcome groups ``(N,)``, as in ``functional.outcome_groups``.
            draw: Numbers in [0, 1), ``(N,)``, from a hash of the sample's position.

        Returns:
            Indices ``(n,)``, their group ``(n,)``: 0 ``only_model``, 1 ``both``; and their score
            ``(n,)`` float64: the draw over the rate, below ``scale``.
        """
        # In NumPy, which does small things faster: this is done in every batch.
        known, said = target.cpu().numpy(), outcome.cpu().numpy()
        shared_rates = self.shared_rates.numpy()
        wins = said == ONLY_MODEL
        rate = np.where(wins, self.rate, shared_rates[known.clip(0, len(shared_rates) - 1)])
        score = draw.cpu().double().numpy() / rate
        below = score < np.where(wins, *self.scale)
        rows = ((wins | (said == BOTH)) & below).nonzero()[0]
        group = (~wins[rows]).astype(np.int64)
        return torch.from_numpy(rows), torch.from_numpy(group), torch.from_numpy(score[rows])

    def narrow(self, limit: int) -> None:
        """Want at most ``limit`` ``only_model`` samples: the validation was smaller than it said.

        Those with the lowest scores stay, so these are the ones of a choice that knew it.
        """
        limit = min(limit, self.wanted[0])
        self.wanted = (limit, self._more * limit)

    def lower(self, group: int) -> None:
        """Take fewer samples of a group from the beginning on."""
        self.scale[group] *= _STEP


def odds(seen: Tensor) -> Tensor:
    """How many ``only_model`` samples there are for one of ``both``, by class, ``(C + 1,)``.

    The last entry is that of all classes together, for labels beyond the table. Half a sample is
    added to the one and one to the other, so that rare classes stay possible.
    """
    counts = torch.cat([seen, seen.sum(0, keepdim=True)]).double().cpu()
    return (counts[:, ONLY_MODEL] + 0.5) / (counts[:, BOTH] + 1)


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
    return torch.tensor(rows, dtype=torch.long, device="cpu")


def balanced(target: Tensor, rival: Tensor) -> Tensor:
    """Weights of samples with which "a, not b" counts as much as "b, not a", ``(n,)`` float64.

    With n and m samples of the two kinds their weights are m / (n + m) and n / (n + m). They are 0
    where the other kind is missing, and without a rival.

    Args:
        target: Class ids ``(n,)``.
        rival: The class that speaks against the target, ``(n,)``; negative where there is none.
    """
    kinds = list(zip(target.tolist(), rival.tolist(), strict=True))
    count = Counter(kinds)
    weights = [count[b, a] / (count[a, b] + count[b, a]) if 0 <= b != a else 0.0 for a, b in kinds]
    return torch.tensor(weights, dtype=torch.float64, device="cpu")


def choose_samples(
    target: Tensor, outcome: Tensor, draw: Tensor, room: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """``only_model`` samples of a whole validation, with a partner of ``both`` for each.

    The rival of a sample is the baseline's answer on its *giver*: an ``only_model`` sample gives
    its own, its partner gets the same. Were the baseline right and wrong at random within a class,
    the two members of a pair could change places.

    Args:
        target: Class ids ``(N,)``.
        outcome: Outcome groups ``(N,)``.
        draw: Numbers in [0, 1), ``(N,)``, from a hash of the sample's position.
        room: At most so many ``only_model`` samples, those with the lowest ``draw``.

    Returns:
        Indices ``(n,)``, their group ``(n,)``: 0 ``only_model``, 1 matched ``both``; and the index
        of the giver ``(n,)``.
    """
    target, outcome, draw = target.cpu(), outcome.cpu(), draw.cpu()
    kept = (outcome == ONLY_MODEL).nonzero().flatten()
    kept = kept[torch.argsort(draw[kept], stable=True)][:room].sort().values
    wanted = torch.where(outcome == BOTH, BOTH, -1)
    wanted[kept] = ONLY_MODEL
    partners = match_by_class(target, wanted, draw)
    rows = torch.cat([kept, partners[partners >= 0]])
    givers = torch.cat([kept, kept[partners >= 0]])
    return rows, (torch.arange(len(rows), device="cpu") >= len(kept)).long(), givers
