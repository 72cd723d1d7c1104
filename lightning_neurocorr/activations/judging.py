"""What a validation step compares its predictions with: then that is the label it judges by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_neurocorr.activations import layouts as L
from lightning_neurocorr.activations import operations as O

_THRESHOLDS = {"ge", "gt", "le", "lt"}
_WHOLE_NUMBERS = {"floor_divide"}  # number by number, though PyTorch does not say so
_ORDERING = {"sort", "topk"}
_BINARY_LOSSES = {"binary_cross_entropy", "binary_cross_entropy_with_logits"}


@dataclass(frozen=True, eq=False)
class Comparison:
    """One comparison of predictions with labels.

    Attributes:
        label: The class of each sample ``(N,)`` that predictions were compared with.
        sources: What the module returned of which the predictions were made.
        chosen: The class of each sample ``(N,)`` that was predicted; None of a loss.
        scores: What a loss of classes took as scores, ``(N, C)``; None of others.
    """

    label: Tensor
    sources: tuple[Tensor, ...]
    chosen: Tensor | None = None
    scores: Tensor | None = None


@dataclass(frozen=True, eq=False)
class SetsMet:
    """A loss that compared scores with sets of labels.

    Attributes:
        strange: Samples with no label, or several.
        sources: What the module returned of which the scores were made.
    """

    strange: int
    sources: tuple[Tensor, ...]


class Judging:
    """Follows what a module returned, and classes chosen by it, to where labels are.

    Attributes:
        comparisons: Those of all samples of a batch.
        returned: What the module returned.
        parts: Whether samples were left out before.
        sets: Where a loss compared scores with sets of labels.
    """

    def __init__(self) -> None:
        self.comparisons: list[Comparison] = []
        self.returned: list[Tensor] = []
        self.parts = False
        self.sets: list[SetsMet] = []
        self._sources: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._chosen: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._summaries: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def begin(self, returned: Tensor) -> None:
        """Follow a tensor that the module returned."""
        self.returned.append(returned.detach())  # without the graph that it holds
        self._sources[returned] = (self.returned[-1],)

    def choose(self, classes: Tensor) -> None:
        """Follow the class of each sample, ``(N,)``; of ``(N, k)`` the first, or their sum."""
        self._chosen[classes] = True

    def is_made_of_it(self, value: Tensor) -> bool:
        """Whether these numbers, or classes, were made of what the module returned."""
        return value in self._sources

    def operation(
        self,
        name: str,
        args: Sequence[Any],
        pointwise: bool,
        outs: Sequence[Any],
        answers: WeakTensorKeyDictionary,
    ) -> None:
        """An operation was done.

        Args:
            name: Without overload and trailing underscore.
            args: Its positional arguments.
            pointwise: Whether it goes number by number.
            outs: What it returned.
            answers: Layouts of the prediction and of the scores that were made of it.
        """
        tensors = list(_tensors(args))
        known = [self._sources[x] for x in tensors if x in self._sources]
        if not known:
            return
        given: Any = args[0]
        if isinstance(given, Tensor) and given in answers:
            self._scores(name, args, outs, answers[given])
        if name in ("eq", "ne", "add"):
            self._met(name, args, answers)
        if name in O.REDUCTIONS | _ORDERING or any(x in self._summaries for x in tensors):
            # How sure the model is, say: to be above a limit is no class.
            self._summaries.update({x: True for x in outs if isinstance(x, Tensor)})
        sources = tuple({id(x): x for part in known for x in part}.values())
        for out in outs:
            if isinstance(out, Tensor) and out not in self._sources:
                self._sources[out] = sources
        self._go_on(name, args, pointwise, outs, tensors)

    def inside(self, name: str, args: Sequence[Any]) -> None:
        """The module computes a loss by itself: of what it returns, as far as can be told."""
        if name == "nll_loss_forward" and args[1].ndim == 1:
            self.comparisons.append(Comparison(args[1].clone(), ()))

    def elsewhere(self, name: str, args: Sequence[Any]) -> None:
        """A loss of scores that the module did not return: it was not called."""
        if name == "nll_loss_forward" and args[0].ndim == 2:
            self.comparisons.append(Comparison(args[1].clone(), (), args[0].argmax(1)))

    def _scores(
        self, name: str, args: Sequence[Any], outs: Sequence[Any], layout: L.Layout
    ) -> None:
        """Something was done with scores: a loss, a threshold, a choice of samples."""
        scores = args[0]
        if name == "nll_loss_forward":
            self._compare(args[1], scores, scores=scores)
        elif name in _BINARY_LOSSES:
            self._compare(_of_binary_loss(args[1]), scores)
            if strange := _not_one_hot(args[1], scores):
                self.sets.append(SetsMet(strange, self._sources[scores]))
        elif name == "index":
            self.parts |= _takes_part(args[1], len(scores))
        elif name in _THRESHOLDS and _is_number(args[1]):
            self._pass(scores, outs[0], layout)

    def _pass(self, scores: Tensor, passed: Tensor, layout: L.Layout) -> None:
        """Scores passed a threshold."""
        if L.find(layout, L.SAMPLES) == 0 and scores not in self._summaries:
            self.choose(passed)

    def _met(self, name: str, args: Sequence[Any], answers: WeakTensorKeyDictionary) -> None:
        """Classes met other whole numbers."""
        for one, other in (args[:2], args[1::-1]):
            if not (isinstance(one, Tensor) and isinstance(other, Tensor)) or other in self._chosen:
                continue
            if one not in self._chosen and not (one in answers and _rounded(one, answers[one])):
                continue
            if name == "add":  # the cells of a table of labels by classes
                classes = max([2, *(part.shape[1] for part in answers if part.ndim == 2)])
                whole = not other.is_floating_point() and bool((other % classes == 0).all())
                other = other // classes if whole else None
            self._compare(other, one, one)

    def _compare(
        self,
        label: Any,
        made: Tensor,
        chosen: Tensor | None = None,
        scores: Tensor | None = None,
    ) -> None:
        if isinstance(label, Tensor) and label.numel() == len(made):
            if chosen is not None and chosen.numel() != label.numel():
                chosen = None  # the best five of each sample, say
            if chosen is not None and _are_signs(label, chosen):
                label, chosen = label > 0, chosen > 0
            kept = None if chosen is None else chosen.flatten().clone()
            taken = None if scores is None else scores.detach()
            found = Comparison(label.flatten().clone(), self._sources[made], kept, taken)
            self.comparisons.append(found)

    def _go_on(
        self,
        name: str,
        args: Sequence[Any],
        pointwise: bool,
        outs: Sequence[Any],
        tensors: Sequence[Tensor],
    ) -> None:
        """Classes that are reshaped, or computed with, still are some."""
        kept = [x for x in tensors if x in self._chosen]
        known = pointwise or name in O.RESHAPES | _WHOLE_NUMBERS or name == "index"
        # The most likely of several classes; how many thresholds were passed.
        known |= name == "sum" or (name == "select" and tuple(args[1:]) == (1, 0))
        if not kept or name in ("eq", "ne") or not known:
            return
        if name != "index" and any(x not in self._chosen and x.numel() > 1 for x in tensors):
            return
        for out in outs:
            if isinstance(out, Tensor) and out.numel() in (len(kept[0]), kept[0].numel()):
                self._chosen[out] = True


def _tensors(args: Sequence[Any]) -> Iterator[Tensor]:
    for value in args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _is_column(scores: Tensor, layout: L.Layout) -> bool:
    """Whether there is one number for each sample."""
    return L.find(layout, L.SAMPLES) == 0 and scores.numel() == len(scores)


def _is_number(value: Any) -> bool:
    return not isinstance(value, Tensor) or value.numel() == 1


def _rounded(scores: Tensor, layout: L.Layout) -> bool:
    return _is_column(scores, layout) and bool((scores == scores.round()).all())


def _are_signs(label: Tensor, chosen: Tensor) -> bool:
    """Whether two classes are called -1 and 1 on both sides."""
    both = torch.cat([part.flatten().to(label.device, torch.float32) for part in (label, chosen)])
    return bool((both.abs() == 1).all() & (both < 0).any())


def _takes_part(indices: Sequence[Any], count: int) -> bool:
    """Whether rows are left out: by a mask, or by fewer numbers."""
    rows = indices[0]
    if not isinstance(rows, Tensor):
        return False
    return not bool(rows.all()) if rows.dtype == torch.bool else len(rows) < count


def _of_binary_loss(target: Tensor) -> Tensor | None:
    """Labels of one column, or the place of the one in one-hot rows; None of anything else."""
    if bool(((target != 0) & (target != 1)).any()):
        return None
    if target.numel() == len(target):
        return target
    one_hot = target.ndim == 2 and bool((target.sum(1) == 1).all())
    return target.argmax(1) if one_hot else None


def _not_one_hot(target: Tensor, scores: Tensor) -> int:
    """In how many rows of zeros and ones there is no one, or several."""
    rows = target.ndim == 2 and target.shape == scores.shape and target.shape[1] > 1
    if not rows or bool(((target != 0) & (target != 1)).any()):
        return 0
    return int((target.sum(1) != 1).sum())
