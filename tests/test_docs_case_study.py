"""The case study says what was measured: tables and prose have the numbers of a run."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "case_study.md").read_text(encoding="utf-8")
FOUND = json.loads((DOCS / "case_study.json").read_text(encoding="utf-8"))

# Of the data, of the network and of the settings: not measured.
GIVEN = {"70,000", "28", "14", "30,000", "6,000", "10,000", "64", "1", "2", "3"}


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(DOCS))
    return importlib.import_module("case_study_tables")


def numbers_in(found: Any) -> Iterator[float]:
    """Every number of plain data."""
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, list):
        for each in found:
            yield from numbers_in(each)
    elif isinstance(found, (int, float)):
        yield float(found)


def prose() -> str:
    """The page without code, tables, links, and what another benchmark says."""
    text = re.sub(r"<!-- (table|replication).*?<!-- end -->", " ", PAGE, flags=re.DOTALL)
    text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", " ", text, flags=re.DOTALL)
    return "\n".join(line for line in text.splitlines() if not line.startswith("|"))


def test_the_tables_of_the_page_are_those_of_the_numbers(tables: Any) -> None:
    assert tables.filled(PAGE, tables.tables(FOUND)) == PAGE
    assert set(re.findall(r"<!-- table: (\w+) -->", PAGE)) == set(tables.TABLES)


def test_every_number_in_the_prose_was_measured() -> None:
    measured = set(numbers_in(FOUND))
    written = {f"{value:,.0f}" for value in measured}
    written |= {f"{value:.{digits}f}" for value in measured for digits in (2, 3)}
    written |= {f"{100 * value:.{digits}f}" for value in measured for digits in (0, 1)}
    told = re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?!\w)", prose())
    assert len(told) > 20
    unknown = [number for number in told if number.rstrip(",") not in written | GIVEN]
    assert not unknown, f"in the page, but not in case_study.json: {unknown}"


def test_what_the_page_says_of_single_neurons_is_so() -> None:
    neurons = {row["neuron"]: row for row in FOUND["neurons"]}
    encoding = [name for name, row in neurons.items() if "encodes" in row["claims"]]
    assert encoding == ["net.conv3:12"], "the page describes its pictures"
    assert neurons["net.conv3:12"]["advantage_word"] == "high edges"
    assert neurons["net.conv3:21"]["claims"] == ["used"]
    assert FOUND["mirrored"]["name"] == "net.conv3:21"
    seen = FOUND["mirrored"]["one"]
    assert seen["left"] < seen["whole"] < seen["right"]
    assert "net.logits:4" not in neurons
    needed = [row for row in neurons.values() if "needed" in row["claims"]]
    assert all(row["neuron"].startswith("net.conv1:") for row in needed)
    assert all(row["attribution"] < 0 and row["word"] == "high brightness" for row in needed)
    assert not FOUND["groups"]
    assert {row["needed"] for row in FOUND["silenced"]} == {"no"}
    assert sum(map(sum, FOUND["placebo"].values())) == 0
    assert FOUND["outcomes"]["p"] < 1e-200
