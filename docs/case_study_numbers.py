"""The numbers of the case study, read from the report of a run.

`case_study_run.py` writes them to `case_study.json`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from lightning_neurocorr.report import NeuronReport, rules
from lightning_neurocorr.report.written import yes_no

Row = dict[str, Any]


def numbers(report: NeuronReport) -> dict[str, Any]:
    """All that the page says of the run with the half-blind baseline, plain data."""
    return {
        "outcomes": counts(report),
        "confusions": confusions(report, 5),
        "layers": layers(report),
        "neurons": claimed(report),
        "verdicts": Counter(text.split("; ")[0] for text in report.verdicts.tolist()),
        "silenced": rows_of(report, "ablation", "curves"),
        "slices": rows_of(report, "slices", "slice"),
        "words": words(report),
        "readout": rows_of(report, "readout", "layer"),
        "groups": rows_of(report, "groups", "group"),
        "matches": matches(report),
        "placebo": {claim: list(found) for claim, found in report.placebo.called.items()},
        "chance": report.shown(1).noise_ceiling,
        "headlines": {name: found.said for name, found in report.studies.items()},
    }


def counts(report: NeuronReport) -> Row:
    """Who was right, and how many neurons each claim is made of."""
    found, columns = report.outcomes, {"r": report.column("r"), **report.columns}
    names = ("both", "only_model", "only_baseline", "neither")
    return {
        **{name: getattr(found, name) for name in names},
        "model": (found.both + found.only_model) / found.n,
        "baseline": (found.both + found.only_baseline) / found.n,
        "p": found.p_value,
        "neurons": len(report.rows),
        "dead": int(report.column("dead").sum()),
        "encodes": int(rules.encodes(columns).sum()),
        "used": int(rules.used(columns).sum()),
        "needed": int(rules.needed(columns).sum()),
        "silenced": int(np.isfinite(report.column("ablation")).sum()),
    }


def confusions(report: NeuronReport, most: int) -> list[Row]:
    """What the baseline says most often where only the model is right."""
    samples, names = report.samples, report.class_names
    if samples is None:
        raise ValueError("Expected a report that keeps its samples.")
    rows = samples.rows_in("only_model")
    told = zip(samples.target[rows].tolist(), samples.baseline[rows].tolist(), strict=True)
    return [
        {"is": names[truth], "said": names[answer], "n": n}
        for (truth, answer), n in Counter(told).most_common(most)
    ]


def layers(report: NeuronReport) -> list[Row]:
    """Claims by layer."""
    found = []
    for layer, span in report.layout.slices.items():
        columns = {"r": report.column("r")[span]}
        columns |= {name: column[span] for name, column in report.columns.items()}
        by_class = rules.associated(columns) & rules.class_explains(columns)
        found.append({
            "layer": layer,
            "neurons": len(columns["r"]),
            "dead": int(report.column("dead")[span].sum()),
            "encodes": int(rules.encodes(columns).sum()),
            "used": int(rules.used(columns).sum()),
            "needed": int(rules.needed(columns).sum()),
            "silenced": int(np.isfinite(report.column("ablation")[span]).sum()),
            "class": int(by_class.sum()),
        })  # fmt: skip
    return found


def claimed(report: NeuronReport) -> list[Row]:
    """Every neuron of which something is claimed, in the order in which a report shows them."""
    told = {(row["layer"], row["unit"]): row for row in rows_of(report, "words", "neuron")}
    columns = {"r": report.column("r"), **report.columns}
    claims = {name: getattr(rules, name)(columns) for name in ("encodes", "used", "needed")}
    place = {row.name: i for i, row in enumerate(report.rows)}
    found = []
    for row in report.shown(len(report.rows)):
        made = [name for name, of in claims.items() if of[place[row.name]]]
        word = told.get((row.layer, row.unit), {})
        if made:
            kept = ("r", "r_low", "r_high", "r_within_class", "attribution", "ablation",
                    "ablation_advantage", "ablation_shared")  # fmt: skip
            found.append({
                "neuron": row.name,
                "claims": made,
                "verdict": row.verdict,
                "word": word.get("word"),
                "advantage_word": word.get("advantage_word"),
                **{name: plain(getattr(row, name)) for name in kept},
            })  # fmt: skip
    return found


def words(report: NeuronReport) -> Row:
    """How many neurons have a word, which words, and those with a word of the advantage."""
    every = rows_of(report, "words", "neuron")
    return {
        "given": sum(row["word"] is not None for row in every),
        "most": Counter(row["word"] for row in every if row["word"]).most_common(6),
        "advantage": [row for row in every if row["advantage_word"]],
    }


def matches(report: NeuronReport) -> Row:
    """How the neurons of a layer match those of the network after its first epoch."""
    every = rows_of(report, "matches", "neuron")
    return {
        layer: {
            "r": middle(row["r"] for row in every if row["layer"] == layer),
            "untrained": middle(row["untrained"] for row in every if row["layer"] == layer),
        }
        for layer in report.layers
    }


def middle(values: Any) -> float | None:
    """The median of what is known."""
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def rows_of(report: NeuronReport, study: str, table: str) -> list[Row]:
    """A table of a study as plain data, a dict for each row; empty where it was not measured."""
    finding = report.studies[study]
    if table not in [each.name for each in finding.tables]:
        return []
    values = finding.table(table).values
    return [
        {name: plain(column[i]) for name, column in values.items()}
        for i in range(len(finding.table(table)))
    ]


def plain(value: Any) -> Any:
    """A number or a text for JSON: None is undefined."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bool):
        return yes_no(value)
    return None if isinstance(value, float) and not np.isfinite(value) else value
