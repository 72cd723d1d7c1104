"""In words: what fires a neuron, and which word of it goes with the advantage (after MILAN)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_neurocorr.functional.formulas import Formula, find_formulas
from lightning_neurocorr.functional.inference import adjust_p_values
from lightning_neurocorr.functional.vocabulary import Vocabulary
from lightning_neurocorr.functional.words import advantage_words, name_neurons
from lightning_neurocorr.report.declared import Column
from lightning_neurocorr.report.finding import Finding
from lightning_neurocorr.report.finding_table import Table
from lightning_neurocorr.studies.look import Look
from lightning_neurocorr.studies.protocol import Study
from lightning_neurocorr.studies.refused import RefusedError
from lightning_neurocorr.studies.worded import WordedSamples, chosen_neurons, worded
from lightning_neurocorr.validation.options import Options

_BLOCK = 256  # neurons at a time: the copies in float64 stay small
_LEAST = 100  # samples

COLUMNS = (
    Column("layer", "The layer.", format="text"),
    Column("unit", "The neuron's index in its layer.", format="step"),
    Column("word", "The word that goes best with the neuron; none where none fits.", format="text"),
    Column("score", "Pearson's r of activation and word.", format="signed", null="`null`"),
    Column(
        "held_out",
        "r of the word that one half of the samples names, on the other half.",
        format="signed",
        null="0",
    ),
    Column("null", "The r that the best word reaches by chance in one of twenty neurons."),
    Column("q", "False-discovery rate that a word fits, over the layer.", format="small"),
    Column("share", "Share of the neuron's exemplars that have the word.", format="share"),
    Column("base", "Share of all samples that have the word.", format="share"),
    Column(
        "advantage_word",
        "The word that goes with the neuron and with the advantage inside the class.",
        format="text",
    ),
    Column(
        "explained",
        "How much of the neuron's r within class the advantage word explains.",
        format="share",
        null="0",
    ),
    Column("formula", "Two words that fit better than one, on held-out samples.", format="text"),
    Column("formula_score", "r of the formula on held-out samples.", format="signed", null="0"),
)


@dataclass(frozen=True)
class Words(Study):
    """The word that fits each neuron best, or that none fits, and the words of its advantage.

    Words come from ``metadata=``: truth values, categories, high and low numbers, scores of a text
    model; and from the true class. A neuron's word is the one with the largest Pearson r over the
    samples; its exemplars have to have it more often than chance allows.

    Args:
        max_samples: Activations of so many samples are kept, at most.
        formulas: For so many neurons, those with the largest |r within class|, two words are tried.
        false_discovery_rate: Words above this q are not given.
        name: The key in ``report.studies``.
        every_n_validations: Also after validations n, 2n and so on of a fit.
        time_budget_s: Seconds it may take.

    Raises:
        ValueError: If a setting is out of range.
    """

    max_samples: int = 10_000
    formulas: int = 64
    false_discovery_rate: float = 0.05
    name: str = "words"
    every_n_validations: int | None = None
    time_budget_s: float | None = 300.0

    title = "Words"
    about = (
        "Which word of the metadata goes best with each neuron, and which of its words go with the "
        "advantage inside the class. Words by Pearson's r over all samples, tested on exemplars."
    )
    needs = ("outcomes", "classes")

    def __post_init__(self) -> None:
        self._check_whole(max_samples=_LEAST, formulas=0)
        if not 0 < self.false_discovery_rate < 1:
            raise ValueError(
                "Expected `false_discovery_rate` to be between 0 and 1, but got "
                f"{self.false_discovery_rate!r}."
            )

    @property
    def stores(self) -> int:
        """How many samples' activations it wants."""
        return self.max_samples

    def check(self, options: Options) -> None:
        """Words have to come from somewhere."""
        if options.metadata is None and not options.class_names:
            raise ValueError(
                "Expected `metadata` for the study Words(), because words have to come from "
                "somewhere, but got None. Pass a CSV or TSV file, a DataFrame, a key or a function "
                "of the batch, or ImageStatistics() for images; or `class_names`."
            )

    def find(self, look: Look) -> Finding:
        """A row for each neuron."""
        samples = worded(look, _LEAST, self.max_samples)
        words = samples.vocabulary
        if not len(words):
            raise RefusedError("No word has samples with and without it. " + " ".join(words.notes))
        units = chosen_neurons(look)
        likely = chosen_neurons(look, self.formulas) if self.formulas else {}
        columns: dict[str, list[Any]] = {column.name: [] for column in COLUMNS}
        layers = [name for name in look.report.layers if name in samples.activations]
        for layer in look.progress(layers, "words"):
            found = self._layer(samples, layer, units[layer], likely.get(layer, ()))
            for name, values in found.items():
                columns[name] += list(values)
        columns = _ordered(columns)
        table = Table("neuron", COLUMNS, columns, title="The word of each neuron")
        given = sum(word is not None for word in columns["word"])
        due = sum(word is not None for word in columns["advantage_word"])
        total = sum(look.report.sizes)
        notes = list(words.notes)
        if (tried := len(table)) < total:
            notes.append(
                f"{tried:,} of {total:,} neurons: those with the largest |r within class|."
            )
        return Finding(
            self.title,
            self.about,
            headline=(
                f"Of {tried:,} neurons {given:,} have a word and {due:,} a word of the advantage; "
                f"{len(words):,} words, {len(samples.target):,} samples."
            ),
            tables=(table,),
            notes=tuple(notes),
            numbers={"words_given": given, "advantage_words": due},
            labels={
                "words_given": "neurons with a word",
                "advantage_words": "neurons with a word of the advantage",
            },
        )

    def _layer(
        self, samples: WordedSamples, layer: str, units: np.ndarray, likely: Any
    ) -> dict[str, list[Any]]:
        """The columns of some neurons of a layer."""
        words = samples.vocabulary
        activations = samples.activations[layer]
        within = words.without("class")
        parts = []
        for start in range(0, len(units), _BLOCK):
            a = activations[:, units[start : start + _BLOCK]]
            named = name_neurons(a, words.values, samples.half)
            due = advantage_words(a, within.values, samples.advantage, samples.target)
            parts.append((named, due))
        q = adjust_p_values(np.concatenate([named.p for named, _ in parts] or [np.zeros(0)]))
        fits = q <= self.false_discovery_rate

        def joined(which: int, name: str) -> np.ndarray:
            return np.concatenate([getattr(part[which], name) for part in parts] or [np.zeros(0)])

        tried = np.isin(units, np.asarray(likely, dtype=int))
        formulas: list[Formula | None] = [None] * len(units)
        held = find_formulas(activations[:, units[tried]], words.values, samples.half)
        for i, formula in zip(np.flatnonzero(tried).tolist(), held, strict=True):
            formulas[i] = formula
        return {
            "layer": [layer] * len(units),
            "unit": units.tolist(),
            "word": _texts(words, np.where(fits, joined(0, "word"), -1)),
            "score": joined(0, "score").tolist(),
            "held_out": joined(0, "held_out").tolist(),
            "null": joined(0, "null").tolist(),
            "q": q.tolist(),
            "share": joined(0, "share").tolist(),
            "base": joined(0, "base").tolist(),
            "advantage_word": _texts(within, joined(1, "word")),
            "explained": np.clip(joined(1, "share"), 0, 1).tolist(),
            "formula": [
                f and f"{words.words[f.first]} {f.joined} {words.words[f.second]}" for f in formulas
            ],
            "formula_score": [np.nan if f is None else f.score for f in formulas],
        }


def _ordered(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Neurons whose advantage a word explains best first, then those with the largest score."""
    explained, score = (
        np.nan_to_num(np.array(columns[name], dtype=float), nan=-1.0)
        for name in ("explained", "score")
    )
    order = np.lexsort((-score, -explained))
    return {name: [values[i] for i in order] for name, values in columns.items()}


def _texts(words: Vocabulary, index: np.ndarray) -> list[str | None]:
    return [words.words[int(i)] if i >= 0 else None for i in index]
