"""No file imports what imports it, not even for the sake of types."""

from __future__ import annotations

import grimp
import pytest

# The one way back up: `report.export(path)` is where a user looks for it.
DOOR = ("lightning_neurocorr.report.table", "lightning_neurocorr.inspector.export")


def circles(imports: dict[str, set[str]]) -> set[str]:
    """What is in a circle, or between two: nobody imports it, or it imports nothing, is out."""
    left = set(imports)
    while True:
        ends = {
            name
            for name in left
            if not imports[name] & left or not any(name in imports[other] for other in left)
        }
        if not ends:
            return left
        left -= ends


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    graph = grimp.build_graph("lightning_neurocorr", cache_dir=None)
    return {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}


def test_there_is_no_circle_but_through_the_door(imports: dict[str, set[str]]) -> None:
    importer, imported = DOOR
    assert imported in imports[importer]
    assert circles({**imports, importer: imports[importer] - {imported}}) == set()


def test_circles_are_seen(imports: dict[str, set[str]]) -> None:
    assert set(DOOR) <= circles(imports)
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == {"b", "c"}
