"""The command line: ``export``, ``top`` and ``compare`` of reports and log folders."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lightning_neurocorr.inspector import export
from lightning_neurocorr.inspector.reading import stored_in
from lightning_neurocorr.inspector.restored import Restored, few, restored
from lightning_neurocorr.report import COLUMNS, NeuronReport, Outcomes, TopList
from lightning_neurocorr.report.written import printable

_SOURCE = "a report file that report.save wrote, or the folder of a run that TensorBoard reads"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        _check_sources(options)
        options.run_command(options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has had enough: `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


def _check_sources(options: argparse.Namespace) -> None:
    for path in (vars(options).get(name) for name in ("source", "a", "b")):
        if path is not None and not path.exists():
            raise FileNotFoundError(f"Expected {_SOURCE}, but there is no {str(path)!r}.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lightning_neurocorr",
        description="Which neurons carry what a model knows and its baseline does not: look at "
        "reports and at runs that the callback NeuronAdvantage has logged.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_export, _add_top, _add_compare):
        add(commands)
    return parser


def _add_export(commands: Any) -> None:
    page = commands.add_parser(
        "export",
        help="write the neuron microscope as one HTML file",
        description="Write the neuron microscope as one HTML file. It opens in any browser, from "
        "disk, and asks no network for anything.",
        epilog="example: python -m lightning_neurocorr export lightning_logs page.html",
    )
    page.add_argument("source", type=Path, help=f"{_SOURCE}; a folder may hold many runs")
    page.add_argument("page", type=Path, help="the HTML file to write")
    page.add_argument(
        "--run",
        action="append",
        metavar="RUN",
        help="take this run only, as TensorBoard names it; may be given several times",
    )
    page.add_argument("--title", default="", help="the title of the window")
    page.add_argument(
        "--max-mb",
        type=float,
        default=export.MAX_BYTES / 1e6,
        metavar="MB",
        help="about how large the file may be (default: %(default)g); beyond, older tables, "
        "thumbnails and columns are left out, and the page says so",
    )
    page.set_defaults(run_command=_export)


def _add_top(commands: Any) -> None:
    top = commands.add_parser(
        "top",
        help="print the neurons to look at",
        description="Print the neurons to look at first: those that passed their controls. With "
        "--by, the strongest by a column.",
        epilog="example: python -m lightning_neurocorr top lightning_logs/version_0 -k 20",
    )
    top.add_argument("source", type=Path, help=_SOURCE)
    top.add_argument("-k", type=_count, default=10, help="how many (default: %(default)d)")
    top.add_argument(
        "--by", metavar="COLUMN", help=f"rank by a column: {', '.join(COLUMNS[:5])}, ..."
    )
    top.add_argument("--layer", help="only the neurons of this layer")
    top.add_argument("--name", help="the callback's name, where a run has several")
    top.set_defaults(run_command=_top)


def _add_compare(commands: Any) -> None:
    two = commands.add_parser(
        "compare",
        help="print what differs between two reports or runs",
        description="Print how often model and baseline were right in A and in B, and the neurons "
        "whose r has moved most. Neurons are matched by layer and unit.",
        epilog="example: python -m lightning_neurocorr compare before.npz after.npz",
    )
    two.add_argument("a", type=Path, help=_SOURCE)
    two.add_argument("b", type=Path, help="the same")
    two.add_argument("-k", type=_count, default=10, help="how many neurons (default: %(default)d)")
    two.add_argument("--name", help="the callback's name, where a run has several")
    two.set_defaults(run_command=_compare)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, but got {text!r}")
    return int(text)


def _export(options: argparse.Namespace) -> None:
    if options.source.is_dir():
        store = stored_in(options.source)
        found = store.series()
        wanted = [one for one in found if not options.run or one.run in options.run]
        missing = sorted(set(options.run or ()) - {one.run for one in found})
        if missing or not wanted:
            runs = few(sorted({repr(one.run) for one in found}))
            raise ValueError(
                f"Expected runs of lightning_neurocorr in {str(options.source)!r}, but there is no "
                f"{missing[0]!r}. There are: {runs}."
                if missing
                else f"Expected runs of lightning_neurocorr in {str(options.source)!r}, but found "
                "none. Were they written by the callback NeuronAdvantage with a TensorBoardLogger?"
            )
        series = [export.stored(store, one) for one in wanted]
    else:
        series = [export.of_report(NeuronReport.load(options.source), run=options.source.stem)]
    text = export.page(series, options.title, round(options.max_mb * 1e6))
    path = export.write(options.page, text)
    _say(f"{path}: {len(text.encode()) / 1e6:.1f} MB, {len(series)} run{'s'[: len(series) > 1]}")


def _top(options: argparse.Namespace) -> None:
    found = restored(options.source, options.name)
    report = found.report
    if options.by:
        rows = report.top(options.k, options.by, layer=options.layer)
    else:
        rows = report.shown(options.k, layer=options.layer)
    if found.later:
        _say(printable(found.later) + "\n")
    _say(printable(report.headline) + "\n")
    _say(str(_as_said(rows, found)))


def _as_said(rows: TopList, found: Restored) -> TopList:
    """The list with the verdicts as they were stored: rounded numbers could turn one."""
    position = found.report.layout.position
    said = [
        replace(row, verdict=str(found.verdicts[position(row.layer, row.unit)])) for row in rows
    ]
    return TopList(said, **vars(rows))


def _compare(options: argparse.Namespace) -> None:
    found = [restored(source, options.name) for source in (options.a, options.b)]
    a, b = (one.report for one in found)
    for label, report, source in (("A", a, options.a), ("B", b, options.b)):
        _say(f"{label}: {source}, validation {report.validation}, {report.n:,} samples")
        _say(f"   {_right(report.outcomes)}baseline {printable(report.baseline)}")
    for label, one in zip("AB", found, strict=True):
        if one.later:
            _say(f"Note on {label}: {printable(one.later)}")
    if a.baseline != b.baseline:
        _say("Note: the baselines differ, so that the advantages mean different things.")
    if a.n != b.n:
        _say("Note: the numbers of samples differ. r of fewer samples is larger by chance.")
    names, r = _matched(a, b)
    _say(f"\n{len(names):,} neurons are in both, of {len(a.rows):,} in A and {len(b.rows):,} in B.")
    if not names:
        return
    moved = np.abs(r[1] - r[0])
    order = np.argsort(-np.nan_to_num(moved, nan=-1.0), kind="stable")[: options.k]
    order = [i for i in order if np.isfinite(moved[i])]
    width = max((len(names[i]) for i in order), default=6)
    _say(f"Those whose r has moved most:\n\n  {'neuron':<{width}}      A        B     B − A")
    for i in order:
        _say(f"  {names[i]:<{width}} {r[0, i]:+.3f}   {r[1, i]:+.3f}   {r[1, i] - r[0, i]:+.3f}")
    chance = max(s.noise_ceiling for report in (a, b) for s in report.summaries)
    _say(f"\nBy chance, the largest |r| of a layer is about {chance:.3f}.")


def _right(outcomes: Outcomes) -> str:
    if not outcomes.n:
        return ""
    groups = ", ".join(f"{name} {int(count):,}" for name, count in outcomes.counts.items())
    return (
        f"model right {outcomes.model_accuracy:.1%}, baseline right "
        f"{outcomes.baseline_accuracy:.1%} ({groups}); "
    )


def _matched(a: NeuronReport, b: NeuronReport) -> tuple[list[str], np.ndarray]:
    """Neurons that both have, by layer and unit, and r in either, ``(2, matched)``."""
    names: list[str] = []
    parts = [np.zeros((2, 0))]
    for layer, span in a.layout.slices.items():
        if layer not in b.layout.slices:
            continue
        ours, theirs = a.column("r")[span], b.column("r")[b.layout.span(layer)]
        both = min(len(ours), len(theirs))
        names += [printable(f"{layer}:{unit}") for unit in range(both)]
        parts.append(np.stack([ours[:both], theirs[:both]]))
    return names, np.concatenate(parts, 1)


def _say(text: str) -> None:
    print(text)  # noqa: T201
