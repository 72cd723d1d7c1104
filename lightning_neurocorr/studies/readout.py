"""In which layer what the model knows more becomes readable: a linear read-out of each layer."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from torch import Tensor

from lightning_neurocorr.functional import BOTH, ONLY_MODEL, mcnemar_p
from lightning_neurocorr.functional.readout import read_out
from lightning_neurocorr.report.declared import Column
from lightning_neurocorr.report.finding import Finding
from lightning_neurocorr.report.finding_table import Table
from lightning_neurocorr.studies.look import Look
from lightning_neurocorr.studies.protocol import Study
from lightning_neurocorr.studies.refused import RefusedError
from lightning_neurocorr.studies.store import of_control

_LEAST = 50  # samples that only the model gets right
_CLEAR = 0.05  # of all steps between layers together

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
    Column(
        "untrained",
        "The same with an untrained copy of the model, on fewer samples: compare with `trained`.",
        format="share",
    ),
    Column(
        "trained",
        "The same with the model, fitted and asked on the samples of the untrained copy.",
        format="share",
        null="`untrained`",
    ),
    Column("shuffled", "The same with shuffled labels.", format="share"),
    Column(
        "by_chance",
        "What its answers would tell of these samples if they had nothing to do with the labels.",
        format="share",
    ),
    Column("accuracy_both", "The same over samples that both get right.", format="share"),
    Column("gain", "By how much the layer tells more than the one before.", format="signed"),
    Column(
        "gain_p",
        "McNemar's exact p of the gain: do the two layers tell as many of these samples?",
        format="small",
    ),
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
        untrained: Whether an untrained copy runs over some of them too: a fifth of the validation
            set (500 to 4,000), and more where these hold less than 50 that only the model gets
            right.
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
        self._check_whole(max_samples=4 * _LEAST)

    @property
    def stores(self) -> int:
        """How many samples' activations it wants."""
        return self.max_samples

    def find(self, look: Look) -> Finding:
        """A row for each layer."""
        stored = look.stored(4 * _LEAST, self.max_samples)
        samples = _Samples.of(look, stored.rows)
        notes: list[str] = []
        fresh = self._untrained(look, stored.rows[: samples.few], notes)
        columns: dict[str, list[Any]] = {column.name: [] for column in COLUMNS}
        before: np.ndarray | None = None
        for layer, part in look.progress(stored.activations.items(), "read-out"):
            told, right = samples.told(part.numpy(), fresh.get(layer))
            gain, p = _step(before, right)
            values = {"layer": layer, "gain": gain, "gain_p": p, "neurons": part.shape[1], **told}
            before = right
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
            labels={"readout_last": "share of labels that the last layer tells"},
        )

    def _untrained(self, look: Look, rows: Tensor, notes: list[str]) -> dict[str, np.ndarray]:
        """Activations of an untrained copy on some samples, by layer; empty where not had."""
        if not self.untrained:
            return {}
        try:
            found = {name: part.numpy() for name, part in look.untrained(rows).items()}
        except RefusedError as error:
            notes.append(f"No untrained copy: {error}")
            return {}
        notes.append(f"The untrained copy was asked about {len(rows):,} samples.")
        return found


@dataclass(frozen=True)
class _Samples:
    """What is known of the samples, ``(N,)`` each.

    Attributes:
        outcome: Outcome groups.
        target: Their classes.
        shuffled: The same in another order.
        half: On which half they are.
        few: The untrained copy is asked about so many of them, the first.
    """

    outcome: np.ndarray
    target: np.ndarray
    shuffled: np.ndarray
    half: np.ndarray
    few: int

    @classmethod
    def of(cls, look: Look, rows: Tensor) -> "_Samples":
        outcome = look.samples.outcome[rows].numpy()
        target = look.samples.target[rows].numpy()
        half = look.half[rows].numpy().astype(bool)
        won = outcome == ONLY_MODEL
        if min(counts := [int(won[part].sum()) for part in (~half, half)]) < _LEAST // 2:
            raise RefusedError(
                f"Each half needs {_LEAST // 2} samples that only the model gets right, but they "
                f"have {counts[0]:,} and {counts[1]:,} of {len(won):,} together. Take a larger "
                "validation set, or a larger `max_samples`."
            )
        if min(len(np.unique(target[part])) for part in (half, ~half)) < 2:
            raise RefusedError("All samples are of one class: there is nothing to read.")
        shuffled = target[np.random.default_rng(0).permutation(len(target))]
        few = max(of_control(len(look.samples.key)), int(np.flatnonzero(won)[_LEAST - 1]) + 1)
        return cls(outcome, target, shuffled, half, min(few, len(won)))

    def told(self, a: np.ndarray, fresh: np.ndarray | None) -> tuple[dict[str, float], np.ndarray]:
        """What activations ``(N, D)`` tell, and which of the won samples they tell, bool.

        ``fresh`` are those of an untrained copy.
        """
        won, both = self.outcome == ONLY_MODEL, self.outcome == BOTH
        read, chance = read_out(a, np.stack([self.target, self.shuffled]), self.half)
        right = read == self.target
        low, high = _interval(int(right[won].sum()), int(won.sum()))
        columns = {
            "accuracy_only_model": float(right[won].mean()),
            "low": low,
            "high": high,
            "untrained": self._of_few(fresh),
            "trained": self._of_few(None if fresh is None else a),
            "shuffled": float((chance == self.shuffled)[won].mean()),
            "by_chance": _by_chance(read[won], self.target[won]),
            "accuracy_both": float(right[both].mean()) if both.any() else np.nan,
        }
        return columns, right[won]

    def _of_few(self, a: np.ndarray | None) -> float:
        """The share that is read where the untrained copy was asked."""
        if a is None:
            return np.nan
        few = slice(self.few)
        right = read_out(a[few], self.target[few], self.half[few]) == self.target[few]
        return float(right[self.outcome[few] == ONLY_MODEL].mean())


def _by_chance(read: np.ndarray, target: np.ndarray) -> float:
    """How often two labellings agree that have nothing to do with each other (Cohen 1960)."""
    classes = np.unique(target)
    shares = [(labels[:, None] == classes).mean(0) for labels in (read, target)]
    return float(shares[0] @ shares[1])


def _interval(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    found = stats.binomtest(hits, n).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def _step(before: np.ndarray | None, right: np.ndarray) -> tuple[float, float]:
    """The gain from one layer to the next, and McNemar's p; 1 where they tell the same samples."""
    if before is None:
        return np.nan, np.nan
    more, less = int((right & ~before).sum()), int((before & ~right).sum())
    return float(right.mean() - before.mean()), mcnemar_p(more, less) if more + less else 1.0


def _headline(columns: dict[str, list[Any]]) -> str:
    layers, told, chance = (columns[name] for name in ("layer", "accuracy_only_model", "by_chance"))
    last = f"the last layer tells {told[-1]:.0%}, where chance would tell {chance[-1]:.0%}."
    if len(layers) < 2:
        return f"A linear read-out of {layers[0]} tells {told[0]:.0%}{last.partition('%')[2]}"
    gain, p = (np.array(columns[name][1:]) for name in ("gain", "gain_p"))
    clear = (gain > 0) & (p * len(p) <= _CLEAR)  # Bonferroni: the largest of them is chosen
    if not clear.any():
        return f"No step from one layer to the next is clear. The first tells {told[0]:.0%}; {last}"
    at = 1 + int(np.where(clear, gain, -np.inf).argmax())
    return f"The largest step is at {layers[at]}: from {told[at - 1]:.0%} to {told[at]:.0%}; {last}"
