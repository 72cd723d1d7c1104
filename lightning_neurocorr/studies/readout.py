"""In which layer what the model knows more becomes readable: a linear read-out of each layer."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from lightning_neurocorr.functional import BOTH, ONLY_MODEL
from lightning_neurocorr.functional.readout import read_out
from lightning_neurocorr.functional.scikit import scikit
from lightning_neurocorr.report.declared import Column
from lightning_neurocorr.report.finding import Finding
from lightning_neurocorr.report.finding_table import Table
from lightning_neurocorr.studies.look import Look, RefusedError, Stored
from lightning_neurocorr.studies.protocol import Study
from lightning_neurocorr.validation.options import Options

_LEAST = 50  # samples that only the model gets right

COLUMNS = (
    Column("layer", "The layer, in the order of the model.", format="text"),
    Column(
        "accuracy_only_model",
        "Of the samples that only the model gets right, the share whose label a linear read-out of "
        "the layer tells.",
        format="share",
        null="`untrained`",
    ),
    Column("low", "Lower end of its 95 % interval.", format="share"),
    Column("high", "Upper end of its 95 % interval.", format="share"),
    Column("untrained", "The same with an untrained copy of the model.", format="share"),
    Column("shuffled", "The same with shuffled labels.", format="share"),
    Column("accuracy_both", "The same over samples that both get right.", format="share"),
    Column("gain", "By how much the layer tells more than the one before.", format="signed"),
    Column("neurons", "Neurons of the layer.", format="count"),
)


@dataclass(frozen=True)
class Readout(Study):
    """How well a linear read-out of each layer tells the label where only the model is right.

    Logistic regression, fitted on one half of the samples and asked on the other. Beside it an
    untrained copy of the model and shuffled labels. The last layer is flattered: the samples are
    those that the model gets right. Read the differences between layers.

    Args:
        max_samples: Activations of so many samples are kept, at most.
        untrained: Whether an untrained copy runs over them too.
        name: The key in ``report.studies``.
        every_n_validations: Also after validations n, 2n and so on of a fit.
        time_budget_s: Seconds it may take.
    """

    max_samples: int = 4_000
    untrained: bool = True
    name: str = "readout"
    every_n_validations: int | None = None
    time_budget_s: float | None = 300.0

    title = "Read-out"
    about = (
        "In which layer what the model knows and the baseline does not becomes readable: accuracy "
        "of a linear read-out of the label on samples that only the model gets right."
    )
    needs = ("outcomes", "classes")

    def __post_init__(self) -> None:
        if self.max_samples < 4 * _LEAST:
            raise ValueError(
                f"Expected `max_samples` to be at least {4 * _LEAST}, but got {self.max_samples}."
            )

    @property
    def stores(self) -> int:
        """How many samples' activations it wants."""
        return self.max_samples

    def check(self, options: Options) -> None:  # noqa: ARG002
        """The read-out is scikit-learn's."""
        scikit("linear_model")

    def find(self, look: Look) -> Finding:
        """A row for each layer."""
        stored = look.stored(4 * _LEAST, self.max_samples)
        rows = stored.rows
        outcome = look.samples.outcome[rows].numpy()
        target = look.samples.target[rows].numpy()
        half = look.half[rows].numpy().astype(bool)
        won = outcome == ONLY_MODEL
        if min(won[half].sum(), won[~half].sum()) < _LEAST // 2:
            raise RefusedError(
                f"Only {int(won.sum())} of {len(won):,} samples are right for the model alone; it "
                f"takes {_LEAST}. Take a larger validation set."
            )
        notes: list[str] = []
        fresh = self._untrained(look, stored, notes)
        shuffled = target[np.random.default_rng(0).permutation(len(target))]
        columns: dict[str, list[Any]] = {column.name: [] for column in COLUMNS}
        before = np.nan
        for layer, part in look.progress(stored.activations.items(), "read-out"):
            a = part.numpy()
            right = read_out(a, target, half)
            mean = float(right[won].mean())
            low, high = _interval(int(right[won].sum()), int(won.sum()))
            chance = read_out(a, shuffled, half)
            empty = read_out(fresh[layer], target, half) if layer in fresh else None
            values = {
                "layer": layer,
                "accuracy_only_model": mean,
                "low": low,
                "high": high,
                "untrained": np.nan if empty is None else float(empty[won].mean()),
                "shuffled": float(chance[won].mean()),
                "accuracy_both": float(right[outcome == BOTH].mean())
                if (outcome == BOTH).any()
                else np.nan,
                "gain": mean - before,
                "neurons": a.shape[1],
            }
            before = mean
            for name, value in values.items():
                columns[name].append(value)
        table = Table("layer", COLUMNS, columns, title="What a linear read-out of each layer tells")
        return Finding(
            self.title,
            self.about,
            headline=_headline(columns),
            tables=(table,),
            notes=tuple(notes),
            numbers={"readout_last": columns["accuracy_only_model"][-1]},
        )

    def _untrained(self, look: Look, stored: Stored, notes: list[str]) -> dict[str, np.ndarray]:
        """Activations of an untrained copy on the same samples, by layer; empty where not had."""
        if not self.untrained:
            return {}
        try:
            return {name: part.numpy() for name, part in look.untrained(stored.rows).items()}
        except RefusedError as error:
            notes.append(f"No untrained copy: {error}")
            return {}


def _interval(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    found = stats.binomtest(hits, n).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def _headline(columns: dict[str, list[Any]]) -> str:
    layers, told, gain = (columns[name] for name in ("layer", "accuracy_only_model", "gain"))
    if len(layers) < 2:
        return f"A linear read-out of {layers[0]} tells {told[0]:.0%}."
    at = int(np.nanargmax(gain))
    return (
        f"The largest step is at {layers[at]}: from {told[at - 1]:.0%} to {told[at]:.0%}; the last "
        f"layer tells {told[-1]:.0%}."
    )
