"""Where the model wins and where it loses: parts of the data, found on one half, tested on one."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lightning_neurocorr.functional.mixture import find_parts
from lightning_neurocorr.functional.pairwise import correlations
from lightning_neurocorr.functional.slices import Side, Slice, find_slices, judge, too_few
from lightning_neurocorr.functional.vocabulary import Vocabulary
from lightning_neurocorr.report.declared import Column
from lightning_neurocorr.report.finding import Finding
from lightning_neurocorr.report.finding_table import Table
from lightning_neurocorr.studies.look import Look
from lightning_neurocorr.studies.protocol import Study
from lightning_neurocorr.studies.refused import RefusedError
from lightning_neurocorr.studies.worded import WordedSamples, chosen_neurons, worded
from lightning_neurocorr.validation.options import Options

_LEAST = 200  # samples
_NEURONS = 1024  # of all layers, for slices without words
SPECIFIC = 0.005  # a slice with a larger p is not shown to be one of this baseline
_WORD_ERRORS = 4.0  # r of a part and a word, in standard errors
_TOP_FIFTH = 0.8
_EXAMPLES = 8

COLUMNS = (
    Column("slice", "The words that its samples have.", format="text"),
    Column("direction", "Who is better there: only_model or only_baseline.", format="text"),
    Column(
        "n",
        "Samples of the half that it was tested on, without those of slices found before it.",
        format="count",
    ),
    Column("advantage", "Their mean advantage.", format="signed", null="that of all samples"),
    Column("low", "Lower end of its 95 % interval.", format="signed"),
    Column("high", "Upper end of its 95 % interval.", format="signed"),
    Column("q", "How often chance alone finds as much, over all that were tried.", format="small"),
    Column(
        "specific",
        "How often shuffled answers of the baseline differ as much from the model there: where the "
        "model is good or weak whoever it is compared with, they often do.",
        format="small",
    ),
    Column("wins", "Of them, those that only the model gets right.", format="count"),
    Column("losses", "Of them, those that only the baseline gets right.", format="count"),
    Column(
        "found_by",
        "words: it was searched for by words. activations: it is a cluster, and words describe it.",
        format="text",
    ),
    Column("examples", "Some of its samples, by position or id.", format="samples"),
)


@dataclass(frozen=True)
class Slices(Study):
    """Parts of the data in which model or baseline is better than elsewhere, inside the class.

    With ``metadata=`` a covering search over words; with scikit-learn also a search without words,
    in the space of the activations. What is found on one half of the samples is tested on the
    other.

    Args:
        without_words: Whether parts without words are looked for too; needs scikit-learn.
        max_samples: So many samples are kept, at most.
        name: The key in ``report.studies``.
        every_n_validations: Also after validations n, 2n and so on of a fit.
        time_budget_s: Seconds it may take.
    """

    without_words: bool = True
    max_samples: int = 10_000
    name: str = "slices"
    every_n_validations: int | None = None
    time_budget_s: float | None = 300.0

    title = "Slices"
    about = (
        "In which parts of the data the model is better, and in which the baseline is, beyond what "
        "the class explains. Found on one half of the samples, measured on the other."
    )
    needs = ("outcomes", "classes")

    def __post_init__(self) -> None:
        self._check_whole(max_samples=_LEAST)

    @property
    def stores(self) -> int:
        """How many samples it wants."""
        return self.max_samples

    def check(self, options: Options) -> None:
        """Without words and without scikit-learn there is nothing to search."""
        if self.without_words:
            from lightning_neurocorr.functional.scikit import scikit

            scikit("cluster")
        elif options.metadata is None:
            raise ValueError(
                "Expected `metadata` for Slices(without_words=False), but got None. Pass a table, "
                "a key or a function of the batch, or ImageStatistics(); or without_words=True."
            )

    def find(self, look: Look) -> Finding:
        """A row for each slice that holds, strongest first; none where none does."""
        samples = worded(look, _LEAST, self.max_samples)
        if too_few(samples.advantage, samples.half):
            raise RefusedError(
                "Fewer than 25 samples of a half have an advantage: there is nothing to find. "
                "Take a larger validation set, or a larger `max_samples`."
            )
        words = _binary(samples.vocabulary)
        named = [
            (_said(part, words), "words", part) for part in _worded_slices(samples, words, look)
        ]
        if self.without_words:
            told = {word for _, _, part in named for word in _names(part, words)}
            named += [
                (text, "activations", part)
                for text, part in self._parts(samples, words, told, look)
            ]
        named.sort(key=lambda found: -abs(found[2].advantage))
        return self._finding(named, samples, look)

    def _parts(
        self, samples: WordedSamples, words: Vocabulary, told: set[str], look: Look
    ) -> Iterator[tuple[str, Slice]]:
        """Clusters by their first word; those that a slice has told already are left out."""
        units = chosen_neurons(look, _NEURONS)
        side_by_side = np.concatenate(
            [part[:, units[layer]] for layer, part in samples.activations.items()], 1
        )
        found = find_parts(side_by_side, samples.outcome, samples.target, samples.half)
        groups: dict[tuple[str, int], list[Slice]] = {}
        for i, part in enumerate(found):
            word = _best_word(part, words, samples)
            if word not in told:
                name = f"mostly {word}" if word else f"no word fits ({i + 1})"
                groups.setdefault((name, part.direction), []).append(part)
        for (name, direction), parts in groups.items():
            members = np.any([part.members for part in parts], 0)
            side = Side.of(samples.outcome, samples.target, ~samples.half, direction)
            merged = judge(members, samples.half, side)
            if merged is not None:
                q = min(part.p for part in parts) * len(parts) * 5
                yield name, replace(merged, p=min(1.0, max(q, merged.p)))

    def _finding(
        self, named: list[tuple[str, str, Slice]], samples: WordedSamples, look: Look
    ) -> Finding:
        columns: dict[str, list[Any]] = {column.name: [] for column in COLUMNS}
        for text, how, part in named:
            values = _row(text, how, part) | {"examples": _examples(part, samples, look)}
            for name, value in values.items():
                columns[name].append(value)
        table = Table("slice", COLUMNS, columns, title="Where one of the two is better")
        better = sum(part.direction > 0 for _, _, part in named)
        own = [part.p_specific <= SPECIFIC for _, _, part in named]
        headline = (
            f"Slices in which the model is better than elsewhere: {better}; in which the baseline "
            f"is: {len(named) - better}. Shown to be of this baseline: {sum(own)} of "
            f"{len(named)}."
            if named
            else "No slice holds on the half of the samples that it was not found on."
        )
        notes = [
            f"{text}: not shown to be of this baseline. Its answers, shuffled within the class, "
            f"may {'lose' if part.direction > 0 else 'win'} there as often."
            for (text, _, part), mine in zip(named, own, strict=True)
            if not mine
        ]
        return Finding(
            self.title,
            self.about,
            headline=headline,
            tables=(table,),
            notes=(*samples.vocabulary.notes, *notes),
            numbers={
                "slices_model": better,
                "slices_baseline": len(named) - better,
                "slices_specific": sum(own),
            },
            labels={
                "slices_model": "where the model is better",
                "slices_baseline": "where the baseline is better",
                "slices_specific": "shown to be of this baseline",
            },
        )


def _worded_slices(samples: WordedSamples, words: Vocabulary, look: Look) -> Iterator[Slice]:
    for direction in look.progress((1, -1), "slices"):
        yield from find_slices(
            words.values, samples.outcome, samples.target, samples.half, direction
        )


def _row(text: str, how: str, part: Slice) -> dict[str, Any]:
    return {
        "slice": text,
        "direction": "only_model" if part.direction > 0 else "only_baseline",
        "n": part.n,
        "advantage": part.advantage,
        "low": part.low,
        "high": part.high,
        "q": part.p,
        "specific": part.p_specific,
        "wins": part.wins,
        "losses": part.losses,
        "found_by": how,
    }


def _binary(words: Vocabulary) -> Vocabulary:
    """Words that a sample has or lacks: not those of the class; of scores the top fifth."""
    words = words.without("class")
    values = words.values.copy()
    for i, kind in enumerate(words.kinds):
        column = values[:, i]
        if kind == "score" and np.isfinite(column).any():
            top = np.nanquantile(column, _TOP_FIFTH)
            values[:, i] = np.where(np.isnan(column), np.nan, column >= top)
    return replace(words, values=values)


def _names(part: Slice, words: Vocabulary) -> list[str]:
    return [words.words[i] for i in part.words]


def _said(part: Slice, words: Vocabulary) -> str:
    return " and ".join(_names(part, words))


def _best_word(part: Slice, words: Vocabulary, samples: WordedSamples) -> str | None:
    """The word that goes best with being in the part, inside the class; None where none does."""
    if not len(words):
        return None
    inside = part.members[:, None].astype(float)
    r = correlations(inside, words.values, samples.target)[:, 0]
    errors = 1 / np.sqrt(np.isfinite(words.values).sum(0).clip(1))  # of words, where they are known
    clear = np.nan_to_num(np.where(r > _WORD_ERRORS * errors, r, np.nan), nan=-1.0)
    best = int(clear.argmax())
    return words.words[best] if clear[best] > 0 else None


def _examples(part: Slice, samples: WordedSamples, look: Look) -> str:
    """Ids or positions of a few samples that have the advantage."""
    wanted = part.members & (np.sign(samples.advantage) == part.direction)
    rows = samples.row[np.flatnonzero(wanted)]
    numbers = sorted(look.samples.number[rows].tolist())[:_EXAMPLES]
    ids = look.subject.passing.ids()
    return ", ".join(str(ids.get(number, number)) for number in numbers)
