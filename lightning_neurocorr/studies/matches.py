"""Which neurons are in another network too, and which are new: streamed cross-correlation."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self

from lightning_neurocorr.activations import Layers, layer_names
from lightning_neurocorr.baselines import (
    CachedBaseline,
    CheckpointBaseline,
    ModuleBaseline,
    Networked,
    SnapshotBaseline,
)
from lightning_neurocorr.functional.devices import sent
from lightning_neurocorr.functional.matching import MOST_BYTES, CrossMoments, Matched, match
from lightning_neurocorr.isolation.precision import exact_arithmetic
from lightning_neurocorr.report import NeuronReport
from lightning_neurocorr.report.declared import Column
from lightning_neurocorr.report.finding import Finding
from lightning_neurocorr.report.finding_table import Table
from lightning_neurocorr.studies.beside import Beside
from lightning_neurocorr.studies.heard import Heard, Start
from lightning_neurocorr.studies.levelled import constant_of
from lightning_neurocorr.studies.look import Look
from lightning_neurocorr.studies.protocol import Listener, Study
from lightning_neurocorr.studies.refused import RefusedError
from lightning_neurocorr.studies.store import DRAWN, of_control, room
from lightning_neurocorr.validation.options import Options

# An untrained copy takes as much memory again; for more pairs it has to be asked for.
_FREE_PAIRS = 25_000_000

COLUMNS = (
    Column("layer", "The layer.", format="text"),
    Column("unit", "The neuron's index in its layer.", format="step"),
    Column("other_layer", "The layer of the other network with the best match.", format="text"),
    Column("other_unit", "The neuron there; NaN where none has an r.", format="step"),
    Column(
        "r",
        "Pearson's r with the best match, over all samples.",
        format="signed",
        null="`untrained`",
    ),
    Column("mutual", "Whether it is also the best match of its best match.", format="yes_no"),
    Column("novelty", "1 - r: near 0 for a neuron that the other network has too."),
    Column("untrained", "r of the best match in an untrained copy of the model.", format="signed"),
    Column("given_layer", "Layer of its partner where each is given away once.", format="text"),
    Column("given_unit", "The neuron there; NaN where there is none left.", format="step"),
)


class Snapshot(SnapshotBaseline):
    """The model of an earlier validation of this run, as the other network of `Matches`.

    Args:
        epoch: The first validation at or after this epoch of training is kept.
    """


@dataclass(frozen=True, eq=False)
class Matches(Study):
    """For every neuron the neuron of another network that says the same, and how new it is.

    Args:
        other: The other network: a module, a checkpoint file of the same class, a baseline that is
            a network, or ``Snapshot(epoch)``. None is the callback's own baseline.
        layers: Which of its layers: as ``layers`` of the callback. None takes those with the names
            that are watched, where it has them all.
        untrained: Whether an untrained copy of the model is a control, on a fifth of the samples
            (500 to 4,000). None: where there are at most 25 million pairs of neurons.
        name: The key in ``report.studies``.
        every_n_validations: Also after validations n, 2n and so on of a fit.
        time_budget_s: Seconds it may take.

    Raises:
        TypeError: If ``other`` is no network.
        FileNotFoundError: If it is a file that is not there.
    """

    other: str | Path | Callable[[Any], Any] | None = None
    layers: Layers = None
    untrained: bool | None = None
    name: str = "matches"
    every_n_validations: int | None = None
    time_budget_s: float | None = 600.0
    _network: Any = field(default=None, init=False, repr=False)

    title = "Matches"
    about = (
        "Which neuron of another network says the same as each neuron, over all samples, and how "
        "new each neuron is beside that network. An untrained copy of the model is the control."
    )

    def __post_init__(self) -> None:
        other = self.other
        if isinstance(other, (str, Path)):
            if not Path(other).expanduser().is_file():
                raise FileNotFoundError(
                    f"Expected `other` of Matches to be a checkpoint file, but got {str(other)!r}."
                )
            return
        if isinstance(other, nn.Module):
            other = ModuleBaseline(other)
        if other is not None and (isinstance(other, type) or not isinstance(other, Networked)):
            raise TypeError(
                "Expected `other` of Matches to be a module, a checkpoint file, a baseline that is "
                f"a network, or Snapshot(epoch), but got {other!r:.200}."
            )
        object.__setattr__(self, "_network", other)

    @property
    def asks(self) -> tuple[Any, ...]:
        """The other network, where it is not the baseline."""
        return () if self._network is None else (self._network,)

    def check(self, options: Options) -> None:
        """The baseline has to be a network where nothing else is named."""
        if self.other is None and not isinstance(_plain(options.baseline), Networked):
            raise ValueError(
                "Expected a network to compare with for the study Matches(), but the baseline "
                f"{options.baseline!r:.200} is none. Name one: Matches(other=...), a module, a "
                "checkpoint file, or Snapshot(epoch)."
            )

    def listen(self, start: Start) -> Listener | None:
        """Hear the other network on every batch."""
        other = self._network if self.other is not None else _plain(start.options.baseline)
        if isinstance(self.other, (str, Path)):
            other = CheckpointBaseline(self.other, type(start.model)).to(start.device)
        if getattr(other, "ready", True) is False:
            if start.rehearsal:
                return None
            raise RefusedError(
                f"{other!r} is not there yet: it is taken at the first validation at or after its "
                "epoch."
            )
        network = other.network()
        layers = _layers_of(network, self.layers, start.layers)
        options = start.options
        beside = Beside(network, other, layers, options.pooling)
        asked = other is _plain(options.baseline)
        itself = getattr(other, "just_taken", False)
        return _OtherNetwork(repr(other), beside, asked=asked, itself=itself)

    def find(self, look: Look) -> Finding:
        """A row for each neuron."""
        told: _OtherNetwork | None = look.heard
        if told is None or told.sums is None:
            raise RefusedError("The other network answered no batch.")
        told.level(look.report)
        found = match(_correlations(told.sums))
        told.sums, notes = None, list[str]()  # as large as what comes now
        control = self._control(look, told, notes)
        table = Table(
            "neuron",
            COLUMNS,
            _columns(told, found, control),
            title="The best match of each neuron in the other network",
        )
        live = np.isfinite(found.r)
        middle = float(np.median(found.r[live])) if live.any() else float("nan")
        beside = "" if control is None else f" In an untrained copy it is {_median(control.r)}."
        return Finding(
            self.title,
            self.about,
            headline=(
                f"{told.named} was taken at this validation: the model is compared with itself."
                if told.itself
                else f"Of {len(live):,} neurons {int(found.mutual.sum()):,} and their best match "
                f"in {told.named} choose each other; the median r of the best match is "
                f"{middle:.2f}.{beside}"
            ),
            tables=(table,),
            notes=tuple(notes),
            numbers={"matches_median_r": middle, "matches_mutual": float(found.mutual.sum())},
            labels={
                "matches_median_r": "median r of the best match",
                "matches_mutual": "are the best match of each other",
            },
        )

    def _control(self, look: Look, told: "_OtherNetwork", notes: list[str]) -> Matched | None:
        """The matches with an untrained copy of the model; None where it is not had."""
        p, q = sum(told.mine.values()), sum(told.theirs.values())
        if self.untrained is False:
            return None
        if 4 * p * p > MOST_BYTES or (self.untrained is None and p * (p + q) > _FREE_PAIRS):
            notes.append(
                "No untrained copy: it would take as much memory again. Matches(untrained=True) "
                "asks for it, up to a gigabyte."
            )
            return None
        rows = look.drawn(min(of_control(len(look.samples.key)), room(p)), seed=DRAWN)
        try:
            fresh = look.untrained(rows)
            mine = look.activations(rows, told.mine)
        except RefusedError as error:
            notes.append(f"No untrained copy: {error}")
            return None
        moments = CrossMoments(p, p)
        for at in torch.arange(len(rows), device="cpu").split(256):
            a, b = ([of[name][at] for name in told.mine] for of in (mine, fresh))
            _add(moments, a, b)
        return match(_correlations(moments))


class _OtherNetwork(Listener):
    """Hears the other network on the batches of the validation."""

    def __init__(self, named: str, other: Beside, *, asked: bool, itself: bool) -> None:
        self.named, self.itself = named, itself
        self.overhears = (other,) if asked else ()
        self.mine: dict[str, int] = {}
        self.theirs: dict[str, int] = {}
        self.sums: CrossMoments | None = None
        self.rounding: dict[str, Tensor | None] = {}
        self._other = other

    def add(self, heard: Heard) -> None:
        """Run the other on the batch and add up."""
        sizes = {name: part.shape[1] for name, part in heard.activations.items()}
        theirs = _read(self._other, heard)
        if self.sums is None:
            self.mine, device = sizes, next(iter(heard.activations.values())).device
            self.theirs = {name: part.shape[1] for name, part in theirs.items()}
            self.sums = CrossMoments(sum(self.mine.values()), sum(self.theirs.values()), device)
            self.rounding = dict(self._other.rounding)
        if sizes != self.mine or theirs.keys() < self.theirs.keys():
            raise RefusedError("Layers that were read in the first batch are missing in another.")
        _add(self.sums, heard.activations.values(), [theirs[name] for name in self.theirs])

    def merge(self, other: Self) -> None:
        """Add what another process has heard."""
        if other.sums is None:
            return
        if self.sums is None:
            vars(self).update(vars(other))
            return
        if (self.mine, self.theirs) != (other.mine, other.theirs):
            raise RefusedError("Processes have read different layers.")
        with exact_arithmetic(self.sums.device):
            self.sums.merge(other.sums)
        for name, error in other.rounding.items():
            known = [one for one in (self.rounding.get(name), error) if one is not None]
            self.rounding[name] = torch.stack(known).amax(0) if known else None

    def level(self, report: NeuronReport) -> None:
        """Count as constant what only rounding moves, in either network."""
        if self.sums is None:
            return
        spread, errors = self.sums.spread[1], list[Tensor]()
        for name, size in self.theirs.items():
            error = self.rounding.get(name)
            errors.append(spread.new_zeros(size) if error is None else sent(error, spread.device))
        still = spread <= torch.cat(errors)
        self.sums.leave_out(torch.from_numpy(constant_of(report, self.mine)), still)


def _add(sums: CrossMoments, mine: Iterable[Tensor], theirs: Iterable[Tensor]) -> None:
    """Add a batch, whose layers may lie on several devices."""
    a, b = (torch.cat([sent(x, sums.device) for x in parts], 1) for parts in (mine, theirs))
    with exact_arithmetic(sums.device):
        sums.update(a, b)


def _correlations(sums: CrossMoments) -> Tensor:
    with exact_arithmetic(sums.device):
        return sums.correlation_()


def _read(beside: Beside, heard: Heard) -> dict[str, Tensor]:
    """Activations ``(N, D)`` by layer of the samples that were heard."""
    found = beside(heard.batch)
    if not found:
        why = next(iter(beside.problems.values()), "it ran no layer")
        raise RefusedError(f"No layer of the other network can be read: {why}.")
    if heard.rows is not None:
        found = {name: part[heard.rows.to(part.device)] for name, part in found.items()}
    wrong = next((name for name, part in found.items() if len(part) != len(heard)), None)
    if wrong is not None:
        raise RefusedError(
            f"Layer {wrong} of the other network has {len(found[wrong])} rows for {len(heard)} "
            "samples."
        )
    return found


def _layers_of(network: nn.Module, asked: Layers, watched: Mapping[str, nn.Module]) -> Layers:
    names = layer_names(network)
    return list(watched) if asked is None and all(name in names for name in watched) else asked


def _columns(told: _OtherNetwork, found: Matched, control: Matched | None) -> dict[str, Any]:
    layer, unit = _named(told.mine)
    other_layer, other_unit = _named(told.theirs)

    def of(index: np.ndarray) -> tuple[list[str | None], np.ndarray]:
        known = index >= 0
        names = [other_layer[i] if i >= 0 else None for i in index.tolist()]
        return names, np.where(known, other_unit[index], np.nan)

    best_layer, best_unit = of(found.best)
    given_layer, given_unit = of(found.one_to_one)
    nan = np.full(len(layer), np.nan)
    return {
        "layer": layer,
        "unit": unit,
        "other_layer": best_layer,
        "other_unit": best_unit,
        "r": found.r,
        "mutual": found.mutual,
        "novelty": found.novelty,
        "untrained": nan if control is None else control.r,
        "given_layer": given_layer,
        "given_unit": given_unit,
    }


def _named(sizes: Mapping[str, int]) -> tuple[list[str], np.ndarray]:
    names = [name for name, size in sizes.items() for _ in range(size)]
    units = np.concatenate([np.arange(size) for size in sizes.values()] or [np.arange(0)])
    return names, units


def _median(r: np.ndarray) -> str:
    live = r[np.isfinite(r)]
    return f"{np.median(live):.2f}" if len(live) else "n/a"


def _plain(baseline: Any) -> Any:
    """The baseline behind caches: a cache would not ask the network again."""
    while isinstance(baseline, CachedBaseline):
        baseline = baseline.baseline
    return baseline
