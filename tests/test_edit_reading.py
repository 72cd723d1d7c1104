"""An edit reads and silences neurons as their layer returns them, and refuses what is not exact."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_neurocorr.ablation import silence
from lightning_neurocorr.activations import find_sites
from lightning_neurocorr.edit import EditSamples, choose_edit, fold_into_weights, judge_edit


class Net(nn.Module):
    """A convolution whose norm and activation function come behind it."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.conv, self.between, self.head = nn.Conv2d(1, 6, 3), between, nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.conv(x)).mean((2, 3)))


def made(seed: int) -> tuple[Net, Tensor, EditSamples]:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = Net(nn.Sequential(nn.BatchNorm2d(6), nn.ReLU())).eval()
    contrast = 0.3 + torch.rand(240, 1, 1, 1, generator=generator)
    x = contrast * torch.randn(240, 1, 6, 6, generator=generator)
    with torch.no_grad():
        model.head.weight.mul_(20)
        model.head.bias.sub_(model(x).median(0).values)  # both classes are answered
    target = torch.randint(0, 2, (240,), generator=generator)
    baseline = contrast.flatten() + 0.3 * torch.randn(240, generator=generator) > 0.8
    return model, x, EditSamples([((p,), {}) for p in x.split(100)], target, baseline)


def pearson(a: list[float], b: list[float]) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    both = sum((p - mean_a) * (q - mean_b) for p, q in zip(a, b, strict=True))
    of_a, of_b = sum((p - mean_a) ** 2 for p in a), sum((q - mean_b) ** 2 for q in b)
    return both / (of_a * of_b) ** 0.5


def slowly(
    model: Net, x: Tensor, samples: EditSamples, candidates: int, *, behind: bool = False
) -> tuple[list[int], Tensor]:
    """The choice by loops and hooks: nothing is folded, nothing of `edit` is called."""

    def accuracy(units: list[int]) -> float:
        constants = None if not units else {"conv": means}
        with torch.no_grad(), silence(model, {"conv": units}, "mean", constants):
            return float((model(x).argmax(1) == samples.target).double().mean())

    with torch.no_grad():
        raw = model.conv(x)
        said = (model.between(raw) if behind else raw).double().mean((2, 3))
        correct = model(x).argmax(1) == samples.target
    means = raw.double().mean((0, 2, 3)).float()
    advantage = (correct.int() - samples.baseline_correct.int()).tolist()
    r = [pearson(said[:, unit].tolist(), advantage) for unit in range(6)]
    start = accuracy([])
    lowest = sorted((unit for unit in range(6) if r[unit] < 0), key=r.__getitem__)[:candidates]
    gain = {unit: accuracy([unit]) - start for unit in lowest}
    order = sorted((unit for unit in lowest if gain[unit] > 0), key=lambda unit: -gain[unit])
    best = max(range(len(order) + 1), key=lambda k: accuracy(sorted(order[:k])))
    return sorted(order[:best]), means


def test_the_choice_is_that_of_loops_over_what_the_layer_returns() -> None:
    elsewhere = chosen = 0
    for seed in range(8):
        model, x, samples = made(seed)
        for candidates in (1, 3):
            expected, means = slowly(model, x, samples, candidates)
            units, values = choose_edit(model, samples, "conv", candidates=candidates)
            assert list(units.get("conv", ())) == expected
            if expected:
                torch.testing.assert_close(values["conv"].float(), means)
            elsewhere += expected != slowly(model, x, samples, candidates, behind=True)[0]
            chosen += len(expected)
    assert chosen > 4
    assert elsewhere > 4  # read behind the norm and the ReLU, other neurons would be chosen


BETWEEN = {
    "relu": (nn.ReLU, True),
    "norm": (lambda: nn.BatchNorm2d(6), False),
    "norm and relu": (lambda: nn.Sequential(nn.BatchNorm2d(6), nn.ReLU()), False),
    "gelu": (nn.GELU, False),
    "tanh": (nn.Tanh, False),
}


@pytest.mark.parametrize("kind", BETWEEN)
def test_a_constant_from_behind_a_layer_is_kept_by_a_relu_only(kind: str) -> None:
    build, kept = BETWEEN[kind]
    between = build()
    for norm in between.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean = torch.randn(6)
    model, x, units = Net(between).eval(), torch.randn(20, 1, 6, 6), {"conv": [0, 3]}
    places = find_sites(model, lambda: model(x), ["conv"])
    behind = {"conv": torch.tensor([0.4, 0, 0, 0.7, 0, 0])}
    with torch.no_grad():
        folded = torch.func.functional_call(model, fold_into_weights(model, units, behind), (x,))
        with silence(places, units, "mean", behind):
            there = model(x)
        with silence(model, units, "mean", behind):
            raw = model(x)
    torch.testing.assert_close(folded, raw)  # as the layer returns it: whatever comes behind
    assert torch.allclose(folded, there, atol=1e-5) == kept


# --- what is not exact is refused ----------------------------------------------------------------


class Rectified(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plain, self.rectified, self.relu = nn.Linear(3, 4), Rectified(4, 4), nn.ReLU()
        self.unused, self.moved = nn.Linear(3, 3), nn.Linear(4, 4)
        nn.utils.parametrize.register_parametrization(self.moved, "bias", nn.Softplus())
        self.head = nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.moved(self.relu(self.rectified(self.plain(x)))))


def odd() -> tuple[nn.Module, EditSamples]:
    x = torch.randn(60, 3)
    return Odd().eval(), EditSamples([((x,), {})], (x[:, 0] > 0).long(), x[:, 1] > 0)


REFUSED = [
    ("rectified", "Rectified has a forward of its own"),
    ("moved", "ParametrizedLinear computes its bias"),
    ("relu", "ReLU has no weight that makes its units"),
]


@pytest.mark.parametrize(("layer", "message"), REFUSED)
def test_layers_that_do_more_than_their_weights_say(layer: str, message: str) -> None:
    model, samples = odd()
    with pytest.raises(ValueError, match=f"layer '{layer}' to have weights .*{message}"):
        fold_into_weights(model, {layer: [0]})
    with pytest.raises(ValueError, match=f"layer '{layer}' to have weights .*{message}"):
        judge_edit(model, samples, {layer: [0]})
    for layers in (layer, ["plain", layer], f"{layer}*"):
        with pytest.raises(ValueError, match=f"layer '{layer}' .*{message}.*Choose the conv"):
            choose_edit(model, samples, layers)


def test_what_nobody_named_is_left_out_and_what_was_not_heard_is_said() -> None:
    model, samples = odd()
    with pytest.warns(UserWarning, match=r"Left out of the choice: unused: .*not called"):
        units, _ = choose_edit(model, samples)
    assert set(units) <= {"plain", "head"}
    with pytest.raises(ValueError, match=r"hear at least one of `layers`, .* unused: .*not called"):
        choose_edit(model, samples, "unused")
    with pytest.raises(ValueError, match="no weights before its first forward"):
        fold_into_weights(nn.Sequential(nn.LazyLinear(2)), {"0": [0]})


def test_constants_are_checked() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.randn(40, 3)
    samples = EditSamples([((x,), {})], (x[:, 0] > 0).long(), x[:, 1] > 0)
    nan = torch.tensor([0, torch.nan, 0, 0])
    wrong: list[tuple[Any, type[Exception], str]] = [
        ({"0": torch.ones(1)}, ValueError, r"layer '0' to be of shape \(4,\), .* got \(1,\)"),
        ({"0": nan}, ValueError, "layer '0' to be finite"),
        ({"1st": torch.ones(4)}, ValueError, "`values` of layers of the model, but got '1st'"),
        (torch.ones(4), TypeError, "`values` to be a dict of constants"),
    ]
    for values, error, message in wrong:
        with pytest.raises(error, match=message):
            fold_into_weights(model, {"0": [1]}, values)
        with pytest.raises(error, match=message):
            judge_edit(model, samples, {"0": [1]}, values)
    report = judge_edit(model, samples, {"0": 1, "2": [0]}, {"0": torch.full((4,), 0.5)})
    assert report.units == {"0": (1,), "2": (0,)}
    assert report.values == {"0": (0.5,), "2": (0.0,)}


# --- what is a sample, an answer, a held-out sample ----------------------------------------------


def test_answers_and_samples_of_another_shape_are_refused() -> None:
    x, yes = torch.randn(40, 3), torch.ones(40, dtype=torch.bool)
    target = yes.long()
    samples = EditSamples([((x,), {})], target, yes)
    model = nn.Sequential(nn.Linear(3, 2)).eval()
    for read in (lambda out: out[:, :1], lambda out: out[:, 0], lambda out: out[..., None]):
        with pytest.raises(ValueError, match=r"logits of shape \(n, C\) with at least 2"):
            choose_edit(model, samples, read=read)
        with pytest.raises(ValueError, match=r"logits of shape \(n, C\) with at least 2"):
            judge_edit(model, samples, {}, read=read)
    with pytest.raises(ValueError, match=r"`target` to be class ids of shape \(N,\)"):
        EditSamples([((x,), {})], target[:, None], yes)
    with pytest.raises(TypeError, match=r"`ill` to be bool, but got torch.int64"):
        EditSamples([((x,), {})], target, yes, {"ill": target})
    with pytest.raises(TypeError, match=r"`baseline_correct` to be bool, but got torch.float32"):
        EditSamples([((x,), {})], target, yes.float())


def test_held_out_samples_are_others_also_as_views() -> None:
    x, yes = torch.randn(80, 3), torch.ones(80, dtype=torch.bool)
    model, mask = nn.Sequential(nn.Linear(3, 2)).eval(), torch.ones(3)

    def of(part: Tensor) -> EditSamples:
        n = len(part)
        return EditSamples([((part,), {})], yes[:n].long(), yes[:n])

    for again in (x[:40], x[30:70], x[:60:2]):
        with pytest.raises(ValueError, match="other samples than those it was chosen on"):
            judge_edit(model, of(again), {}, chosen_on=of(x[:40]))
    assert judge_edit(model, of(x[40:]), {}, chosen_on=of(x[:40])).n == 40
    assert judge_edit(model, of(x[1::2]), {}, chosen_on=of(x[::2])).n == 40
    masked = [EditSamples([((x[h],), {"m": mask})], yes[h].long(), yes[h])
              for h in (slice(40), slice(40, 80))]  # fmt: skip
    with pytest.raises(TypeError, match="unexpected keyword"):  # of the model: that is no sample
        judge_edit(model, masked[1], {}, chosen_on=masked[0])


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x)


def test_buffers_that_a_forward_writes_are_put_back() -> None:
    model, x = Counting().eval(), torch.randn(40, 3)
    samples = EditSamples([((x,), {})], (x[:, 0] > 0).long(), x[:, 1] > 0)
    choose_edit(model, samples)
    judge_edit(model, samples, {"layer": [0]})
    assert model.calls.tolist() == [0]
