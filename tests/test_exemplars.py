"""The strongest samples of each neuron, against sorting everything at once."""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_neurocorr.exemplars import (
    UNKNOWN,
    Exemplar,
    Exemplars,
    MatchedSamples,
    entries,
)
from lightning_neurocorr.functional import BOTH, NEITHER, ONLY_BASELINE, ONLY_MODEL
from lightning_neurocorr.functional.hashing import hashed

DEVICES = [
    "cpu",
    "cpu, inserted",  # the way of large batches
    "cpu, dense",  # the way of a GPU
    pytest.param("cuda", marks=pytest.mark.gpu),
]


def brute_force(x: Tensor, positions: Tensor, keep: Tensor, k: int, unit: int) -> list[tuple]:
    """(activation, position) of the k strongest, by sorting Python tuples."""
    found = [
        (-float(x[i, unit]), int(positions[i]))
        for i in range(len(x))
        if keep[i] and not math.isnan(x[i, unit])
    ]
    return [(-value, position) for value, position in sorted(found)[:k]]


def found(exemplars: list[Exemplar]) -> list[tuple]:
    return [(exemplar.activation, exemplar.position) for exemplar in exemplars]


def random_samples(n: int, d: int, seed: int, ties: bool) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=rng)
    if ties:
        x = x.round()  # -0.0 and 0.0 both occur and are equal
        x[:, 0] = x[:, 0].relu()
    x[torch.rand(n, d, generator=rng) < 0.02] = torch.nan
    x[torch.rand(n, d, generator=rng) < 0.02] = -torch.inf
    x[torch.rand(n, d, generator=rng) < 0.01] = torch.inf
    return {
        "activations": x,
        "positions": torch.randperm(10 * n, generator=rng)[:n] - n,
        "outcome": torch.randint(4, (n,), generator=rng),
        "target": torch.randint(-1, 5, (n,), generator=rng),
    }


def batches(samples: dict[str, Tensor], cuts: list[int], order: Tensor) -> list[dict[str, Tensor]]:
    parts = order.tensor_split(cuts)
    return [{name: values[part] for name, values in samples.items()} for part in parts]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("n", "k", "seed"), [(60, 4, 0), (200, 8, 1), (3, 5, 2), (90, 1, 3)])
def test_exemplars_are_those_that_sorting_finds(
    n: int, k: int, seed: int, ties: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cpu, inserted":
        device = "cpu"
        monkeypatch.setattr("lightning_neurocorr.exemplars.insertion._SORTED", 0)
    if device == "cpu, dense":
        device = "cpu"
        for room in ("entries", "insertion"):
            name = f"lightning_neurocorr.exemplars.{room}.may_wait"
            monkeypatch.setattr(name, lambda tensor: False)
    samples = random_samples(n, 6, seed, ties)
    rng = np.random.default_rng(seed)
    cuts = sorted(rng.integers(0, n, 7).tolist())  # some batches are empty, some of one sample
    for order in (torch.arange(n), torch.as_tensor(rng.permutation(n))):
        exemplars = Exemplars(6, k).to(device)
        for batch in batches(samples, cuts, order):
            exemplars.update(**{name: values.to(device) for name, values in batch.items()})
        ranking = exemplars.compute()
        x, positions, outcome, target = samples.values()
        for unit in range(6):
            everything = torch.ones(n, dtype=torch.bool)
            wins = outcome == ONLY_MODEL
            assert found(ranking.top(unit)) == brute_force(x, positions, everything, k, unit)
            assert found(ranking.only_model(unit)) == brute_force(x, positions, wins, k, unit)
            for exemplar in ranking.top(unit) + ranking.only_model(unit):
                (row,) = (positions == exemplar.position).nonzero()[0].tolist()
                assert (exemplar.target, exemplar.outcome) == (target[row], outcome[row])


def test_what_is_kept_is_the_same_however_samples_are_split() -> None:
    samples = random_samples(300, 5, seed=4, ties=True)
    states = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        exemplars, matched = Exemplars(5, 6), MatchedSamples(4, 3)
        order = torch.as_tensor(rng.permutation(300))
        for batch in batches(samples, sorted(rng.integers(0, 300, 9).tolist()), order):
            exemplars.update(**batch)
            matched.update(batch["positions"], batch["outcome"], batch["target"])
        states.append((exemplars.compute().entries, matched.compute().entries))
    for found, kept in states[1:]:
        assert torch.equal(found, states[0][0])
        assert torch.equal(kept, states[0][1])


def test_neurons_are_merged_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = random_samples(90, 7, seed=2, ties=True)
    parts = [Exemplars(7, 3) for _ in range(3)]
    for part, batch in zip(parts, batches(samples, [30, 60], torch.randperm(90)), strict=True):
        part.update(**batch)
    states = torch.stack([part.state for part in parts])
    whole = entries.merge(states)
    for step in (1, 2, 7, 8):
        monkeypatch.setattr(entries, "_MERGED", step)
        assert entries.merge(states).equal(whole)


def test_metrics_that_do_not_fit_are_not_merged() -> None:
    for metric, other in (
        (Exemplars(3, 2), Exemplars(4, 2)),
        (Exemplars(3, 2), Exemplars(3, 1)),
        (MatchedSamples(3, 2), MatchedSamples(2, 2)),
    ):
        with pytest.raises(ValueError, match=r"`incoming_state` to hold a state of shape \(3, "):
            metric.merge_state(other)
        with pytest.raises(ValueError, match=r"but got \(3, .*Merge metrics of one layer only"):
            metric.merge_state({"state": other.state})
        with pytest.raises(ValueError, match=r"but got \[\]"):
            metric.merge_state({})


@pytest.mark.parametrize("way", ["sync", "merge_state"])
def test_processes_find_what_one_process_finds(way: str) -> None:
    samples = random_samples(120, 4, seed=5, ties=True)
    whole = Exemplars(4, 5)
    whole.update(**samples)
    parts = [Exemplars(4, 5) for _ in range(3)]
    for part, batch in zip(parts, batches(samples, [50, 51], torch.randperm(120)), strict=True):
        part.update(**batch)
    if way == "merge_state":
        joined = parts[0]
        for part in parts[1:]:
            joined.merge_state(part)
    else:
        joined = Exemplars(
            4,
            5,
            distributed_available_fn=lambda: True,
            dist_sync_fn=lambda own, group: [own, *(part.state for part in parts[1:])],
        )
        joined.update(**batches(samples, [50], torch.arange(120))[0])
        joined.state = parts[0].state
    assert torch.equal(joined.compute().entries, whole.compute().entries)


def test_ties_go_to_the_lower_position_and_nan_never_counts() -> None:
    exemplars = Exemplars(1, 2)
    exemplars.update(torch.tensor([[1.0], [1.0], [torch.nan]]), torch.tensor([7, 5, 1]))
    exemplars.update(torch.tensor([[1.0], [0.5]]), torch.tensor([6, 0]))
    assert exemplars.compute().top(0) == [
        Exemplar(5, 1.0, -1, UNKNOWN),
        Exemplar(6, 1.0, -1, UNKNOWN),
    ]
    assert exemplars.compute().only_model(0) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_is_compared_in_float32(dtype: torch.dtype) -> None:
    x = torch.randn(50, 3, dtype=torch.float64).to(dtype)
    exemplars = Exemplars(3, 4).to(torch.bfloat16)  # a cast of the module leaves positions exact
    exemplars.update(x, torch.arange(50) + 2**60)
    for unit in range(3):
        expected = brute_force(x.float(), torch.arange(50) + 2**60, torch.ones(50), 4, unit)
        assert found(exemplars.compute().top(unit)) == expected


def test_works_in_and_out_of_inference_mode_and_touches_no_graph() -> None:
    samples = random_samples(40, 3, seed=6, ties=False)
    plain, mixed = Exemplars(3, 4), Exemplars(3, 4)
    plain.update(**samples)
    with torch.inference_mode():
        mixed.update(**random_samples(40, 3, seed=7, ties=False))
        mixed.reset()
        first, second = batches(samples, [20], torch.arange(40))
    mixed.update(**first)
    with torch.inference_mode():
        mixed.update(**second)
    assert torch.equal(mixed.compute().entries, plain.compute().entries)
    needs_grad = Exemplars(3, 4)
    needs_grad.update(samples["activations"].clone().requires_grad_(), samples["positions"])
    assert not needs_grad.state.requires_grad


def test_exemplars_survive_copy_and_pickle() -> None:
    exemplars = Exemplars(2, 3)
    exemplars.update(torch.randn(9, 2), torch.arange(9))
    for other in (
        copy.deepcopy(exemplars),
        exemplars.clone(),
        pickle.loads(pickle.dumps(exemplars)),
    ):
        assert other.compute().top(1) == exemplars.compute().top(1)


def test_matched_samples_are_of_the_class_right_for_both_and_distinct() -> None:
    samples = random_samples(400, 1, seed=8, ties=False)
    positions, outcome, target = (samples[name] for name in ("positions", "outcome", "target"))
    matched = MatchedSamples(num_classes=5, k=4)
    for start in range(0, 400, 64):
        part = slice(start, start + 64)
        matched.update(positions[part], outcome[part], target[part])
    wanted = [3, 0, 3, 3, 1, 3]
    chosen = matched.compute().match(wanted, seed=2)
    for want, sample in zip(wanted, chosen, strict=True):
        assert sample is not None
        (row,) = (positions == sample.position).nonzero()[0].tolist()
        assert (target[row], outcome[row]) == (want, BOTH)
        assert (sample.target, sample.outcome) == (want, BOTH)
    assert len({sample.position for sample in chosen if sample}) == len(wanted)

    def order(seed: int) -> list[int]:
        return [s.position for s in matched.compute().match([3] * 4, seed=seed) if s]

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert sorted(order(0)) == sorted(order(1))


def test_matched_samples_repeat_only_where_there_are_too_few() -> None:
    matched = MatchedSamples(num_classes=3, k=4)
    outcome = torch.tensor([BOTH, BOTH, ONLY_MODEL, ONLY_BASELINE, NEITHER, BOTH])
    matched.update(torch.arange(6), outcome, torch.tensor([0, 0, 1, 1, 1, 9]))
    chosen = matched.compute().match([0, 0, 0, 1, 9, -1])
    assert [sample and sample.position for sample in chosen[3:]] == [None, None, None]
    pair = [sample.position for sample in chosen[:3] if sample]
    assert sorted(pair[:2]) == [0, 1]
    assert pair[2] == pair[0]


def test_the_reservoir_holds_the_highest_hashes_and_no_more() -> None:
    positions = torch.arange(1000)
    matched = MatchedSamples(num_classes=2, k=5)
    for part in positions.split(130):
        matched.update(part, torch.zeros_like(part), part % 2)
    kept = matched.compute().entries[1]
    for target in (0, 1):
        mine = positions[target::2]
        expected = mine[hashed(mine).argsort(descending=True)[:5]]
        assert kept[target].tolist() == expected.tolist()
    # Mixed well enough that the first positions have no privilege.
    assert 300 < float(positions[hashed(positions).argsort()[:100]].float().mean()) < 700
    assert len((hashed(torch.arange(10_000)) >> 32).unique()) > 9_990


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Exemplars(0), "Expected `num_neurons` to be an integer of at least 1, but got 0"),
        (lambda: Exemplars(3, k=0), "Expected `k` to be an integer of at least 1, but got 0"),
        (lambda: MatchedSamples(2.0), "Expected `num_classes` to be an integer"),
        (
            lambda: Exemplars(3).update(torch.zeros(2, 4), torch.arange(2)),
            r"Expected `activations` to have shape \(N, 3\), but got \(2, 4\)",
        ),
        (
            lambda: Exemplars(3).update(torch.zeros(2, 3), torch.arange(3)),
            r"Expected `positions` to be integers of shape \(2,\)",
        ),
        (
            lambda: Exemplars(3).update(torch.zeros(2, 3), torch.zeros(2)),
            r"but got torch.float32 of shape \(2,\)",
        ),
    ],
)
def test_wrong_arguments_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.gpu
def test_update_never_waits_for_the_device() -> None:
    exemplars, matched = Exemplars(100, 4).cuda(), MatchedSamples(10, 4).cuda()
    x, positions = torch.randn(64, 100).cuda(), torch.arange(64).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        exemplars.update(x, positions, positions % 4, positions % 10)
        matched.update(positions, positions % 4, positions % 10)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_an_outcome_that_is_none_is_an_error() -> None:
    """It would be read as another class with another outcome."""
    exemplars, x = Exemplars(2), torch.randn(4, 2)
    for outcome, got in (([0, 9, 1, 2], 9), ([0, -1, 1, 2], -1)):
        with pytest.raises(ValueError, match=f"`outcome` to hold outcome groups.*got {got}"):
            exemplars.update(x, torch.arange(4), torch.tensor(outcome), torch.zeros(4).long())
    with pytest.raises(TypeError, match="`positions` to be a tensor, but got ndarray"):
        exemplars.update(x, torch.arange(4).numpy())  # type: ignore[arg-type]


def test_a_state_of_another_size_is_not_loaded() -> None:
    makers = [lambda n: Exemplars(n, k=3), lambda n: MatchedSamples(n, k=3)]
    for make in makers:
        small, large = make(2), make(4)
        for metric in (small, large):
            metric.persistent(mode=True)
        nested = [torch.nn.ModuleDict({"inner": metric}) for metric in (small, large)]
        for into, of in ((large, small), (nested[1], nested[0])):
            with pytest.raises(ValueError, match="`state_dict` to hold a state of shape"):
                into.load_state_dict(of.state_dict())


def seen(kind: type, position: int) -> Any:
    """A metric that has seen one sample."""
    metric = kind(1, k=2)
    if kind is Exemplars:
        metric.update(torch.full((1, 1), float(position)), torch.tensor([position]))
    else:
        metric.update(torch.tensor([position]), torch.tensor([BOTH]), torch.tensor([0]))
    return metric


def kept(metric: Any) -> list[int]:
    """The positions that it answers with."""
    found = metric.compute()
    if isinstance(metric, Exemplars):
        return [one.position for one in found.top(0)]
    return sorted({one.position for one in found.match([0, 0]) if one is not None})


@pytest.mark.parametrize("kind", [Exemplars, MatchedSamples])
@pytest.mark.filterwarnings("error")
def test_an_answer_is_that_of_the_state_now(kind: type) -> None:
    """An answer that was given before another state came is not given again."""
    metric, other = seen(kind, 1), seen(kind, 2)
    assert kept(metric) == [1]
    metric.merge_state(other)
    assert sorted(kept(metric)) == [1, 2]
    metric.merge_state(seen(kind, 3).metric_state)
    assert 3 in kept(metric) or kind is MatchedSamples
    other.persistent(mode=True)
    metric.load_state_dict(other.state_dict())
    assert kept(metric) == [2]
    fresh = kind(1, k=2)
    fresh.load_state_dict(other.state_dict())
    assert kept(fresh) == [2]
