"""Pages for people who extend the package: code runs, what they say of the code is true."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr.report import Column, Finding, Table
from lightning_neurocorr.show import ways
from lightning_neurocorr.show.loggers import log_findings, log_sheets, log_table

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "lightning_neurocorr"


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


class Notebook:
    def __init__(self) -> None:
        self.pages: dict[str, Any] = {}

    def add_page(self, name: str, content: Any) -> None:
        self.pages[name] = content


def test_the_page_on_your_own_parts_runs_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "WAYS", ways.WAYS)  # the page adds to it
    torch.manual_seed(0)
    x = torch.rand(48, 1, 6, 6)
    y = (x[:, 0, 0, 0] > 0.5).long()
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    names: dict[str, Any] = {"model": model, "loader": DataLoader(TensorDataset(x, y), 16)}
    blocks = re.findall(r"```python\n(.*?)```", page("your_own.md"), flags=re.DOTALL)
    reports = []
    for block in blocks:
        exec(compile(block, "your_own.md", "exec"), names)
        reports.append(names.get("report"))

    right, rule = model(x).argmax(1) == y, (x.mean((1, 2, 3)) > 0.5).long() == y
    assert reports[0].outcomes.only_model == int((right & ~rule).sum())
    cost = [(5 if int(y[i]) else 1) * (int(right[i]) - int(rule[i])) for i in range(48)]
    assert names["cost_saved"](model(x), names["brightness"]((x, y)), y).tolist() == cost
    assert names["closer"](torch.ones(2), torch.zeros(2), torch.tensor([3.0, 0])).tolist() == [
        1,
        -1,
    ]

    report = names["report"]
    panel = report.panels[0]
    with torch.no_grad():
        site = (model[1](model[0](x)) if panel.layer == "0" else model(x)).reshape(48, -1)
    weights = site.reshape(48, 4 if panel.layer == "0" else 2, -1)[:, panel.unit].mean(1)
    weights = weights - weights.min()
    expected = sum(w * image for w, image in zip(weights / weights.sum(), x, strict=True))
    torch.testing.assert_close(torch.from_numpy(panel.picture.image), expected)

    notebook = Notebook()
    log_table(report, [], [notebook], 2)
    assert notebook.pages["top"].startswith("2 of 6 neurons")
    assert log_sheets(report, [notebook], None) == []
    assert any(name.startswith("what neurons see/") for name in notebook.pages)
    table = Table("layer", (Column("layer", "Its name.", format="text"),), {"layer": ["a"]})
    report.studies["made up"] = Finding("Made up", tables=(table,))
    log_findings(report, [notebook])
    assert "a" in notebook.pages["neurocorr/studies/made_up/layer"]


def defined(file: Path) -> set[str]:
    """Functions and classes of a file, and methods as ``Class.method``."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            parts = [part for part in node.body if isinstance(part, ast.FunctionDef)]
            found |= {f"{node.name}.{part.name}" for part in parts}
    return found


def rooms() -> set[str]:
    """Folders and files of the package that are rooms."""
    found = (path for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py")
    return {path.stem for path in found if not path.name.startswith(("_", "."))}


LINKS = re.findall(r"\[`?([^\]`]+)`?\]\(\.\./(lightning_neurocorr[^)]*)\)", page("architecture.md"))


def test_the_page_on_architecture_has_a_paragraph_for_every_room() -> None:
    headings = re.findall(r"^### \[`(\w+)`\]", page("architecture.md"), flags=re.MULTILINE)
    assert sorted(headings) == sorted(rooms())
    assert [target for _, target in LINKS if not (ROOT / target).exists()] == []


def test_the_way_of_a_batch_names_what_there_is() -> None:
    steps = [(name, ROOT / target) for name, target in LINKS if target.endswith(".py")]
    functions = [(name, file) for name, file in steps if not name.endswith(".py")]
    assert len(functions) > 20
    assert [name for name, file in functions if name not in defined(file) | {file.stem}] == []


def test_the_picture_of_the_rooms_is_the_rule_that_is_checked() -> None:
    (picture,) = re.findall(r"```text\n(callback.*?)```", page("architecture.md"), flags=re.DOTALL)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (layers,) = re.findall(r'id = "rooms".*?\nlayers = \[\n(.*?)\n\]', project, flags=re.DOTALL)
    rule = [set(re.findall(r"\w+", line)) - {"__main__"} for line in layers.splitlines()]
    assert [set(line.split(" | ")) for line in picture.splitlines()] == rule
