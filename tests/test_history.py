"""What is kept of earlier validations."""

import io
import math
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_neurocorr import BatchBaseline, NeuronAdvantage
from lightning_neurocorr.report import NeuronReport, Outcomes
from lightning_neurocorr.report import history as module
from lightning_neurocorr.report.history import HistoryEntry, jaccard, trajectory, with_history
from tests.helpers import make_report
from tests.paper_model import PaperModule, paper_loader, paper_trainer

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


@pytest.mark.parametrize("k", [1, 3, 16])
def test_top_lists_are_those_of_the_report(k: int) -> None:
    """Ties, neurons and a whole layer without r; the report ranks row by row."""
    r = np.random.default_rng(3).integers(-3, 4, 40) / 4
    r[[0, 7, 8, 9, 31]] = NAN
    r[10:14] = NAN
    report = make_report({"a": 10, "b": 4, "c": 1, "d": 25}, {"r": r})
    entry = HistoryEntry.from_report(report, top_k=k)
    for layer in report.layers:
        assert entry.top[layer] == tuple(row.unit for row in report.top(k, layer=layer))
    assert entry.top["b"] == ()


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
        ([0.5, -0.5], None), ([0.5, NAN], None),
    ],
)  # fmt: skip
def test_a_neuron_rose_at_the_start_of_the_last_stretch_above_half(
    r: list[float], since: int
) -> None:
    history = entries(*([value] for value in r))
    row = with_history(make_report({"a": 1}, {"r": r[-1:]}, step=10 * len(r)), history).rows[0]
    assert row.risen_at == pytest.approx(NAN if since is None else 10 * since, nan_ok=True)


def slow_risen_at(seen: list[dict[str, np.ndarray]], layer: str, unit: int) -> float:
    """The index of a validation, by going through all r of one neuron; layers come and go."""
    r = [float(found[layer][unit]) if layer in found else NAN for found in seen]
    if not r[-1] > 0:
        return NAN
    start = len(r) - 1
    while start and r[start - 1] >= r[-1] / 2:
        start -= 1
    return start


def slow_rank(found: dict[str, np.ndarray], layer: str, unit: int) -> float:
    if layer not in found or math.isnan(found[layer][unit]):
        return NAN
    r = found[layer]
    return 1 + sum(1 for i, v in enumerate(r) if v > r[unit] or (v == r[unit] and i < unit))


def random_history(
    validations: int, sizes: dict[str, int], seed: int
) -> tuple[list[dict[str, np.ndarray]], list[HistoryEntry], NeuronReport]:
    """r of every neuron at each validation, ties and NaN among them; the entries; the report."""
    rng = np.random.default_rng(seed)
    seen, history, report = [], [], make_report({})
    for i in range(validations):
        names = [name for name in sizes if i == validations - 1 or rng.random() < 0.8]
        r = {name: rng.integers(-4, 9, sizes[name]).astype(np.float32) / 16 for name in names}
        for values in r.values():
            values[rng.random(len(values)) < 0.1] = NAN
        columns = {"r": np.concatenate([*r.values(), np.zeros(0)])}
        report = make_report({n: sizes[n] for n in names}, columns, validation=i, step=7 * i)
        history.append(HistoryEntry.from_report(report, history[-1] if history else None))
        seen.append(r)
    return seen, history, report


@pytest.mark.parametrize("validations", [1, 2, 7])
def test_history_in_a_report_against_one_neuron_at_a_time(validations: int) -> None:
    sizes = {"a": 17, "b": 1, "c": 30, "empty": 0}
    seen, history, report = random_history(validations, sizes, seed=validations)
    found = with_history(report, history)
    for row in found.rows:
        expected = 7 * slow_risen_at(seen, row.layer, row.unit)
        assert row.risen_at == pytest.approx(expected, nan_ok=True)
        rank = slow_rank(seen[-2], row.layer, row.unit) if validations > 1 else NAN
        assert row.rank_before == pytest.approx(rank, nan_ok=True)
    stability = {summary.layer: summary.stability for summary in found.summaries}
    assert stability == pytest.approx(dict(history[-1].stability), nan_ok=True)
    if validations > 1:
        earliest = found.top(1, "risen_at")[0]
        assert earliest.risen_at == np.nanmin(found.column("risen_at"))
    np.testing.assert_array_equal(found.column("r"), report.column("r"))


@pytest.mark.parametrize("seed", range(8))
def test_what_a_large_model_says_of_its_history_is_true(small: None, seed: int) -> None:
    """Neurons that were not kept leave gaps: no value, and never a wrong one."""
    sizes = {"a": 20, "b": 15}
    seen, history, report = random_history(5, sizes, seed)
    found = with_history(report, history)
    assert history[-1].index is not None
    for row in found.rows:
        if not math.isnan(row.risen_at):
            assert row.risen_at == 7 * slow_risen_at(seen, row.layer, row.unit)
        if not math.isnan(row.rank_before):
            assert row.rank_before == slow_rank(seen[-2], row.layer, row.unit)


def test_history_of_a_large_model_reaches_back_where_a_neuron_was_surely_weak(small: None) -> None:
    """At the first validation, neuron 5 was none of the strongest four."""
    late = np.r_[np.zeros(5), 0.9, np.zeros(24)]
    for strongest, since in ((0.6, NAN), (0.4, 10.0)):
        early = np.r_[np.full(4, strongest), np.zeros(26)]  # may it have been at 0.45?
        history = entries(early, late, late)
        found = with_history(make_report({"a": 30}, {"r": late}), history).row("a", 5)
        assert found.risen_at == pytest.approx(since, nan_ok=True)


def test_the_callback_adds_history_to_its_report(tmp_path: Path) -> None:
    """Nothing changes between these two validations: neurons rose at the first, ranks stay."""
    callback = NeuronAdvantage(BatchBaseline(2), target=1, visualizer=None)
    trainer = paper_trainer(callback, num_sanity_val_steps=0)
    trainer.fit(PaperModule(), paper_loader(), paper_loader())
    first, last = callback.history
    found = NeuronReport.load(callback.report.save(tmp_path / "x"))  # type: ignore[union-attr]
    assert last.step > first.step
    for row in found.rows:
        assert row.risen_at == pytest.approx(first.step if row.r > 0 else NAN, nan_ok=True)
    for summary in found.summaries:
        ranked = found.top(100, layer=summary.layer)
        assert [row.rank_before for row in ranked] == list(range(1, len(ranked) + 1))
        assert summary.stability == 1
    table = found.to_dataframe()
    np.testing.assert_array_equal(table["risen_at"], found.column("risen_at"))


def test_a_history_that_is_of_another_report() -> None:
    report = make_report({"a": 2})
    with pytest.raises(ValueError, match="to end with the entry of `report`, but got an empty"):
        with_history(report, [])
    with pytest.raises(ValueError, match=r"but got one with the layers \('b',\)"):
        with_history(report, entries([0.1], layer="b"))


def test_two_hundred_validations_of_many_neurons_take_a_moment() -> None:
    rng = np.random.default_rng(0)
    for neurons in (module.MAX_NEURONS, 1_000_000):
        history: list[HistoryEntry] = []
        base = rng.normal(size=neurons) / 10
        for _ in range(4):
            report = make_report({"a": neurons}, {"r": base + rng.normal(size=neurons) / 50})
            history.append(HistoryEntry.from_report(report, history[-1] if history else None))
        start = time.process_time()
        with_history(report, history * 50)
        assert time.process_time() - start < 5


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
    first, second = rng.permutation(30) / 30.0 - 0.49, rng.permutation(30) / 30.0 - 0.49  # no ties
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
