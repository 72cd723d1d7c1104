"""What a user can ask for: one list, checked once, for both front doors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor
from typing_extensions import Self

from lightning_neurocorr import baselines as B
from lightning_neurocorr import functional as F
from lightning_neurocorr.ablation import Ablation
from lightning_neurocorr.activations import (
    At,
    Layers,
    Pooling,
    UnitAxis,
    check_pooling,
    check_reading,
)
from lightning_neurocorr.attribution import Attribution
from lightning_neurocorr.functional.placebo import Placebo
from lightning_neurocorr.functional.ranks import SecondPass
from lightning_neurocorr.functional.scores import Scores, check_scores
from lightning_neurocorr.inspector import Inspector
from lightning_neurocorr.validation.asked_studies import AskedStudy, check_study
from lightning_neurocorr.validation.metadata import metadata_source
from lightning_neurocorr.validation.predictions import Predictions
from lightning_neurocorr.visualization import Visualizer

ToImage = Callable[[Tensor], Any]
ClassNames = Sequence[str] | Mapping[int, str]

# What the studies are called that have an option of their own.
OWN_STUDIES = ("ablation", "second_pass", "placebo", "pictures")


@dataclass(frozen=True)
class Options:
    """What `NeuronAdvantage` and `compare` are asked for; they document every field.

    A new option is a field here and an argument of the two, with its line in their docstrings;
    ``Options.of(locals())`` hands it over and the rooms read it from what they are given.

    Raises:
        TypeError: If an option is of a kind that can never work.
        ValueError: If its value cannot.
    """

    baseline: Callable[[Any], Any]
    layers: Layers = None
    advantage: F.Advantage = "correctness"
    predictions: Predictions | None = None
    target: B.Field | None = None
    output: str = ""
    scores: Scores = None
    pooling: Pooling = "mean"
    at: At = "activation"
    unit_axis: UnitAxis = None
    top_k: int = 16
    every_n_validations: int = 1
    attribution: Attribution | None = None  # True and False are taken too
    ablation: Ablation | None = None
    placebo: Placebo | None = None  # True and False are taken too
    second_pass: SecondPass | None = None
    visualizer: Visualizer | None = None
    sample_id: B.Field | None = None
    to_image: ToImage | None = None
    inputs: B.Field | None = None
    num_classes: int | None = None
    dataloaders: Sequence[int] | None = None
    token_mask: B.Field | None = None
    class_names: ClassNames | None = None
    inspector: Inspector | None = None
    metadata: Any = None  # anything that `metadata_source` reads; then a MetadataSource or None
    studies: Sequence[AskedStudy] = ()
    name: str = "neurocorr"

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """From the arguments of a front door; those that are no option are its own."""
        return cls(**{name: arguments[name] for name in cls.names() if name in arguments})

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """What can be asked for."""
        return tuple(option.name for option in fields(cls))

    @property
    def answerers(self) -> tuple[Any, ...]:
        """The baseline, and all that studies ask beside it."""
        return (self.baseline, *(part for study in self.studies for part in study.asks))

    @property
    def looks_closer(self) -> bool:
        """Whether evidence is asked for that runs the model by itself after a validation."""
        evidence = (self.ablation, self.second_pass, self.visualizer, self.placebo)
        return bool(self.studies) or any(part is not None for part in evidence)

    @property
    def runs_judged(self) -> bool:
        """Whether anything is asked for that runs samples again and reads what is judged."""
        evidence = (self.attribution, self.ablation, self.second_pass)
        return bool(self.studies) or any(part is not None for part in evidence)

    @property
    def runs_again(self) -> bool:
        """Whether anything is asked for that runs the model by itself."""
        return self.looks_closer or self.attribution is not None

    @property
    def asked(self) -> dict[str, bool]:
        """What evidence is asked for, for a report to keep: not asked for is not failed."""
        evidence = {
            "attribution": self.attribution,
            "ablation": self.ablation,
            "placebo": self.placebo,
            "second_pass": self.second_pass,
            "pictures": self.visualizer,
        }
        return {"samples": True, **{name: part is not None for name, part in evidence.items()}}

    def __post_init__(self) -> None:
        B.check_baseline(self.baseline)
        F.check_advantage(self.advantage)
        check_scores(self.scores)
        check_pooling(self.pooling)
        check_reading(self.at, self.unit_axis)
        self._check_numbers()
        self._check_texts()
        self._check_callables()
        self._check_parts()
        self._check_evidence()
        self._check_advantage_has_evidence()
        chosen = Attribution() if self.attribution is True else self.attribution or None
        object.__setattr__(self, "attribution", chosen)
        tried = Placebo() if self.placebo is True else self.placebo or None
        object.__setattr__(self, "placebo", tried)
        object.__setattr__(self, "class_names", _read_class_names(self.class_names))
        if self.dataloaders is not None:
            object.__setattr__(self, "dataloaders", tuple(self.dataloaders))
        object.__setattr__(self, "metadata", metadata_source(self.metadata, self.sample_id))
        self._check_studies()

    def _check_numbers(self) -> None:
        for option, value in (
            ("top_k", self.top_k),
            ("every_n_validations", self.every_n_validations),
        ):
            if type(value) is not int or value < 1:
                raise ValueError(
                    f"Expected `{option}` to be an integer of at least 1, but got {value!r}."
                )
        number = self.num_classes
        if number is not None and (type(number) is not int or number < 2):
            raise ValueError(
                f"Expected `num_classes` to be an integer of at least 2, but got {number!r}."
            )

    def _check_texts(self) -> None:
        for option, value in (("output", self.output), ("name", self.name)):
            if not isinstance(value, str) or (option == "name" and not value):
                raise TypeError(f"Expected `{option}` to be a string, but got {value!r}.")

    def _check_callables(self) -> None:
        for option, value, what in (
            ("predictions", self.predictions, "(outputs, batch) -> (prediction, target)"),
            ("to_image", self.to_image, "from an image (C, H, W)"),
        ):
            if value is not None and not callable(value):
                raise TypeError(f"Expected `{option}` to be a callable {what}, but got {value!r}.")

    def _check_parts(self) -> None:
        """Parts of a batch, and loaders by their index."""
        for option, value in (
            ("target", self.target),
            ("sample_id", self.sample_id),
            ("inputs", self.inputs),
            ("token_mask", self.token_mask),
        ):
            if value is not None:
                B.check_field(value, option)
        if self.target is not None and self.predictions is not None:
            raise ValueError(
                "Expected `target` or `predictions`, but got both: `predictions` returns the "
                "target beside the prediction. Leave one out."
            )
        chosen: Any = self.dataloaders
        if chosen is not None and (
            not isinstance(chosen, (list, tuple)) or not all(type(i) is int for i in chosen)
        ):
            raise TypeError(
                f"Expected `dataloaders` to be a list of indices such as [0], but got {chosen!r}."
            )

    def _check_studies(self) -> None:
        """Instances with names of their own, each content with everything else."""
        given: Any = self.studies
        if not isinstance(given, (list, tuple)):
            raise TypeError(f"Expected `studies` to be a list of studies, but got {given!r:.200}.")
        for study in given:
            check_study(study)
        names = [*OWN_STUDIES, *(study.name for study in given)]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                "Expected every study to have a `name` of its own, because that is its place in "
                f"`report.studies`, but got {repeated[0]!r} twice. The names {OWN_STUDIES} are "
                "those of studies with an argument of their own. Give one of them another name."
            )
        object.__setattr__(self, "studies", tuple(given))
        for study in given:
            study.check(self)

    def _check_evidence(self) -> None:
        """Settings of evidence: their own class, or nothing."""
        for option, value, kind in (
            ("attribution", self.attribution, Attribution),
            ("placebo", self.placebo, Placebo),
        ):
            if not isinstance(value, (bool, kind, type(None))):
                raise TypeError(
                    f"Expected `{option}` to be a bool or {kind.__name__}(...), but got {value!r}."
                )
        for option, value, kind in (
            ("ablation", self.ablation, Ablation),
            ("second_pass", self.second_pass, SecondPass),
            ("inspector", self.inspector, Inspector),
        ):
            if value is not None and not isinstance(value, kind):
                raise TypeError(
                    f"Expected `{option}` to be None or {kind.__name__}(...), but got {value!r}."
                )
        made = self.visualizer is None or isinstance(self.visualizer, Visualizer)
        if not made or isinstance(self.visualizer, type):
            raise TypeError(
                "Expected `visualizer` to be None or to have a `render` method, such as "
                f"FeatureVisualizer(), but got {self.visualizer!r}."
            )

    def _check_advantage_has_evidence(self) -> None:
        """What this advantage, and what is measured of it, can be asked for."""
        if self.placebo and self.advantage != "correctness":
            raise ValueError(
                "Expected `placebo` to be False where `advantage` is not 'correctness', but got "
                f"{self.placebo!r}: a placebo shuffles the classes that the baseline answered, and "
                "no other score of it is kept."
            )
        for option, value in (("ablation", self.ablation), ("second_pass", self.second_pass)):
            if value is not None and self.advantage in F.LABEL_ADVANTAGES:
                raise ValueError(
                    f"Expected `{option}` to be None for advantage={self.advantage!r}, but got "
                    f"{value!r}: it compares samples of one class, and these have sets of labels."
                )
        by = None if self.ablation is None else self.ablation.by
        if by == "attribution" and not self.attribution:
            raise ValueError(
                "Expected `by` of Ablation to be a column that is measured, but got 'attribution' "
                f"with attribution={self.attribution!r}. Pass Ablation(by='r'), or "
                "attribution=True."
            )


def _read_class_names(names: Any) -> dict[int, str] | None:
    """Names by class id; the ``classes`` and the ``class_to_idx`` of a data set are read too.

    Raises:
        TypeError: If these are no names of classes.
    """
    if names is None:
        return None
    pairs: list[tuple[Any, Any]]
    if isinstance(names, Mapping):
        pairs = list(names.items())
        if pairs and all(type(number) is int for _, number in pairs):  # from names to ids
            pairs = [(number, name) for name, number in pairs]
    elif isinstance(names, str) or not hasattr(names, "__iter__"):
        pairs = [(None, names)]
    else:
        pairs = list(enumerate(names.tolist() if hasattr(names, "tolist") else names))
    if not all(type(number) is int and number >= 0 and isinstance(n, str) for number, n in pairs):
        raise TypeError(
            "Expected `class_names` to be a list of names in the order of class ids, or a mapping "
            f"from ids to names, but got {names!r}."
        )
    return dict(pairs)
