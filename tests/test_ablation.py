"""The ablation study against loops over samples."""

import json
import math
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_neurocorr.ablation import (
    Ablation,
    AblationPoint,
    AblationSamples,
    AblationStudy,
    Effect,
    study,
)
from lightning_neurocorr.ablation.study import _z
from lightning_neurocorr.functional import BOTH, NEITHER, ONLY_MODEL

D, C = 12, 3


def problem(n: int = 240, seed: int = 0) -> tuple[nn.Module, Tensor, AblationSamples]:
    """Units 0 to 2 each say a class; the baseline knows samples with a positive input 3 only."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, D), nn.ReLU(), nn.Linear(D, C)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
        for c in range(C):
            model[0].weight[c, c], model[2].weight[c, c] = 3.0, 3.0
    x = torch.randn(n, 6, generator=generator)
    target = x[:, :C].argmax(1)
    right = model(x).argmax(1) == target
    outcome = torch.where(right, torch.where(x[:, 3] > 0, BOTH, ONLY_MODEL), NEITHER)
    fold = torch.randint(0, 2, (n,), generator=generator)
    rival = torch.where(outcome == ONLY_MODEL, (target + 1) % C, target)
    chunks = [((part,), {"scale": torch.ones(len(part), 1)}) for part in x.split(50)]
    lengths = [len(part) for part in x.split(50)]
    return model, x, AblationSamples(chunks, lengths, target, outcome, fold, rival)


RANKING = {0: {"0": [0, 1, 2, 3, 4, 5, 6]}, 1: {"0": [1, 0, 2, 3, 4, 6, 5]}}


def slow_effect(
    model: nn.Module, x: Tensor, s: AblationSamples, sets: dict[int, list[int]], means: Tensor
) -> list[float]:
    """One sample at a time: margin and accuracy lost on both groups."""
    logits = model(x).detach()
    wins = [int(t) for t, o in zip(s.target, s.outcome, strict=True) if o == ONLY_MODEL]
    lost: dict[str, list[tuple[float, float, float]]] = {"advantage": [], "shared": []}
    for i in range(len(x)):
        fold = int(s.fold[i])
        units = sets.get(1 - fold)
        if units is None or s.outcome[i] not in (ONLY_MODEL, BOTH):
            continue
        hidden = model[0](x[i : i + 1]).detach()
        hidden[0, units] = means[units]
        after = model[2](hidden.relu())[0].detach()
        t = int(s.target[i])
        r = int(s.rival[i])
        r = r if r != t else max((c for c in range(C) if c != t), key=lambda c: logits[i, c])
        margin = float(logits[i, t] - logits[i, r] - after[t] + after[r])
        wrong = float(after.argmax() != t)
        if s.outcome[i] == ONLY_MODEL:
            lost["advantage"].append((margin, wrong, 1.0))
        else:
            mine = [j for j in range(len(x)) if s.fold[j] == fold and s.target[j] == t]
            wins = sum(int(s.outcome[j] == ONLY_MODEL) for j in mine)
            shared = sum(int(s.outcome[j] == BOTH) for j in mine)
            lost["shared"].append((margin, wrong, wins / shared))
    mean = {g: np.average([v[:2] for v in ls], 0, [v[2] for v in ls]) for g, ls in lost.items()}
    a, b = mean["advantage"], mean["shared"]
    return [a[0], b[0], a[1], b[1]]


def run(model: nn.Module, samples: AblationSamples, **options: Any) -> AblationStudy:
    means = {"0": torch.linspace(-1, 1, D)}
    settings = Ablation(sizes=(1, 3), singles=4, random_sets=6, time_budget_s=None)
    options = {"settings": settings, "means": means, "ranking": RANKING, **options}
    return study(lambda x, scale: model(x * scale), {"0": model[0]}, samples, **options)


def test_points_and_neurons_equal_loops() -> None:
    model, x, samples = problem()
    found, means = run(model, samples), torch.linspace(-1, 1, D)
    assert [(p.layer, p.size) for p in found.points] == [("0", 1), ("0", 3)]
    for point in found.points:
        assert point.units == (tuple(range(3)),) * 2 if point.size == 3 else ((0,), (1,))
        expected = slow_effect(model, x, samples, dict(enumerate(map(list, point.units))), means)
        np.testing.assert_allclose(list(vars(point.effect).values()), expected, atol=1e-6)
        np.testing.assert_allclose(point.effect.beyond, expected[0] - expected[1], atol=1e-6)
        assert point.z == pytest.approx(
            (point.effect.beyond - np.mean(point.random)) / np.std(point.random, ddof=1)
        )
        assert point.control.beyond == pytest.approx(np.mean(point.random))
        larger = sum(value >= point.effect.beyond for value in point.random)
        assert point.p == pytest.approx((1 + larger) / 7)
    assert [n.unit for n in found.neurons] == [0, 1, 2, 3]
    for neuron in found.neurons:
        expected = slow_effect(model, x, samples, {0: [neuron.unit], 1: [neuron.unit]}, means)
        np.testing.assert_allclose(list(vars(neuron.effect).values()), expected, atol=1e-6)


def test_random_sets_are_the_slow_ones_too() -> None:
    # All other neurons together are the only possible control of size 6.
    model, x, samples = problem()
    settings = Ablation(sizes=(6,), singles=0, random_sets=20)
    (point,) = run(model, samples, settings=settings).points
    others = {f: sorted(set(range(D)) - set(point.units[f])) for f in (0, 1)}
    expected = slow_effect(model, x, samples, others, torch.linspace(-1, 1, D))
    np.testing.assert_allclose(list(vars(point.control).values()), expected, atol=1e-6)
    # One control, drawn twenty times, is one: it has no spread, and p cannot be below 1/2.
    assert len(point.random) == 1
    assert math.isnan(point.z)
    assert point.p == (1 / 2 if point.effect.beyond > point.control.beyond else 1)
    assert not point.beats_random


@pytest.mark.parametrize("value", [0.1, -0.3, 1e6])
def test_what_rounding_leaves_of_equal_values_is_no_spread(value: float) -> None:
    equal = np.full(20, value)
    assert math.isnan(_z(value + 1, equal))
    assert math.isnan(_z(value + 1, equal * (1 + 1e-15 * np.arange(20))))
    assert math.isnan(_z(value, equal[:1]))
    assert _z(3.0, np.array([0.0, 2.0])) == pytest.approx(2**0.5)


def test_a_unit_of_one_list_only_is_measured_on_the_other_half_only() -> None:
    model, x, samples = problem()
    ranking = {0: {"0": [0]}, 1: {"0": [1]}}
    settings = Ablation(sizes=(), singles=1, random_sets=3)
    found = run(model, samples, ranking=ranking, settings=settings)
    assert found.points == ()
    for neuron, fold in zip(found.neurons, (0, 1), strict=True):
        means = torch.linspace(-1, 1, D)
        expected = slow_effect(model, x, samples, {fold: [neuron.unit]}, means)
        np.testing.assert_allclose(list(vars(neuron.effect).values()), expected, atol=1e-6)


def test_the_control_of_a_neuron_is_another_one() -> None:
    model, _, samples = problem()
    with torch.no_grad():
        model[0].weight[2:] = 0  # two neurons vary
    settings = Ablation(sizes=(), singles=2, random_sets=5)
    found = run(model, samples, settings=settings, ranking={f: {"0": [0, 1]} for f in (0, 1)})
    first, second = found.neurons
    assert first.control == second.effect
    assert second.control == first.effect


def test_needed_is_more_than_the_control_and_more_than_on_shared_samples() -> None:
    def point(p: float, beyond: float, control: float, **accuracy: float) -> AblationPoint:
        lost = {"advantage": 0.3, "shared": 0.0, "random": 0.1, **accuracy}
        effect = Effect(beyond, 0.0, lost["advantage"], lost["shared"])
        other = Effect(control, 0.0, lost["random"], 0.0)
        return AblationPoint("0", 1, ((0,), (0,)), effect, other, 1.0, p)

    assert point(0.04, 1.0, 0.5).beats_random
    assert not point(0.06, 1.0, 0.5).beats_random
    assert not point(0.04, 1.0, 1.5).beats_random
    assert not point(0.04, -1.0, -1.5).beats_random
    assert not point(float("nan"), 1.0, 0.5).beats_random
    assert not point(0.04, 1.0, 0.5, advantage=0.0, random=0.0).beats_random
    assert not point(0.04, 1.0, 0.5, shared=0.3).beats_random
    assert not point(0.04, 1.0, 0.5, random=0.3).beats_random


def test_never_measures_on_the_half_that_chose() -> None:
    model, _, samples = problem()
    silenced = False
    seen: list[int] = []
    chunks = [
        ((part[0][0],), {"row": torch.arange(start, start + len(part[0][0]))})
        for part, start in zip(samples.chunks, range(0, 1000, 50), strict=False)
    ]
    samples = AblationSamples(
        chunks, samples.lengths, samples.target, samples.outcome, samples.fold, samples.rival
    )

    def forward(x: Tensor, row: Tensor) -> Tensor:
        if silenced:
            seen.extend(row.tolist())
        return model(x)

    ranking = {0: {"0": [0, 1]}, 1: {"0": [2, 3]}}

    def progress(sets: list) -> Any:
        nonlocal silenced
        silenced = True
        for one in sets:
            seen.clear()
            yield one
            assert seen
            assert {int(samples.fold[i]) for i in seen} == {1 - one.fold}
            assert {int(samples.outcome[i]) for i in seen} == {BOTH, ONLY_MODEL}

    settings = Ablation(sizes=(2,), singles=2, random_sets=2)
    found = study(forward, {"0": model[0]}, samples, ranking, settings, progress=progress)
    assert len(found.points) == 1


@pytest.mark.keeps_rng
@pytest.mark.parametrize("fill", ["mean", "zero", "resample"])
def test_planted_neurons_are_needed_and_others_are_not(fill: str) -> None:
    state = torch.get_rng_state()
    _, _, samples = problem()
    gate, head = nn.Linear(C, 8), nn.Linear(8, C)
    with torch.no_grad():
        for layer in (gate, head):
            layer.weight.mul_(0.1)
            layer.bias.zero_()
        gate.weight[:C] = head.weight[:, :C] = 2 * torch.eye(C)
    before = [layer.weight.clone() for layer in (gate, head)]
    torch.set_rng_state(state)
    # The gate carries the answer on advantage samples only; shared samples get theirs past it.
    answer = 3.0 * nn.functional.one_hot(samples.target, C)
    carried = answer * (samples.outcome == ONLY_MODEL)[:, None]
    chunk = ((carried, answer - carried), {})
    rest = (samples.target, samples.outcome, samples.fold)
    made = AblationSamples([chunk], [len(answer)], *rest)

    def points(units: list[int]) -> Any:
        ranking = {f: {"gate": units} for f in (0, 1)}
        settings = Ablation(sizes=(3,), singles=0, fill=fill)

        def forward(through: Tensor, past: Tensor) -> Tensor:
            torch.rand(1)  # a model that draws
            return head(gate(through)) + past

        return study(forward, {"gate": gate}, made, ranking, settings).points[0]

    planted, others = points([0, 1, 2]), points([3, 4, 5])
    assert planted.beats_random
    assert planted.p == 1 / 21
    assert planted.effect.advantage_accuracy > 0.3
    if fill != "resample":  # which hands shared samples another sample's answer
        assert planted.effect.shared_accuracy == 0
    assert not others.beats_random
    assert [torch.equal(w, layer.weight) for w, layer in zip(before, (gate, head), strict=True)]


def test_too_few_samples_are_refused_with_their_number() -> None:
    model, _, samples = problem(60)
    few = samples.outcome.clone()
    few[torch.nonzero(few == ONLY_MODEL).flatten()[7:]] = NEITHER
    rest = (samples.target, few, samples.fold, samples.rival)
    found = run(model, AblationSamples(samples.chunks, samples.lengths, *rest))
    assert found.points == ()
    assert found.num_advantage == 7
    assert "only the model gets right; fewer than 30 in all or 10 in a half" in found.summary()


def test_layers_without_a_result_are_named() -> None:
    model, _, samples = problem()
    constant = nn.Linear(6, 4).requires_grad_(False)
    constant.weight.zero_()
    unused = nn.Linear(6, 4)

    def forward(x: Tensor, scale: Tensor) -> Tensor:
        return model(x) + constant(x).sum() * 0

    layers = {"unused": unused, "constant": constant, "0": model[0]}
    ranking = {f: {**RANKING[f], "constant": [0, 1]} for f in (0, 1)}
    settings = Ablation(sizes=(1,), singles=0, random_sets=2)
    found = study(forward, layers, samples, ranking, settings)
    assert [point.layer for point in found.points] == ["0"]
    assert found.skipped["unused"] == "its forward was not called"
    assert found.skipped["constant"] == "only 0 of its neurons vary, or none is ranked"
    assert "constant: only 0 of its neurons vary" in found.summary()


def test_the_budget_ends_a_study_and_gives_every_layer_its_share() -> None:
    model, _, samples = problem()
    later = model[2]

    def forward(x: Tensor, scale: Tensor) -> Tensor:
        time.sleep(2e-4 * len(x))
        return model(x)

    ranking = {f: {**RANKING[f], "2": [0, 1, 2]} for f in (0, 1)}
    settings = Ablation(sizes=(1, 2), random_sets=300, time_budget_s=2.0, singles=0)
    start = time.monotonic()
    found = study(forward, {"0": model[0], "2": later}, samples, ranking, settings)
    assert time.monotonic() - start < 5
    assert "share of the 2 s" in found.skipped["0"]
    finished = [(point.layer, point.size) for point in found.points]
    assert ("2", 1) in finished  # only 3 units: few distinct sets
    assert ("0", 2) not in finished


def test_saved_and_read_again() -> None:
    model, _, samples = problem()
    found = run(model, samples)
    again = AblationStudy.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    assert again.to_dict() == found.to_dict()
    assert again.points[0].units == found.points[0].units
    assert again.summary() == found.summary()
    assert "its top 3 neurons" in found.summary()
    assert [p.size for p in again.curve("0")] == [1, 3]


def test_settings_and_samples_are_checked() -> None:
    for options, message in [
        ({"random_sets": 0}, "`random_sets` to be a whole number of at least 1, but got 0"),
        ({"random_sets": 2.5}, "but got 2.5"),
        ({"max_samples": None}, "`max_samples` .* but got None"),
        ({"every_n_validations": "2"}, "`every_n_validations` .* but got '2'"),
        ({"seed": None}, "`seed` .* but got None"),
        ({"sizes": (0,)}, "`sizes` to be positive"),
        ({"sizes": 4}, "`sizes` to be positive .* but got 4"),
        ({"singles": -1}, "`singles` to be a whole number of at least 0"),
        ({"time_budget_s": 0}, "`time_budget_s` to be seconds above 0, or None, but got 0"),
        ({"time_budget_s": "1m"}, "but got '1m'"),
        (
            {"by": "nope"},
            "`by` of Ablation to be a column .* but got 'nope'. There are attribution",
        ),
        ({"by": "r_replicated"}, "`by` .* but got 'r_replicated'"),  # it has seen the other half
        ({"fill": "noise"}, "`fill` to be 'mean', 'zero' or 'resample', but got 'noise'"),
    ]:
        with pytest.raises(ValueError, match=message):
            Ablation(**options)
    rows = torch.zeros(3)
    with pytest.raises(ValueError, match=r"`fold` to be of shape \(3,\).* but got \(2,\)"):
        AblationSamples([], [3], rows, rows, rows[:2])
    model, _, samples = problem()
    with pytest.raises(ValueError, match=r"logits of shape"):
        study(lambda x, scale: model[0](x)[:3], {"0": model[0]}, samples, RANKING)
