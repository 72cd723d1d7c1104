"""Layers and sizes, and where their neurons lie."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_neurocorr.report.layout import Layout, spans

SIZES = {"a": 2, "empty": 0, "b": 3, "c": 1}


def slow(sizes: dict[str, int]) -> list[tuple[str, int]]:
    """Layer and unit of each neuron, one by one."""
    return [(layer, unit) for layer, size in sizes.items() for unit in range(size)]


@pytest.mark.parametrize("sizes", [SIZES, {}, {"one": 1}, {"empty": 0}, {"first": 0, "last": 4}])
def test_every_neuron_lies_where_counting_finds_it(sizes: dict[str, int]) -> None:
    layout, neurons = Layout.of(sizes), slow(sizes)
    assert len(layout) == len(neurons)
    assert layout.units.tolist() == [unit for _, unit in neurons]
    assert layout.repeated(layout.layers).tolist() == [layer for layer, _ in neurons]
    layers, units = layout.neurons(np.arange(len(neurons)))
    found = zip(layers.tolist(), units.tolist(), strict=True)
    assert [(layout.layers[layer], unit) for layer, unit in found] == neurons
    assert [layout.position(*neuron) for neuron in neurons] == list(range(len(neurons)))
    column = np.arange(len(neurons), dtype=float)
    parts = layout.split(column)
    for layer, size in sizes.items():
        at = [i for i, (name, _) in enumerate(neurons) if name == layer]
        assert parts[layer].tolist() == at
        assert list(range(len(neurons)))[layout.span(layer)] == at
        assert len(parts[layer]) == size
    np.testing.assert_array_equal(layout.joined(parts), column)


def test_a_layer_without_values_is_unknown() -> None:
    layout = Layout.of(SIZES)
    found = layout.joined({"b": np.array([1.0, 2.0, 3.0])})
    np.testing.assert_array_equal(found, [np.nan, np.nan, 1, 2, 3, np.nan])
    assert np.isnan(layout.unknown()).tolist() == [True] * 6


def test_parts_share_the_memory_of_the_column() -> None:
    column = np.zeros(6)
    Layout.of(SIZES).split(column)["b"][:] = 1
    assert column.tolist() == [0, 0, 1, 1, 1, 0]


def test_what_is_not_there_is_named() -> None:
    layout = Layout.of({"features.0": 2, "head": 1})
    with pytest.raises(ValueError, match=r"one of the 2 layers .* 'features'. Close ones are 'fea"):
        layout.span("features")
    with pytest.raises(ValueError, match=r"`unit` of 'head' .* in \[0, 1\), but got 1"):
        layout.position("head", 1)
    with pytest.raises(ValueError, match=r"in \[0, 1\), but got 0.0"):
        layout.position("head", 0.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="different names with one entry of `sizes` each"):
        Layout(("a", "a"), (1, 1))
    with pytest.raises(ValueError, match="different names with one entry of `sizes` each"):
        Layout(("a",), ())
    assert spans([]) == []
