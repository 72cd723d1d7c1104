"""Ablation, ranks, placebo and pictures are studies: their findings say what columns say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader, TensorDataset

import lightning_neurocorr
from lightning_neurocorr import (
    Ablation,
    Attribution,
    BatchBaseline,
    NeuronReport,
    Placebo,
    SecondPass,
    compare,
    studies,
)
from lightning_neurocorr.ablation import AblationStudy
from lightning_neurocorr.show.findings import finding_markdown
from lightning_neurocorr.studies import Column, Finding, Table
from lightning_neurocorr.studies.closer_look import studies_of
from lightning_neurocorr.validation.options import OWN_STUDIES, Options
from lightning_neurocorr.visualization import FeatureVisualizer
from tests.test_placebo import small_case

ASKED = {
    "ablation": Ablation(random_sets=20, sizes=(1, 2), singles=2, time_budget_s=None),
    "placebo": Placebo(draws=1),
    "second_pass": SecondPass(neurons=4, permutations=20),
    "visualizer": FeatureVisualizer(steps=1),
}


@pytest.fixture(scope="module")
def report() -> NeuronReport:
    model, loader, answers = small_case(600)
    dataset: Any = loader.dataset
    x, y = dataset.tensors[:2]
    data = DataLoader(TensorDataset(x, y, answers), 64)
    return compare(model, data, BatchBaseline(2), target=1, **ASKED)


@pytest.mark.parametrize("name", ["Words", "Slices", "Matches", "Snapshot", "Groups", "Readout"])
def test_built_in_studies_can_be_imported_with_the_protocol(name: str) -> None:
    assert getattr(studies, name) is getattr(lightning_neurocorr, name)


def test_each_has_its_finding_under_its_reserved_name(report: NeuronReport) -> None:
    assert set(report.studies) == set(OWN_STUDIES)
    options = Options(BatchBaseline(2), attribution=Attribution(), **ASKED)
    assert [study.name for study in studies_of(options)] == [
        "placebo", "ablation", "second_pass", "pictures",
    ]  # fmt: skip
    states = {name: finding.state for name, finding in report.studies.items()}
    assert states.pop("pictures") == "refused"  # the inputs are no images
    assert set(states.values()) == {"measured"}


def test_the_curves_of_an_ablation_are_shown(report: NeuronReport) -> None:
    finding, study = report.studies["ablation"], AblationStudy.from_dict(report.study)
    curves = finding.to_dataframe()
    for row in curves.itertuples():
        (point,) = (p for p in study.points if (p.layer, p.size) == (row.layer, row.size))
        assert row.beyond == point.effect.beyond
        assert row.random == point.control.beyond
        assert row.needed == point.beats_random
    assert len(curves) == len(study.points) > 2
    singles = finding.to_dataframe("singles")
    for row in singles.itertuples():
        assert row.ablation == report.row(row.layer, int(row.unit)).ablation
    image = finding.figures[0].image
    assert image.dtype == np.uint8
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 10  # something is drawn


def test_ranks_and_placebo_say_what_the_report_says(report: NeuronReport) -> None:
    ranks = report.studies["second_pass"].to_dataframe()
    assert len(ranks) == 4
    for row in ranks.itertuples():
        assert row.auroc == report.row(row.layer, int(row.unit)).auroc
    assert report.studies["placebo"].headline == report.placebo.sentence
    assert report.studies["placebo"].numbers["encodes"] == report.placebo.called["encodes"][0]


def test_a_file_keeps_what_pages_call_numbers(report: NeuronReport, tmp_path: Path) -> None:
    kept = NeuronReport.load(report.save(tmp_path / "a.npz")).studies
    assert kept["second_pass"].labels == {"held": "neurons that hold"}
    assert {name: found.labels for name, found in report.studies.items()} == {
        name: found.labels for name, found in kept.items()
    }


def crafted(report: NeuronReport, path: Path, **changed: np.ndarray) -> Path:
    """The file of a report with some arrays replaced."""
    with np.load(report.save(path)) as archive:
        arrays = {name: archive[name] for name in archive}
    np.savez(path, **{**arrays, **changed})
    return path if path.suffix else path.with_suffix(".npz")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"state": "measured"', b'"state": "invented"'),
        (b'"per": "layer"', b'"per": "planet"'),
        (b'"format": "count"', b'"format": "bytes"'),
        (b'"title": "Ablation"', b'"title": ["lation"]'),
        (b'"numbers": {"layers_needed"', b'"numbers": {"tables_needed"'),
    ],
)
def test_a_crafted_finding_is_refused(
    report: NeuronReport, tmp_path: Path, old: bytes, new: bytes
) -> None:
    with np.load(report.save(tmp_path / "a.npz")) as archive:
        meta = archive["meta"].tobytes()
    assert old in meta
    path = crafted(
        report, tmp_path / "b.npz", meta=np.frombuffer(meta.replace(old, new), dtype=np.uint8)
    )
    if b"tables_needed" in new:  # an honest change of a name is no attack
        assert "tables_needed" in NeuronReport.load(path).studies["ablation"].numbers
        return
    with pytest.raises(ValueError, match="a report written by"):
        NeuronReport.load(path)


def test_a_text_that_points_outside_is_refused(report: NeuronReport, tmp_path: Path) -> None:
    with np.load(report.save(tmp_path / "a.npz")) as archive:
        texts = [n for n in archive if n.startswith("study/") and archive[n].dtype == np.int32]
        worse = archive[texts[0]] + 1000
    path = crafted(report, tmp_path / "b.npz", **{texts[0]: worse})
    with pytest.raises(ValueError, match="a text is not in the file"):
        NeuronReport.load(path)


def test_a_file_of_before_loads_without_findings(report: NeuronReport, tmp_path: Path) -> None:
    import json

    with np.load(report.save(tmp_path / "a.npz")) as archive:
        meta = json.loads(archive["meta"].tobytes())
    del meta["studies"]
    meta["schema"] = 3
    old = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    assert NeuronReport.load(crafted(report, tmp_path / "b.npz", meta=old)).studies == {}


def test_tensorboards_table_of_a_finding_has_six_columns_and_no_empty_rows() -> None:
    declared = tuple(Column(f"c{i}", f"Number {i}.") for i in range(9))
    rows, none = ({c.name: np.zeros(n) for c in declared} for n in (2, 0))
    shown = finding_markdown(Finding("A", tables=(Table("group", declared, rows),)))
    heads = next(line for line in shown.splitlines() if line.startswith("| c0"))
    assert heads.count("|") == 7
    assert "further columns: c6, c7, c8." in shown
    empty = Finding("A", "What?", headline="A: nothing.", tables=(Table("group", declared, none),))
    assert "|" not in finding_markdown(empty)
    assert str(empty) == "A: nothing.\n\nWhat?\n\ngroup: none"
    assert empty._repr_html_() == "<p><b>A</b>: nothing.</p><p>What?</p><p>group: none</p>"
