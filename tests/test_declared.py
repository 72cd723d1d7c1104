"""Columns are declared once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_neurocorr
from lightning_neurocorr.report import COLUMNS, SMALL_IS_STRONG, NeuronRow
from lightning_neurocorr.report.declared import FORMATS, Column
from lightning_neurocorr.report.neuron import DECLARED


def test_small_values_are_strong_where_small_means_strong() -> None:
    strong = {kind: Column("x", "What.", format=kind).small_is_strong for kind in FORMATS}
    assert [name for name, small in strong.items() if small] == ["small", "step"]
    assert Column("place", "Its place.", unit="rank", format="count").small_is_strong


def test_a_column_says_what_it_is_and_how_it_is_written() -> None:
    with pytest.raises(ValueError, match=r"one of number, signed, small, .* but got 'p'"):
        Column("x", "What.", format="p")
    with pytest.raises(ValueError, match="to be texts, but got 'x' and ''"):
        Column("x", "")


def test_every_column_says_what_it_is_in_a_plain_sentence() -> None:
    for column in DECLARED.values():
        assert column.meaning.endswith("."), column
        assert column.meaning[0].isupper() or column.meaning.split()[0] in {"r", "q", "p"}, column
    assert set(COLUMNS) == DECLARED.keys() - {"layer", "unit", "dead", "verdict"}
    named = {name for name in COLUMNS if name.startswith(("p_", "q_")) or name[-2:] in ("_p", "_q")}
    assert named | {"risen_at", "rank_before"} == SMALL_IS_STRONG


def test_a_row_is_built_by_name() -> None:
    row = NeuronRow(layer="a", unit=3, dead=False, verdict="")
    assert row.name == "a:3"
    assert row.r != row.r
    with pytest.raises(TypeError, match="takes 1 positional argument"):
        NeuronRow("a", 3)  # type: ignore[misc]


# Adds one column to the package that it finds first, and says where it came out.
REHEARSAL = """
import json, sys
import numpy as np
from lightning_neurocorr.inspector.findings import described_column
from lightning_neurocorr.report.neuron import DECLARED
from lightning_neurocorr.report import NeuronReport, NeuronRow
from lightning_neurocorr.show.markdown import markdown
sys.path.insert(0, sys.argv[1])
from columns_table import table
columns = {"r": np.array([0.3, 0.2]), "mood": np.array([0.125, 0.5])}
report = NeuronReport(("a",), (2,), columns).save("report.npz")
report = NeuronReport.load(report)
print(json.dumps({
    "row": report.rows[0].mood,
    "missing": str(NeuronReport(("a",), (1,), {"r": np.array([0.1])}).rows[0].mood),
    "top": [row.unit for row in report.top(2, "mood")],
    "dataframe": report.to_dataframe()["mood"].tolist(),
    "list": str(report.top(2)),
    "notebook": report.top(2)._repr_html_(),
    "tensorboard": markdown(report),
    "microscope": described_column(DECLARED["mood"]),
    "help": NeuronRow.__doc__,
    "page": table(),
}))
"""
MOOD = """    mood: float = column(
        "How it feels.", unit="sighs", format="signed", null="0", shown=(LIST, TENSORBOARD)
    )
"""


def test_a_new_column_is_declared_in_one_file(tmp_path: Path) -> None:
    source = Path(lightning_neurocorr.__file__).parent
    copy = tmp_path / source.name
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    declarations = copy / "report" / "neuron.py"
    before, mark, after = declarations.read_text().partition("    dead: bool = ")
    declarations.write_text(before + MOOD + mark + after)
    done = subprocess.run(
        [sys.executable, "-c", REHEARSAL, str(source.parent / "docs")],
        check=False, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["row"], found["missing"], found["top"]) == (0.125, "nan", [1, 0])
    assert found["dataframe"] == [0.125, 0.5]
    for view in ("list", "notebook", "tensorboard"):
        assert "mood" in found[view], view
        assert "+0.125" in found[view], view
    described = {"name": "mood", "title": "mood", "meaning": "How it feels."}
    assert found["microscope"] == described | {"unit": "sighs", "format": "signed"}
    assert "mood: How it feels." in found["help"]
    assert "| `mood` | How it feels. | sighs | 0 |" in found["page"]
