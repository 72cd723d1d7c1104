"""Do claims hold on other samples, and what is claimed where there is nothing to find?

    python -m tests.benchmarks.replication [--seeds N] [--first-seed N] [--draws N] [--needed]

Scikit-learn's digits, and Fashion-MNIST where its four IDX files are in ``--data`` (nothing is
downloaded). A small CNN with 160 neurons in five ReLU layers against a logistic regression that
sees left halves. Every claim is counted on each half of the held-out images by itself:

- *real*: the half-blind baseline, and how many of those called hold on the other half: the 95 %
  interval of every number that the claim asks for lies above 0 there (r and its two parts; the
  attribution and the contrast of shares), and for *needed* silencing costs more than random neurons
  do, with a q of 0.05, and answers. Beside it, how many are called there too, which takes a q over
  the layer: that says more of power;
- *placebo*: the baseline's answers shuffled among samples of the same true class, several draws;
- *twin*: against the same network trained from another seed;
- *shuffled labels*: the true labels shuffled among all samples, for the network and the baseline.

``--needed`` silences neurons too, against the real baseline and the first placebo of each half.
Networks and answers are kept in ``--cache``, so that a second run takes minutes. For a rule that
is being changed: ``--only digits``, ``--seeds 1``, ``--no-attribution`` (*encodes* alone), and
``--reports FOLDER``, where every run leaves its report and finds it again. A change of the rule is
to be tried on networks that had no part in it: ``--first-seed``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import Ablation, Attribution, NeuronReport, TableBaseline, compare
from lightning_neurocorr import functional as F
from lightning_neurocorr.report import rules
from tests.benchmarks import replication_cases as real_data
from tests.benchmarks.replication_cases import Case
from tests.benchmarks.timing import machine, table

CACHE = Path(tempfile.gettempdir()) / "lightning_neurocorr-replication"
LAYERS = [f"relu{i}" for i in range(5)]
CONTROLS = ("real", "placebo", "twin", "shuffled labels")


@dataclass
class Tally:
    """One control on one data set: what each run called.

    Attributes:
        called: By claim, for each run whether each neuron is called, ``(neurons,)`` bool.
        tested: By claim, for each run how many neurons were tested.
        holds: By claim, for each run whether each neuron's effect is above 0 by itself.
        words: The first clause of every neuron's verdict.
    """

    called: dict[str, list[np.ndarray]] = field(default_factory=dict)
    tested: dict[str, list[int]] = field(default_factory=dict)
    holds: dict[str, list[np.ndarray]] = field(default_factory=dict)
    words: Counter[str] = field(default_factory=Counter)

    def add(self, report: NeuronReport) -> None:
        """Count the claims of a report."""
        columns = {"r": report.column("r"), **report.columns}
        claims = {"encodes": (rules.encodes, "r")}
        if "attribution" in columns:
            claims["used"] = (rules.used, "attribution")
        if "ablation" in columns:
            claims["needed"] = (rules.needed, "ablation")
        for name, (rule, column) in claims.items():
            self.called.setdefault(name, []).append(rule(columns))
            self.holds.setdefault(name, []).append(holds(name, report))
            self.tested.setdefault(name, []).append(int(np.isfinite(columns[column]).sum()))
        self.words.update(sentence.split(";")[0] for sentence in report.verdicts)

    def shares(self, claim: str) -> list[float]:
        """Share of the tested neurons that each run called."""
        pairs = zip(self.called[claim], self.tested[claim], strict=True)
        return [float(called.sum()) / max(1, tested) for called, tested in pairs]

    def replicated(self, claim: str, found: dict[str, list[np.ndarray]]) -> tuple[int, int]:
        """Of the neurons called in one half, how many are ``found`` in the other, both ways."""
        called, there = self.called[claim], found[claim]
        again = sum(
            int((called[i] & there[i + 1]).sum() + (called[i + 1] & there[i]).sum())
            for i in range(0, len(called), 2)
        )
        return again, sum(int(each.sum()) for each in called)


def holds(claim: str, report: NeuronReport) -> np.ndarray:
    """Whether each neuron's numbers are above 0 by themselves, without a correction for many."""
    if claim == "needed":  # of a cost that is no accident of the samples only q is kept
        columns = {"r": report.column("r"), **report.columns}
        beyond = report.column("ablation") > np.fmax(report.column("ablation_control"), 0)
        return beyond & rules.costs_more(columns) & rules.loses_answers(columns)
    if claim == "encodes":
        lows = [F.fisher_interval(r, n)[0] for r, n in asked(report)]
    else:
        lows = [report.column("attribution_low"), report.column("attribution_contrast_low")]
    return np.fmin.reduce(lows) > 0  # a part that cannot be tested is not asked for


def asked(report: NeuronReport) -> Iterator[tuple[np.ndarray, float]]:
    """The correlations that *encodes* asks for, NaN where one is not tested; samples of each."""
    outcomes = report.outcomes
    yield report.column("r"), outcomes.n
    for part, other in {"baseline_wrong": outcomes.both, "model_right": outcomes.neither}.items():
        untested = np.isnan(report.column(f"q_{part}"))
        r = np.where(untested, np.nan, report.column(f"r_{part}"))
        yield r, outcomes.only_model + other


def placebo(answers: Tensor, y: Tensor, seed: int) -> Tensor:
    """Answers shuffled among samples of the same class."""
    generator, shuffled = torch.Generator().manual_seed(seed), answers.clone()
    for label in y.unique():
        rows = (y == label).nonzero().squeeze(1)
        shuffled[rows] = answers[rows[torch.randperm(len(rows), generator=generator)]]
    return shuffled


class Run(NamedTuple):
    """Held-out images with answers and labels.

    Attributes:
        control: What the answers are.
        name: Of the run among those of a case.
        rows: Which images.
        answers: The baseline's, of these.
        y: Labels, of these.
        ablated: Whether neurons may be silenced, which costs more than all else.
    """

    control: str
    name: str
    rows: Tensor
    answers: Tensor
    y: Tensor
    ablated: bool = False

    def report(self, case: Case, options: argparse.Namespace) -> NeuronReport:
        """What is found; from the folder of reports, where it is there."""
        folder: Path | None = options.reports
        kept = None if folder is None else folder / f"{case.name}-{case.seed}-{self.name}.npz"
        if kept is not None and kept.is_file():
            return NeuronReport.load(kept)
        # The curves of larger sets say nothing of single neurons.
        ablated = Ablation(time_budget_s=None, sizes=()) if self.ablated else None
        found = compare(
            case.model,
            DataLoader(TensorDataset(case.x[self.rows], self.y), batch_size=250),
            TableBaseline(self.answers),
            LAYERS,
            attribution=options.attribution,
            ablation=ablated if options.needed else None,
        )
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            found.save(kept)
        return found


def runs(case: Case, options: argparse.Namespace) -> Iterator[Run]:
    """Every run of a case; halves come one after the other."""
    halves = case.halves()
    for number, rows in enumerate(halves):
        answers, y = case.answers[rows], case.y[rows]
        yield Run("real", f"real-{number}", rows, answers, y, ablated=True)
        for draw in range(options.draws):
            shuffled = placebo(answers, y, 1000 * case.seed + 2 * draw + number)
            name = f"placebo-{draw}-{number}"
            yield Run("placebo", name, rows, shuffled, y, ablated=not draw)
    for number, rows in enumerate(halves if not options.placebo_only else ()):
        with torch.no_grad():
            twin = torch.cat([case.twin(part).argmax(1) for part in case.x[rows].split(250)])
        yield Run("twin", f"twin-{number}", rows, twin, case.y[rows])
        generator = torch.Generator().manual_seed(2 * case.seed + number)
        mixed = case.y[rows[torch.randperm(len(rows), generator=generator)]]
        yield Run("shuffled labels", f"labels-{number}", rows, case.answers[rows], mixed)


def accuracies(case: Case) -> str:
    """How good network, twin and baseline are on the held-out images."""
    with torch.no_grad():
        right = [
            torch.cat([model(part).argmax(1) for part in case.x.split(250)]) == case.y
            for model in (case.model, case.twin)
        ]
    shares = [float(each.double().mean()) for each in (*right, case.answers == case.y)]
    return "network {:.3f}, twin {:.3f}, half-blind baseline {:.3f}".format(*shares)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def claim_rows(tallies: dict[str, Tally]) -> Iterator[list[str]]:
    """A row per claim and control that was run."""
    for claim in tallies["real"].called:
        for control, tally in tallies.items():
            if claim not in tally.called:  # it was not asked
                continue
            shares = tally.shares(claim)
            numbers = [int(called.sum()) for called in tally.called[claim]]
            kinds = (tally.called, tally.holds) if control == "real" else ()
            twice = [tally.replicated(claim, found) for found in kinds]
            some = sum(number > 0 for number in numbers)
            yield [
                claim,
                control,
                ", ".join(map(str, numbers)) if len(numbers) <= 6 else f"{np.mean(numbers):.1f}",
                percent(float(np.mean(shares))),
                percent(max(shares)),
                f"{some} of {len(numbers)}",
                *(f"{again / called:.2f}" if called else "" for again, called in twice),
                *([""] * (2 - len(twice))),
            ]


def word_rows(tallies: dict[str, Tally]) -> Iterator[list[str]]:
    """How often each verdict is given, as a share of the neurons of all runs."""
    clauses = sorted({word for tally in tallies.values() for word in tally.words})
    for clause in clauses:
        yield [clause, *(percent(t.words[clause] / t.words.total()) for t in tallies.values())]


def show(data: real_data.Data, options: argparse.Namespace) -> None:
    """Run one data set and print its tables."""
    tallies = {name: Tally() for name in CONTROLS}

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    said = []
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    for case in real_data.cases(data, seeds, options.cache, say):
        said.append(f"seed {case.seed}: {accuracies(case)}")
        say(f"{data.name}, {said[-1]}")
        for run in runs(case, options):
            start = time.monotonic()
            tallies[run.control].add(run.report(case, options))
            say(f"{case.name}, seed {case.seed}, {run.name}: {time.monotonic() - start:.0f} s")
    tallies = {name: tally for name, tally in tallies.items() if tally.called}
    half = len(data.test_y) // 2
    print(f"{data.name}, {half:,} and {half:,} held-out images. " + "; ".join(said) + ".\n")
    head = ("claim", "against", "neurons called (mean)", "share", "most", "runs with any")
    print(table([*head, "called again", "holds"], claim_rows(tallies)))
    print(table(["verdict begins", *tallies], word_rows(tallies)), flush=True)


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="networks per data set")
    parser.add_argument("--first-seed", type=int, default=0, help="of these networks")
    parser.add_argument("--draws", type=int, default=5, help="placebos per half and network")
    parser.add_argument("--needed", action="store_true", help="ablation too: much slower")
    parser.add_argument("--no-attribution", action="store_true", help="only what is encoded")
    parser.add_argument("--max-pairs", type=int, help="that attribution takes; default: all")
    parser.add_argument("--placebo-only", action="store_true", help="real and placebo only")
    parser.add_argument("--only", choices=("digits", "fashion"), help="one of the data sets")
    parser.add_argument("--fast", action="store_true", help="digits, one seed, one draw")
    parser.add_argument("--data", type=Path, default=real_data.FASHION, metavar="FOLDER")
    parser.add_argument(
        "--reports", type=Path, help="where reports are kept, and read instead of made again"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=CACHE,
        help="where trained networks are kept",
    )
    options = parser.parse_args(arguments)
    options.attribution = not options.no_attribution
    if options.attribution and options.max_pairs:
        options.attribution = Attribution(max_samples=options.max_pairs)
    if options.fast:
        options.only, options.seeds, options.draws = "digits", 1, 1
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parsed(arguments)
    warnings.simplefilter("ignore")
    sets: dict[str, Any] = {
        "digits": real_data.digits,
        "fashion": lambda: real_data.fashion(options.data),
    }
    for name, load in sets.items():
        data = load() if options.only in (None, name) else None
        if data is not None:
            show(data, options)
        elif options.only in (None, name):
            print(f"No Fashion-MNIST: expected its four gzipped IDX files in {options.data}.\n")
    print(machine("scikit-learn"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
