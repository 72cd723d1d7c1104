"""The tables of the case study, made of its numbers.

`case_study_run.py` writes them into `case_study.md`. A test compares the page with
`case_study.json`, so that it says what was measured.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from lightning_neurocorr.report.written import fixed, share, signed, small

Row = dict[str, Any]
NO_BREAK = "\N{NO-BREAK SPACE}"
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n)(?:(?!<!--).)*(<!-- end -->)", re.DOTALL)


def tables(found: dict[str, Any]) -> dict[str, str]:
    """Every table of the page in Markdown, by its name."""
    return {name: make(found) for name, make in TABLES.items()}


def filled(page: str, made: dict[str, str]) -> str:
    """The page with each table where its name stands."""
    return BLOCK.sub(lambda block: f"{block[1]}{made[block[2]]}\n{block[3]}", page)


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows in Markdown; the first column holds words, the others are as they come."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def between(row: Row, name: str, ends: tuple[str, str], digits: int = 3) -> str:
    """A number with its interval: ``+0.080 [+0.06, +0.10]``."""
    low, high = (fixed(row[end], sign=True) for end in ends)
    return f"{signed(row[name], digits)} [{low}, {high}]".replace(" ", NO_BREAK)


def known(value: float | None, write: Callable[[float], str]) -> str:
    """A number as it is written; nothing where it is undefined."""
    return "" if value is None else write(value)


def _outcomes(found: dict[str, Any]) -> str:
    of = found["outcomes"]
    return table(
        ["10,000 test images", "baseline right", "baseline wrong"],
        [
            ["network right", f"{of['both']:,}", f"**{of['only_model']:,}**"],
            ["network wrong", f"{of['only_baseline']:,}", f"{of['neither']:,}"],
        ],
    )


def _layers(found: dict[str, Any]) -> str:
    heads = ["layer", "neurons", "encode", "used", "needed, of those silenced",
             "go with a class only", "dead"]  # fmt: skip
    return table(heads, [
        [row["layer"], row["neurons"], row["encodes"], row["used"],
         f"{row['needed']} of {row['silenced']}", row["class"], row["dead"]]
        for row in found["layers"]
    ])  # fmt: skip


def _neurons(found: dict[str, Any]) -> str:
    rows, listed = [], Counter[str]()
    for row in found["neurons"]:  # of those only used, the first two of each layer
        listed[layer := row["neuron"].split(":")[0]] += row["claims"] == ["used"]
        if row["claims"] == ["used"] and listed[layer] > 2:
            continue
        cost = row["ablation_advantage"]
        lost = "" if cost is None else f"{share(cost)} / {share(row['ablation_shared'])}"
        rows.append([
            row["neuron"],
            ", ".join(f"**{claim}**" if claim == "encodes" else claim for claim in row["claims"]),
            between(row, "r", ("r_low", "r_high")),
            known(row["attribution"], signed),
            lost,
            row["word"] or "",
        ])  # fmt: skip
    return table(["neuron", "shown", "r [95 %]", "attribution", "answers lost: wins / shared",
                  "its word"], rows)  # fmt: skip


def _silenced(found: dict[str, Any]) -> str:
    largest: dict[str, Row] = {row["layer"]: row for row in found["silenced"]}  # sizes go up
    names = ("advantage", "shared", "advantage_random")
    rows = [
        [layer, row["size"], *(share(row[name]) for name in names), row["needed"]]
        for layer, row in largest.items()
    ]
    return table(["layer", "silenced", "of the wins lost", "of shared answers lost",
                  "of the wins lost, random neurons", "needed"], rows)  # fmt: skip


def _slices(found: dict[str, Any]) -> str:
    ours = {"only_model": "", "only_baseline": " (the baseline is better)"}
    rows = [
        [row["slice"] + ours[row["direction"]], f"{row['n']:,}", f"{row['wins']} / {row['losses']}",
         between(row, "advantage", ("low", "high"), 2), small(row["q"])]
        for row in found["slices"]
    ]  # fmt: skip
    return table(["slice", "images", "only network / only baseline right", "advantage [95 %]", "q"],
                 rows)  # fmt: skip


def _advantage_words(found: dict[str, Any]) -> str:
    rows = [
        [f"{row['layer']}:{row['unit']}", row["word"] or "", row["advantage_word"],
         share(row["explained"])]
        for row in found["words"]["advantage"][:5]
    ]  # fmt: skip
    return table(["neuron", "its word", "its word of the advantage", "of r that it explains"], rows)


def _readout(found: dict[str, Any]) -> str:
    names = ("accuracy_only_model", "untrained", "shuffled", "accuracy_both")
    rows = [[row["layer"], *(known(row[name], share) for name in names)]
            for row in found["readout"]]  # fmt: skip
    return table(["layer", "wins", "wins, untrained network", "wins, labels shuffled",
                  "both right"], rows)  # fmt: skip


def _mirrored(found: dict[str, Any]) -> str:
    rows = [[row["group"], f"{row['n']:,}", share(row["left"]), share(row["right"])]
            for row in found["mirrored"]["answers"]]  # fmt: skip
    return table(["right before", "images without shoes", "still right: left half only",
                  "still right: right half only"], rows)  # fmt: skip


def _made(found: dict[str, Any]) -> str:
    of = found["made"]
    versions = ", ".join(f"{name} {number}" for name, number in of["versions"].items())
    return f"`python docs/case_study_run.py`, {of['date']}, seed {of['seed']}; {versions}."


def _baselines(found: dict[str, Any]) -> str:
    rows = []
    for name, of in found["baselines"].items():
        rows.append([
            name, share(of["baseline"]), f"{of['only_model']:,} / {of['only_baseline']:,}",
            of["encodes"], of["used"], f"{of['needed']} of {of['silenced']}",
        ])  # fmt: skip
    return table(["baseline", "right", "only network / only baseline right", "encode", "used",
                  "needed, of those silenced"], rows)  # fmt: skip


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "outcomes": _outcomes,
    "layers": _layers,
    "neurons": _neurons,
    "silenced": _silenced,
    "slices": _slices,
    "advantage_words": _advantage_words,
    "readout": _readout,
    "mirrored": _mirrored,
    "baselines": _baselines,
    "made": _made,
}
