"""Edits that fold into weights exactly, and the spurious-text toy: chosen here, judged there."""

import json
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_neurocorr.ablation import silence
from lightning_neurocorr.edit import (
    EditSamples,
    choose_edit,
    fold_into_weights,
    judge_edit,
    save_edited,
)

FOLDS = {
    "linear": (lambda: nn.Linear(4, 6), (5, 4)),
    "tokens": (lambda: nn.Linear(4, 6), (5, 3, 4)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", groups=2), (5, 4, 7, 7)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (5, 4, 7, 7)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2), (5, 4, 4, 4, 4)),
    "batchnorm": (lambda: nn.BatchNorm1d(6), (5, 6)),
    "groupnorm": (lambda: nn.GroupNorm(2, 6), (5, 6, 7)),
    "layernorm": (lambda: nn.LayerNorm(6), (5, 3, 6)),
}


@pytest.mark.parametrize("kind", FOLDS)
def test_folded_weights_say_what_the_silenced_model_says(kind: str) -> None:
    build, shape = FOLDS[kind]
    model, x = nn.Sequential(build(), nn.Tanh()).eval(), torch.randn(shape)
    units, values = {"0": [1, 4, 5]}, {"0": torch.randn(6)}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for constants in (values, None):
        with silence(model, units, "mean" if constants else "zero", constants):
            expected = model(x)
        plain = nn.Sequential(build(), nn.Tanh()).eval()
        plain.load_state_dict(fold_into_weights(model, units, constants))
        torch.testing.assert_close(plain(x), expected)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_a_layer_in_front_of_batch_normalisation() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()).eval()

    model, plain, x = build(), build(), torch.randn(3, 2, 6, 6)
    model[1].running_mean.normal_()
    plain.load_state_dict(fold_into_weights(model, {"0": [2]}))
    with silence(model, {"0": [2]}, "zero"):
        torch.testing.assert_close(plain(x), model(x))
    with pytest.raises(ValueError, match="'0' to have a bias to hold a constant"):
        fold_into_weights(model, {"0": [2]}, {"0": torch.ones(4)})


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.rnn = nn.Linear(3, 3), nn.Linear(3, 3), nn.GRU(3, 3)
        self.b.weight = self.a.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
        self.square = nn.LayerNorm((3, 3))


def test_what_cannot_be_folded_is_refused() -> None:
    model = Tied().eval()
    for layer, message in [
        ("a", "another layer shares its weights"),
        ("rnn", "GRU has no weight that makes its units"),
        ("normed", "or computes it"),
        ("square", "normalises several axes"),
        ("c", "matches none"),
        ("*", "the name of one layer, but got '\\*'"),
    ]:
        with pytest.raises(ValueError, match=message):
            fold_into_weights(model, {layer: [0]})
    with pytest.raises(ValueError, match=r"units of layer '0' in 0..2, but got \[3\]"):
        fold_into_weights(nn.Sequential(nn.Linear(3, 3)), {"0": [3]})


def test_saved_weights_load_without_us(tmp_path: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    save_edited(tmp_path / "edited.pt", model, {"0": [1]}, {"0": torch.full((4,), 0.5)})
    plain = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    plain.load_state_dict(torch.load(tmp_path / "edited.pt", weights_only=True))
    assert (plain[0](torch.randn(5, 3))[:, 1] == 0.5).all()


# --- the spurious-text toy -----------------------------------------------------------------------

SIZE = 8


def images(n: int, agree: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Faint stripes across (0) or along (1), and a loud word that agrees with them or lies."""
    target = torch.randint(0, 2, (n,), generator=generator)
    across = torch.sin(torch.arange(SIZE) * 1.6)[:, None].expand(SIZE, SIZE)
    x = 0.3 * torch.where(target[:, None, None] == 0, across, across.T)
    x = x + 0.5 * torch.randn(n, SIZE, SIZE, generator=generator)
    conflict = torch.rand(n, generator=generator) >= agree
    words = 1.5 * torch.tensor([[1.0, 1.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0]])
    x[:, :2, :4] = words[torch.where(conflict, 1 - target, target)][:, None]
    return x[:, None], target, conflict


def trained(generator: torch.Generator) -> nn.Module:
    """The word is learned first: it is loud and right in 19 of 20 training images."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 2))
    x, target, _ = images(1000, 0.95, generator)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), target).backward()
        optimizer.step()
    return model.eval()


def samples(n: int, generator: torch.Generator) -> EditSamples:
    """The baseline looks for stripes below the word; here the word lies half of the time."""
    x, target, conflict = images(n, 0.5, generator)
    below = x[:, 0, 2:]
    along = below.mean(1).square().mean(1) > below.mean(2).square().mean(1)
    groups = {"conflict": conflict, "clean": ~conflict}
    chunks = [((part,), {}) for part in x.split(200)]
    return EditSamples(chunks, target, along.long() == target, groups)


Toy = tuple[nn.Module, EditSamples, EditSamples]


@pytest.fixture(scope="module", params=[0, 1])
def toy(request: pytest.FixtureRequest) -> Toy:
    generator = torch.Generator().manual_seed(request.param)
    torch.manual_seed(request.param)
    return trained(generator), samples(1000, generator), samples(1000, generator)


def test_the_edit_repairs_what_the_spurious_word_broke(toy: Toy) -> None:
    model, choose_on, held_out = toy
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    units, values = choose_edit(model, choose_on, "1")
    report = judge_edit(model, held_out, units, values)
    gained = {name: report.after.groups[name] - was for name, was in report.before.groups.items()}
    assert gained["conflict"] >= 0.05
    assert gained["clean"] > -0.01
    assert report.helps
    assert report.after.only_baseline < report.before.only_baseline
    assert report.control.groups["conflict"] - report.before.groups["conflict"] < 0.02
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_the_table_equals_loops(toy: Toy) -> None:
    model, _, held_out = toy
    units, values = {"1": [0, 5]}, {"1": torch.full((24,), 0.3)}
    report = judge_edit(model, held_out, units, values, random_sets=2)
    x = torch.cat([args[0] for args, _ in held_out.chunks])
    with torch.no_grad(), silence(model, units, "mean", values):
        after = model(x).argmax(1)
    with torch.no_grad():
        was = model(x).argmax(1)
    rows = list(zip(was, after, held_out.target, held_out.baseline_correct, strict=True))
    assert report.n == len(rows)
    assert report.before.accuracy == sum(int(w == t) for w, _, t, _ in rows) / len(rows)
    assert report.after.only_model == sum(int(a == t and not b) for _, a, t, b in rows)
    assert report.after.only_baseline == sum(int(a != t and b) for _, a, t, b in rows)
    assert report.helped == sum(int(w != t and a == t) for w, a, t, _ in rows)
    assert report.harmed == sum(int(w == t and a != t) for w, a, t, _ in rows)
    assert json.loads(json.dumps(report.to_dict()))["units"] == {"1": [0, 5]}
    assert "Switched off: 1 [0, 5]" in report.summary()


def test_choosing_takes_the_best_beginning_of_the_list(toy: Toy) -> None:
    model, choose_on, _ = toy
    units, values = choose_edit(model, choose_on, "1", max_units=3, candidates=14)
    assert set(units) <= {"1"}
    assert 1 <= len(units["1"]) <= 3
    x = torch.cat([args[0] for args, _ in choose_on.chunks])
    with torch.no_grad():
        said, logits = model[:2](x), model(x)
    torch.testing.assert_close(values["1"], said.double().mean(0))
    advantage = (
        logits.argmax(1) == choose_on.target
    ).double() - choose_on.baseline_correct.double()
    r = [torch.corrcoef(torch.stack([a.double(), advantage]))[0, 1].item() for a in said.T]
    lowest = sorted(range(24), key=lambda unit: r[unit])[:14]
    assert set(units["1"]) <= set(lowest)

    def accuracy(silenced: list[int]) -> float:
        with torch.no_grad(), silence(model, {"1": silenced}, "mean", values):
            return float((model(x).argmax(1) == choose_on.target).float().mean())

    gains = sorted(lowest, key=lambda unit: -accuracy([unit]))
    best = max(range(4), key=lambda k: accuracy(gains[:k]))
    assert accuracy(list(units["1"])) == pytest.approx(accuracy(gains[:best]), abs=0.006)


def test_refuses_without_a_held_out_half(toy: Toy) -> None:
    model, choose_on, _ = toy
    few = EditSamples([((torch.zeros(5, 1, 8, 8),), {})], torch.zeros(5), torch.ones(5) > 0)
    for held_out in (None, few):
        with pytest.raises(ValueError, match="`held_out` to be at least 30 samples"):
            judge_edit(model, held_out, {"1": [0]})
    again = replace(choose_on, groups={})
    for held_out in (choose_on, again):
        with pytest.raises(ValueError, match="other samples than those it was chosen on"):
            judge_edit(model, held_out, {"1": [0]}, chosen_on=choose_on)
    with pytest.raises(ValueError, match="evaluation mode"):
        judge_edit(nn.Linear(2, 2), choose_on, {"1": [0]})


def test_helping_is_beyond_chance_and_beyond_random_units(toy: Toy) -> None:
    model, choose_on, held_out = toy
    units, values = choose_edit(model, choose_on, "1")
    report = judge_edit(model, held_out, units, values, chosen_on=choose_on)
    assert report.helps
    assert not replace(report, p_value=0.06).helps
    assert not replace(report, control_accuracy=(0.5, 1.0)).helps
    assert not replace(report, after=report.before).helps


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-6 * torch.rand(1) * np.random.rand() * random.random()  # noqa: NPY002


@pytest.mark.keeps_rng
def test_a_model_that_draws_leaves_the_random_state() -> None:
    state = torch.get_rng_state()
    model = nn.Sequential(nn.Linear(3, 4), Noise(), nn.Linear(4, 2)).eval()
    x = torch.randn(60, 3)
    torch.set_rng_state(state)
    samples = EditSamples([((x,), {})], (x[:, 0] > 0).long(), x[:, 1] > 0)
    units, values = choose_edit(model, samples)
    judge_edit(model, samples, units or {"0": [1]}, values)


def test_nothing_to_switch_off(toy: Toy) -> None:
    model, _, held_out = toy
    report = judge_edit(model, held_out, {})
    assert not report.helps
    assert report.after == report.before
    assert "No edit" in report.summary()


def test_wrong_arguments_say_what_to_pass(tmp_path: Any) -> None:
    model, x = nn.Sequential(nn.Linear(3, 4)).eval(), torch.zeros(5, 3)
    target, right = torch.zeros(5, dtype=torch.long), torch.ones(5, dtype=torch.bool)
    with pytest.raises(TypeError, match=r"units of layer '0' to be whole numbers, .* got '12'"):
        fold_into_weights(model, {"0": "12"})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match=r"`model` to be a module, .*; `path` comes first"):
        save_edited(model, tmp_path / "x.pt", {"0": [1]})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`baseline_correct` to be of shape \(5,\), .* \(4,\)"):
        EditSamples([((x,), {})], target, right[:4])
    with pytest.raises(ValueError, match=r"`ill` to be of shape \(5,\)"):
        EditSamples([((x,), {})], target, right, {"ill": right[:2]})
    with pytest.raises(TypeError, match="`chunks` to hold arguments of the model"):
        EditSamples([x], target, right)  # type: ignore[list-item]
    for chunks in ([], [((x[:3],), {})]):
        with pytest.raises(ValueError, match="as many samples as `target`, at least 1, but got"):
            choose_edit(model, EditSamples(chunks, target, right))
