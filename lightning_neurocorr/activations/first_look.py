"""Record layers where their neurons are read, which the first batch shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from torch import Tensor, nn
from typing_extensions import Self

from lightning_neurocorr.activations.choosing import Layers, choose_layers
from lightning_neurocorr.activations.finding import SiteFinder
from lightning_neurocorr.activations.judging import Judging
from lightning_neurocorr.activations.outputs import Call, OutputRecorder
from lightning_neurocorr.activations.pooling import Pooling
from lightning_neurocorr.activations.reading import At, UnitAxis
from lightning_neurocorr.activations.recording import ActivationRecorder
from lightning_neurocorr.activations.sites import Place, Site, carrier, layer_of
from lightning_neurocorr.activations.token_calls import TokenMasks

_MOVED = (
    "its rows are not the samples of the batch in their order: on the way they are put in another "
    "one. Sort in `collate_fn` instead (for packed sequences there is enforce_sorted=False)"
)

_UNDECIDED = 64  # batches; a model that sorts gets them sorted already, where there is no other


@dataclass(frozen=True, eq=False)
class SitesFound:
    """What a first batch has shown.

    Attributes:
        places: Where each layer is read.
        unreadable: Why some are not.
        notes: What a reader of the report must know about it.
        proven: Whether it was tried out that rows are samples.
        undecided: In how many more batches it is looked for an order of rows, because one that the
            model makes has been that of the batch so far.
    """

    places: Mapping[str, Place]
    unreadable: Mapping[str, str]
    notes: tuple[str, ...] = ()
    proven: bool = False
    undecided: int = 0

    @cached_property
    def names(self) -> dict[str, str]:
        """Where each layer is read, in words."""
        return {
            name: place.name if isinstance(place, Site) else name
            for name, place in self.places.items()
        }

    def goes_on_from(self, earlier: SitesFound) -> bool:
        """Whether an earlier look has found the same, so that what was tried out then holds."""
        return (
            list(self.places) == list(earlier.places)
            and all(_is_same(place, earlier.places[name]) for name, place in self.places.items())
            and self.notes == earlier.notes
            and self.unreadable.items() <= earlier.unreadable.items()
        )

    def are_of(self, model: nn.Module, layers: Mapping[str, nn.Module]) -> bool:
        """Whether these are the places of these very layers, in the model as it is now."""
        modules = set(model.modules())
        return list(self.places) == list(layers) and all(
            layer_of(place) is layers[name] and carrier(place) in modules
            for name, place in self.places.items()
        )


class SiteRecorder(ActivationRecorder):
    """Finds where layers are read while the first batch passes, and listens there from then on.

    Args:
        model: The model.
        layers: Watched layers by name.
        pooling: See :func:`pool`.
        at: See :class:`SiteFinder`.
        unit_axis: See :class:`SiteFinder`.
        found: What an earlier validation has shown of these layers; else it is looked for again.
        again: Look in any case. What was tried out on ``found`` holds where the same is found.
        strict: See :class:`ActivationRecorder`.
        masks: See :class:`ActivationRecorder`.
        within: See :class:`ActivationRecorder`.

    Attributes:
        found: What the first batch has shown; None until then.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
        pooling: Pooling = "mean",
        *,
        at: At = "activation",
        unit_axis: UnitAxis = None,
        found: SitesFound | None = None,
        again: bool = False,
        strict: bool = False,
        masks: TokenMasks | None = None,
        within: OutputRecorder | None = None,
    ) -> None:
        earlier = found if found is not None and found.are_of(model, layers) else None
        self.found = None if again else earlier
        self._earlier = earlier
        super().__init__(self._readable(), pooling, strict=strict, masks=masks, within=within)
        self._watched = dict(layers)
        self._finder: SiteFinder | None = None
        self._rows = partial(SiteFinder, model, layers, at, unit_axis, pooling=pooling)
        self._later: SiteFinder | None = None  # looks for an order of rows in this batch
        if self.found is None:
            finder = SiteFinder(model, layers, at, unit_axis, self.hear, pooling=pooling)
            if within is not None:
                finder.closed.add(within.module)
                finder.trace.onward.module = within.module
            self._finder = finder

    @property
    def _looking(self) -> SiteFinder | None:
        """What looks at this batch; None where everything is found."""
        return self._finder if self.found is None else None

    @property
    def places(self) -> Mapping[str, Place]:
        """Where each layer is read that can be; until that is known, the layers themselves."""
        return self._watched if self.found is None else self._readable()

    @property
    def onward(self) -> str | None:
        """Into which module the model went on with its prediction, ``""`` into none; None if not.

        Only where this batch was looked at.
        """
        looking = self._looking
        into = None if looking is None else looking.trace.onward.into
        return None if looking is None or into is None else looking.name_of(into)

    @property
    def other_class(self) -> bool:
        """Whether the class was chosen by other numbers than those of the prediction.

        Only where this batch was looked at.
        """
        looking = self._looking
        return looking is not None and looking.trace.onward.other_class

    @property
    def judging(self) -> Judging | None:
        """What the model compared its predictions with. Only where this batch was looked at."""
        looking = self._looking
        return None if looking is None else looking.trace.onward.judging

    @property
    def chosen(self) -> Mapping[str, Place]:
        """Where each layer would be read, those too that cannot be."""
        return self._watched if self.found is None else self.found.places

    def __enter__(self) -> Self:
        super().__enter__()
        if (looking := self._looking) is not None:
            looking.trace.open()
        return self

    def close(self) -> None:
        """Remove every hook; closing twice is harmless."""
        self.pause()
        super().close()

    def begin(self, batch: Any) -> None:
        """A batch is about to come: look, if that is still to be done."""
        if (looking := self._looking) is not None:
            looking.restart(batch)
            looking.trace.open()
        elif self.found is not None and self.found.undecided:
            self._later = self._rows()
            self._later.restart(batch)
            self._later.trace.open()

    @property
    def looks(self) -> bool:
        """Whether the forward of this batch is looked at."""
        return self._looking is not None or self._later is not None

    def look_anew(self, batch: Any) -> None:
        """Forget what was seen of this batch: its forward comes only now."""
        for finder in (self._looking, self._later):
            if finder is not None:  # it stays open: others of ours may have opened theirs since
                finder.restart(batch)

    def pause(self) -> None:
        """A batch has passed: nothing is looked at until the next one.

        It has to come where the forward began, not inside other modes of PyTorch: those put back
        how operations were dispatched when they began.
        """
        for finder in (self._finder, self._later):
            if finder is not None:
                finder.trace.close()

    def take(
        self, num_samples: int | None = None, call: Call | None = None
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """See :meth:`ActivationRecorder.take`."""
        looking = self._looking
        if looking is not None and looking.heard:
            looking.trace.close()
            places, heard, unreadable = looking.found()
            if self._within is not None:  # else nothing is said about samples
                moved = dict.fromkeys(looking.trace.reordered, _MOVED)
                unreadable = {**moved, **unreadable}
            undecided = _UNDECIDED if looking.trace.left_in_order else 0
            notes = tuple(looking.notes())
            self.found = self._tried(SitesFound(places, unreadable, notes, undecided=undecided))
            self.move_to(self._readable(), heard)
        taken, problems = super().take(num_samples, call)
        if self.found is not None and self._later is not None:
            self.found = self._looked_later(self.found, self._later)
        unreadable = {} if self.found is None else self.found.unreadable
        taken = {name: values for name, values in taken.items() if name not in unreadable}
        return taken, {**problems, **unreadable, **self.refused}

    def _tried(self, found: SitesFound) -> SitesFound:
        """With what was tried out in an earlier validation."""
        earlier = self._earlier
        if earlier is None or not earlier.proven or not found.goes_on_from(earlier):
            return found
        return replace(found, unreadable=earlier.unreadable, proven=True)

    def _looked_later(self, found: SitesFound, later: SiteFinder) -> SitesFound:
        """With what a later batch has shown of the order of rows."""
        self._later = None
        moved = dict.fromkeys(later.trace.reordered, _MOVED)
        left = found.undecided - 1 if later.trace.left_in_order else 0
        return replace(found, unreadable={**moved, **found.unreadable}, undecided=left)

    @property
    def proven(self) -> bool:
        """Whether it was tried out that the rows of layers are the samples."""
        return self.found is not None and self.found.proven

    def prove(self, strange: Mapping[str, str]) -> None:
        """Remember that it was tried out, and why some layers have other rows."""
        if self.found is not None:
            unreadable = {**self.found.unreadable, **strange}
            self.found = replace(self.found, unreadable=unreadable, proven=True)

    def _readable(self) -> dict[str, Place]:
        if self.found is None:
            return {}
        places = self.found.places.items()
        return {name: place for name, place in places if name not in self.found.unreadable}


def _is_same(one: Place, other: Place) -> bool:
    if isinstance(one, Site) and isinstance(other, Site):
        return vars(one) == vars(other)
    return one is other


def record(model: nn.Module, layers: Layers = None, pooling: Pooling = "mean") -> SiteRecorder:
    """Record what layers return in a ``with``, without Lightning.

    Which axis is the unit is followed through the model in the first forward. Layers are read raw,
    as ``silence(model, ...)`` silences them. To read them where a report does, listen at the places
    behind norm and activation function: ``ActivationRecorder(find_sites(...))``.

    Args:
        model: Any module.
        layers: A name, a glob, a list of these, a predicate ``(name, module)``, or None for every
            convolution and linear layer.
        pooling: As in [`compare`][lightning_neurocorr.comparison.compare].

    Raises:
        ValueError: If a layer is unknown.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        >>> with record(model) as recorder:
        ...     _ = model(torch.zeros(5, 3))
        ...     activations, _ = recorder.take()
        >>> activations["0"].shape
        torch.Size([5, 2])
    """
    chosen = choose_layers(model, layers)
    return SiteRecorder(model, chosen, pooling, at="raw", masks=TokenMasks(model))
