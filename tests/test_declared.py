"""Columns are declared once."""

from __future__ import annotations

import pytest

from lightning_neurocorr.report.declared import FORMATS, Column


def test_small_values_are_strong_where_small_means_strong() -> None:
    strong = {kind: Column("x", "What.", format=kind).small_is_strong for kind in FORMATS}
    assert [name for name, small in strong.items() if small] == ["small", "step"]
    assert Column("place", "Its place.", unit="rank", format="count").small_is_strong


def test_a_column_says_what_it_is_and_how_it_is_written() -> None:
    with pytest.raises(ValueError, match=r"one of number, signed, small, .* but got 'p'"):
        Column("x", "What.", format="p")
    with pytest.raises(ValueError, match="to be texts, but got 'x' and ''"):
        Column("x", "")
