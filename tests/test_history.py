"""What is kept of earlier validations."""

import io
import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from helpers import make_report

from lightning_neurocorr import history as module
from lightning_neurocorr.history import HistoryEntry, jaccard, rise, trajectory
from lightning_neurocorr.report import Outcomes

NAN = math.nan


def entries(*rows: list[float], layer: str = "a") -> list[HistoryEntry]:
    """One entry per list of r, each knowing the one before."""
    found: list[HistoryEntry] = []
    for i, r in enumerate(rows):
        report = make_report({layer: len(r)}, {"r": r}, validation=i, step=10 * i, epoch=i)
        found.append(HistoryEntry.from_report(report, found[-1] if found else None, top_k=3))
    return found


def test_an_entry_is_the_part_of_the_report_that_is_kept() -> None:
    outcomes = Outcomes(5, 4, 3, 2, 0.5)
    r = [0.1, NAN, -0.3, 0.9, 0.2]
    report = make_report(
        {"a": 3, "b": 2}, {"r": r}, validation=4, step=50, epoch=3, outcomes=outcomes
    )
    entry = HistoryEntry.from_report(report, top_k=2)
    assert (entry.validation, entry.step, entry.epoch) == (4, 50, 3)
    assert (entry.outcomes, entry.layers, entry.sizes) == (outcomes, ("a", "b"), (3, 2))
    assert entry.r.dtype == np.float32
    assert entry.index is None
    assert entry.top == {"a": (0, 2), "b": (0, 1)}
    assert all(math.isnan(value) for value in entry.stability.values())
    for layer, unit, expected in zip("aaabb", (0, 1, 2, 0, 1), r, strict=True):
        assert entry.r_of(layer, unit) == pytest.approx(expected, nan_ok=True)
    for layer, unit in (("c", 0), ("a", 3), ("a", -1), ("b", 2)):
        assert math.isnan(entry.r_of(layer, unit))


@pytest.mark.parametrize(
    ("a", "b", "index"),
    [
        ([1, 2, 3], [3, 2, 1], 1), ([1, 2], [3], 0), ([1, 2, 3], [2, 3, 4], 0.5),
        ([], [1], NAN), ([1], [], NAN), ([], [], NAN),
    ],
)  # fmt: skip
def test_jaccard_index(a: list[int], b: list[int], index: float) -> None:
    assert jaccard(a, b) == pytest.approx(index, nan_ok=True)


def test_stability_compares_top_lists_of_neighbours() -> None:
    first, second, third = entries(
        [0.9, 0.8, 0.7, 0.1, 0.0, -0.1],
        [0.9, 0.8, 0.0, 0.7, 0.1, 0.0],
        [NAN] * 6,
    )
    assert math.isnan(first.stability["a"])
    assert second.stability["a"] == 2 / 4
    assert math.isnan(third.stability["a"])


def test_stability_of_a_layer_no_larger_than_the_list() -> None:
    """The list holds all neurons then, so only its better half can change."""
    same, other = entries([0.9, 0.1, 0.0], [0.9, 0.0, 0.1])[1], entries([0.9, 0.1], [0.1, 0.9])[1]
    assert same.top["a"] == (0, 2, 1)
    assert same.stability["a"] == pytest.approx(1 / 3)
    assert other.stability["a"] == 0


def test_stability_of_a_layer_that_is_new() -> None:
    old = HistoryEntry.from_report(make_report({"a": 2}))
    new = HistoryEntry.from_report(make_report({"a": 2, "b": 2}), old)
    assert new.stability["a"] == 1
    assert math.isnan(new.stability["b"])


def test_trajectories_over_layers_that_come_and_go() -> None:
    history = [*entries([0.1, 0.2]), *entries([0.5], layer="b"), *entries([0.3, 0.4])]
    np.testing.assert_allclose(trajectory(history, "a", 1), [0.2, NAN, 0.4], rtol=1e-6)
    assert len(trajectory([], "a", 0)) == 0


@pytest.mark.parametrize(
    ("r", "since"),
    [
        ([0.4], 0), ([0.1, 0.2, 0.4, 0.5], 2), ([0.5, 0.1, 0.5], 2), ([0.3, 0.25, 0.5], 0),
        ([NAN, 0.5], 1), ([0.5, NAN, 0.5], 2), ([-0.5, 0.5], 1), ([0.5, 0.0], None),
        ([0.5, -0.5], None), ([0.5, NAN], None), ([], None),
    ],
)  # fmt: skip
def test_rise_is_the_start_of_the_last_stretch_above_half(r: list[float], since: int) -> None:
    history = entries(*([value] for value in r))
    found = rise(history, "a", 0)
    assert found is (None if since is None else history[since])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits of a large model, at a size that a test can look at."""
    monkeypatch.setattr(module, "MAX_NEURONS", 20)
    monkeypatch.setattr(module, "KEPT", 4)


def test_limits_of_large_models() -> None:
    assert module.MAX_NEURONS == 131_072
    assert module.KEPT == 4096


def test_of_a_large_model_the_strongest_neurons_are_kept(small: None) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.permutation(30) / 30.0 - 0.5, rng.permutation(30) / 30.0 - 0.5
    first[3] = NAN
    third = rng.permutation(30) / 30.0
    history = entries(first, second, third)
    kept: set[int] = set()
    for entry, r in zip(history, (first, second, third), strict=True):
        strongest = set(np.argsort(-np.nan_to_num(np.abs(r), nan=-1))[:4].tolist())
        # and those that were strongest at the previous validation, of what it had kept
        kept = strongest | set(sorted(kept, key=lambda i: -abs(previous[i]))[:4])
        assert entry.index is not None
        assert set(entry.index.tolist()) == kept
        assert (np.diff(entry.index) > 0).all()
        for i in range(30):
            expected = r[i] if i in kept else NAN
            assert entry.r_of("a", i) == pytest.approx(expected, nan_ok=True)
        assert len(entry.top["a"]) == 3
        previous = r


def test_a_large_model_whose_layers_change(small: None) -> None:
    (old,) = entries(np.linspace(-1, 1, 40))
    new = HistoryEntry.from_report(make_report({"b": 21}), old)
    assert len(new.index) == 4


def test_memory_of_a_long_run_of_a_large_model() -> None:
    r = np.random.default_rng(0).normal(size=140_000)
    first, second = entries(r, -r[::-1])
    assert first.r.nbytes + first.index.nbytes <= 12 * 4096
    assert second.r.nbytes + second.index.nbytes <= 2 * 12 * 4096


@pytest.mark.parametrize("limit", [2, 20])
def test_to_plain_data_and_back(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_NEURONS", limit)
    entry = entries([0.3, 0.2, NAN], [0.3, 0.1, -0.5])[1]
    state = {
        key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for key, value in entry.to_dict().items()
    }
    content = io.BytesIO()
    torch.save(state, content)
    content.seek(0)
    read = torch.load(content, weights_only=True)  # nothing but plain data and tensors
    read = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in read.items()}
    again = HistoryEntry.from_dict(read)
    for f in fields(HistoryEntry):
        if f.name in ("r", "index"):
            np.testing.assert_array_equal(getattr(again, f.name), getattr(entry, f.name))
        else:
            assert getattr(again, f.name) == getattr(entry, f.name), f.name
    assert again.r_of("a", 1) == entry.r_of("a", 1)
