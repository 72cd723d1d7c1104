"""Which neurons belong together: groups that say the same inside a class, and what they are for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_neurocorr.functional import ONLY_MODEL
from lightning_neurocorr.functional.groups import MIN_SAMPLES, Grouping, find_groups
from lightning_neurocorr.functional.pairwise import correlations
from lightning_neurocorr.functional.scikit import scikit
from lightning_neurocorr.functional.words import name_neurons
from lightning_neurocorr.report.declared import Column
from lightning_neurocorr.report.finding import Finding
from lightning_neurocorr.report.finding_table import Table
from lightning_neurocorr.studies.group_losses import Silencer, of_layer, random_groups
from lightning_neurocorr.studies.group_pictures import Direction, direction, group_pictures
from lightning_neurocorr.studies.heard import Start
from lightning_neurocorr.studies.look import Look
from lightning_neurocorr.studies.protocol import Listener, Study
from lightning_neurocorr.studies.refused import RefusedError
from lightning_neurocorr.studies.worded import WordedSamples, worded
from lightning_neurocorr.validation.options import Options

_MOST_NEURONS = 2000  # of a layer: those with the largest |attribution|
_MOST_PICTURES = 64
_NAMED = 12  # layers in a note
_MOST_LOST_BY_RERUN = 0.02  # of the wins: more, and other answers are given than were judged

COLUMNS = (
    Column("group", "The group's number in its layer.", format="step"),
    Column("layer", "The layer.", format="text"),
    Column("units", "The units of its neurons.", format="text"),
    Column("neurons", "How many they are.", format="count"),
    Column(
        "against",
        "Those of its units that go the other way: they count with a minus in what follows.",
        format="text",
    ),
    Column(
        "word",
        "The word that goes best with their mean, which goes up with the advantage; none where "
        "none fits.",
        format="text",
    ),
    Column("r", "The mean of their r, as they are.", format="signed", null="0"),
    Column("r_together", "r of their mean and the advantage.", format="signed", null="0"),
    Column("attribution", "Their attributions together.", unit="logits", format="signed"),
    Column(
        "ablation",
        "Of the samples that only the model gets right, the share that it loses without them.",
        format="share",
        null="`ablation_random`",
    ),
    Column(
        "ablation_random",
        "The same for as many random neurons of the layer: of those with a positive attribution "
        "where these make two groups.",
        format="share",
    ),
    Column("modularity", "How separate the layer's groups are, on held-out samples."),
    Column("stability", "How well the groups of both halves agree: adjusted Rand index."),
    Column("leakage", "What another group says of a group, over what it says itself: the worst."),
)


@dataclass(frozen=True)
class Groups(Study):
    """Groups of neurons of a layer that share something inside a class, or that there are none.

    Clusters of r^2 within class over the samples that only the model gets right. How many there are
    is what holds on the other half of the samples. A group is a direction of its layer: the mean of
    its standardised neurons, each with its sign, up where the advantage is.

    Args:
        layers: Names of some of the watched layers; all by default.
        max_samples: Activations of so many samples are kept, at most.
        ablation_samples: A group is silenced on so many samples; 0 silences none.
        pictures: So many groups, those with the largest attribution, get a picture where there is a
            ``visualizer`` and inputs are images.
        name: The key in ``report.studies``.
        every_n_validations: Also after validations n, 2n and so on of a fit.
        time_budget_s: Seconds it may take.
    """

    layers: tuple[str, ...] | None = None
    max_samples: int = 10_000
    ablation_samples: int = 256
    pictures: int = 8
    name: str = "groups"
    every_n_validations: int | None = None
    time_budget_s: float | None = 300.0

    title = "Groups"
    about = (
        "Which neurons of a layer share something inside a class where only the model is right, "
        "what word they have together, and what is lost without them."
    )
    needs = ("outcomes", "classes")

    def __post_init__(self) -> None:
        self._check_whole(max_samples=2 * MIN_SAMPLES, ablation_samples=0, pictures=0)
        if self.pictures > _MOST_PICTURES:
            raise ValueError(
                f"Expected `pictures` to be 0 to {_MOST_PICTURES}, but got {self.pictures}."
            )
        if self.layers is not None:
            named = (self.layers,) if isinstance(self.layers, str) else tuple(self.layers)
            object.__setattr__(self, "layers", named)

    @property
    def stores(self) -> int:
        """How many samples' activations it wants."""
        return self.max_samples

    def check(self, options: Options) -> None:  # noqa: ARG002
        """The clustering is scikit-learn's."""
        scikit("cluster")

    def listen(self, start: Start) -> Listener | None:
        """Hears nothing: what is stored is enough. Layers that are not watched are refused."""
        unknown = [name for name in self.layers or () if name not in start.layers]
        if unknown:
            raise ValueError(
                f"Expected `layers` of Groups to be watched layers, but got {unknown[0]!r}. There "
                f"are {', '.join(list(start.layers)[:12])}."
            )
        return None

    def find(self, look: Look) -> Finding:
        """A row for each group; a note for each reason why layers have none."""
        samples = worded(look, 2 * MIN_SAMPLES, self.max_samples)
        won = samples.outcome == ONLY_MODEL
        halves = (~samples.half, samples.half)
        if min(counts := [int(won[half].sum()) for half in halves]) < MIN_SAMPLES:
            raise RefusedError(
                f"Each half needs {MIN_SAMPLES} samples that only the model gets right, but they "
                f"have {counts[0]:,} and {counts[1]:,} of {len(won):,} together. Take a larger "
                "validation set, or a larger `max_samples`."
            )
        notes: list[str] = list(samples.vocabulary.notes)
        silencer: Silencer | None = None
        without: dict[str, list[str]] = {}
        columns: dict[str, list[Any]] = {column.name: [] for column in COLUMNS}
        directions: list[Direction] = []
        for layer in look.progress(self._layers(look, samples), "groups"):
            units = _units(look, layer)
            a = samples.activations[layer][:, units]
            found = find_groups(a[won], samples.target[won], samples.half[won])
            if found.why:
                without.setdefault(found.why, []).append(layer)
                continue
            if not directions:  # it runs the model: not for nothing
                silencer = self._silencer(look, notes)
            for one in _directions(look, layer, units, a, found):
                directions.append(one)
                for name, value in self._row(look, one, found, samples, silencer).items():
                    columns[name].append(value)
        notes += [_without(layers, why) for why, layers in without.items()]
        strength = np.nan_to_num(np.array(columns["attribution"], dtype=float), nan=-np.inf)
        shown = np.argsort(-strength, kind="stable")[: self.pictures]
        figures = group_pictures(look, [directions[i] for i in shown], notes)
        table = Table("group", COLUMNS, columns, title="Groups of neurons")
        layers = len(set(columns["layer"]))
        return Finding(
            self.title,
            self.about,
            headline=(
                f"{len(table)} groups in {layers} layer{'s' * (layers != 1)}."
                if len(table)
                else "No layer splits into groups that hold on the other half of the samples."
            ),
            tables=(table,),
            figures=figures,
            notes=tuple(notes),
            numbers={"groups": len(table)},
        )

    def _layers(self, look: Look, samples: WordedSamples) -> list[str]:
        return [n for n in self.layers or look.report.layers if n in samples.activations]

    def _silencer(self, look: Look, notes: list[str]) -> Silencer | None:
        if not self.ablation_samples:
            notes.append("No group is silenced: `ablation_samples` is 0.")
            return None
        if not look.samples.located or look.subject.rerun.refused:
            why = look.subject.rerun.refused or "their positions are not known"
            notes.append(f"No group is silenced: samples cannot be run again, {why}.")
            return None
        won = look.samples.outcome == ONLY_MODEL
        silencer = Silencer(look, look.drawn(self.ablation_samples, won, seed=9))
        if (lost := silencer.lost()) <= _MOST_LOST_BY_RERUN:
            return silencer
        notes.append(
            f"No group is silenced: run again, the model loses {lost:.0%} of its wins with nothing "
            "silenced."
        )
        return None

    def _row(
        self,
        look: Look,
        of: Direction,
        found: Grouping,
        samples: WordedSamples,
        silencer: Silencer | None,
    ) -> dict[str, Any]:
        mine = of.units
        r, attribution = (of_layer(look, name, of.layer) for name in ("r", "attribution"))
        lost, random = np.nan, np.nan
        if silencer is not None:
            lost = silencer.lost(of.layer, mine)
            drawn = random_groups(attribution, len(mine), of.group)
            random = float(np.mean([silencer.lost(of.layer, one) for one in drawn]))
        return {
            "group": of.group,
            "layer": of.layer,
            "units": ", ".join(map(str, mine.tolist())),
            "neurons": len(mine),
            "against": ", ".join(map(str, mine[of.sign < 0].tolist())) or None,
            "word": _word(of, samples),
            "r": _known(np.mean, r[mine]),
            "r_together": float(correlations(of.along[:, None], samples.advantage[:, None])[0, 0]),
            "attribution": _known(np.sum, attribution[mine]),
            "ablation": lost,
            "ablation_random": random,
            "modularity": found.modularity,
            "stability": found.stability,
            "leakage": found.leakage,
        }


def _without(layers: list[str], why: str) -> str:
    """Which layers have no groups, for one reason."""
    more = f" and {len(layers) - _NAMED} more layers" if len(layers) > _NAMED else ""
    return f"No groups in {', '.join(layers[:_NAMED])}{more}: {why}."


def _directions(
    look: Look, layer: str, units: np.ndarray, a: np.ndarray, found: Grouping
) -> Iterator[Direction]:
    """The direction of each group of a layer: activations ``(N, D)`` of its ``units`` are ``a``."""
    r = of_layer(look, "r", layer)
    for group in range(int(found.label.max()) + 1):
        inside = found.label == group
        yield direction(layer, group, units[inside], found.sign[inside], a[:, inside], r)


def _word(of: Direction, samples: WordedSamples) -> str | None:
    """The word of a direction, where one fits."""
    words = samples.vocabulary
    if not len(words):
        return None
    named = name_neurons(of.along[:, None], words.values, samples.half)
    return words.words[int(named.word[0])] if named.p[0] <= 0.05 else None


def _known(of: Callable[[np.ndarray], np.floating[Any]], values: np.ndarray) -> float:
    """Mean or sum of the values that are known; NaN where none is."""
    known = values[np.isfinite(values)]
    return float(of(known)) if len(known) else float("nan")


def _units(look: Look, layer: str) -> np.ndarray:
    """All units; of many those with the largest |attribution|."""
    strength = np.nan_to_num(np.abs(of_layer(look, "attribution", layer)), nan=-1.0)
    if len(strength) <= _MOST_NEURONS:
        return np.arange(len(strength))
    return np.sort(np.argpartition(-strength, _MOST_NEURONS)[:_MOST_NEURONS])
