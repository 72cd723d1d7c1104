"""Activation times gradient against loops, Captum and what a linear head must add up to."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_neurocorr.activations import choose_layers
from lightning_neurocorr.attribution import attribute
from tests.small_nets import C, LastStep, N, Net, TokenMean, conv_net, data

NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolutions": (conv_net, (2, 7, 7)),
    "conv1d": (
        lambda: Net(c=nn.Conv1d(2, 3, 3), t=nn.Tanh(), f=nn.Flatten(), h=nn.Linear(9, C)),
        (2, 5),
    ),
    "tokens": (
        lambda: Net(
            a=nn.Linear(4, 5), g=nn.GELU(), b=nn.Linear(5, 6), m=TokenMean(), h=nn.Linear(6, C)
        ),
        (3, 4),
    ),
    "lstm": (
        lambda: Net(rnn=nn.LSTM(4, 5, batch_first=True), last=LastStep(), h=nn.Linear(5, C)),
        (3, 4),
    ),
}


def slow(
    model: nn.Module, x: Tensor, target: Tensor, rival: Tensor, part: str
) -> tuple[Tensor, Tensor]:
    """One sample and one part at a time, through the parts behind it only."""
    names = [name for name, _ in model.parts.named_children()]
    cut = names.index(part) + 1
    us, vs = [], []
    for i in range(len(x)):
        with torch.no_grad():
            out = model.parts[:cut](x[i : i + 1])
        activation = (out[0] if isinstance(out, tuple) else out).detach().clone().requires_grad_()
        rest = activation.clone()
        logits = model.parts[cut:]((rest, None) if isinstance(out, tuple) else rest)[0]
        (g,) = torch.autograd.grad(logits[target[i]] - logits[rival[i]], activation)
        units = 1 if g.ndim == 4 or isinstance(model.parts[cut - 1], nn.Conv1d) else g.ndim - 1
        order = [units, *(axis for axis in range(g.ndim) if axis != units)]
        size = g.shape[units]
        us.append((activation.detach() * g).permute(order).reshape(size, -1).sum(1))
        vs.append(g.permute(order).reshape(size, -1).sum(1))
    return torch.stack(us).double(), torch.stack(vs).double()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", NETS)
def test_equals_one_sample_and_one_layer_at_a_time(kind: str, frozen: bool) -> None:
    build, shape = NETS[kind]
    model = build().eval().requires_grad_(not frozen)
    x, target, rival = data(shape)
    parts = dict(model.parts.named_children())
    layers = {name: m for name, m in parts.items() if next(m.parameters(), None) is not None}
    found = attribute(lambda: model(x), layers, target, rival)
    assert list(found) == list(layers)
    for name in layers:
        u, v = slow(model, x, target, rival, name)
        torch.testing.assert_close(found[name][0], u, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found[name][1], v, atol=1e-5, rtol=1e-4)


def test_a_layer_is_the_same_watched_alone_or_with_others() -> None:
    model, (x, target, rival) = conv_net(), data((2, 7, 7))
    together = attribute(lambda: model(x), choose_layers(model), target, rival)
    for name, layer in choose_layers(model).items():
        alone = attribute(lambda: model(x), {name: layer}, target, rival)[name]
        torch.testing.assert_close(together[name], alone)


def test_contributions_of_a_linear_head_sum_to_the_logit_difference() -> None:
    model, (x, target, rival) = conv_net(), data((2, 7, 7))
    flat = dict(model.parts.named_children())["gelu"]
    u, v = attribute(lambda: model(x), {"gelu": flat}, target, rival)["gelu"]
    logits = model(x).detach().double()
    rows, head = torch.arange(N), model.parts.head
    bias = head.bias.detach().double()
    weight = head.weight.detach().double()
    expected = logits[rows, target] - logits[rows, rival] - bias[target] + bias[rival]
    torch.testing.assert_close(u.sum(1), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(v, weight[target] - weight[rival])


@pytest.mark.parametrize(
    ("kind", "steps", "tolerance"), [("convolutions", 64, 0.01), ("tokens", 16, 0.001)]
)
def test_path_is_complete(kind: str, steps: int, tolerance: float) -> None:
    build, shape = NETS[kind]
    model = build().eval()
    x, target, rival = data(shape)
    names = [name for name, _ in model.parts.named_children()]
    layers = {
        n: m for n, m in model.parts.named_children() if next(m.parameters(), None) is not None
    }
    found = attribute(lambda: model(x), layers, target, rival, method="path", path_steps=steps)

    def margin(logits: Tensor) -> Tensor:
        rows = torch.arange(N)
        return (logits[rows, target] - logits[rows, rival]).detach().double()

    for name in layers:
        cut = names.index(name) + 1
        with torch.no_grad():
            at_zero = margin(model.parts[cut:](torch.zeros_like(model.parts[:cut](x))))
        expected = margin(model(x)) - at_zero
        error = (found[name][0].sum(1) - expected).abs().max() / expected.abs().max()
        assert error < tolerance, name


def test_path_keeps_the_rival_of_the_unchanged_model() -> None:
    # At the actual activations the next best class is 1; at half of them it would be 2.
    model = Net(a=nn.Identity(), h=nn.Linear(1, 3)).eval()
    with torch.no_grad():
        model.parts.h.weight.copy_(torch.tensor([[5.0], [2.0], [0.0]]))
        model.parts.h.bias.copy_(torch.tensor([0.0, 0.0, 1.5]))
    x = torch.ones(1, 1)
    layers = {"a": model.parts.a}
    found = attribute(lambda: model(x), layers, torch.tensor([0]), method="path")
    torch.testing.assert_close(found["a"][0], torch.tensor([[3.0]], dtype=torch.float64))


def test_equals_captum() -> None:
    captum = pytest.importorskip("captum.attr")
    model, (x, target, rival) = conv_net(inplace=False), data((2, 7, 7))
    found = attribute(lambda: model(x), choose_layers(model), target, rival)

    def margin(x: Tensor) -> Tensor:
        rows, logits = torch.arange(N), model(x)
        return logits[rows, target] - logits[rows, rival]

    for name, layer in choose_layers(model).items():
        theirs = captum.LayerGradientXActivation(margin, layer).attribute(x).detach()
        theirs = theirs.flatten(2).sum(2) if theirs.ndim > 2 else theirs
        torch.testing.assert_close(found[name][0], theirs.double(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rival", [None, [-1] * N, "target"])
def test_without_an_answer_the_next_best_class_is_the_rival(rival: object) -> None:
    model, (x, target, _) = conv_net(), data((2, 7, 7))
    given = None if rival is None else target if rival == "target" else torch.tensor(rival)
    logits = model(x).detach()
    best = torch.tensor(
        [
            max((c for c in range(C) if c != t), key=lambda c: row[c])
            for row, t in zip(logits, target, strict=True)
        ]
    )
    found = attribute(lambda: model(x), choose_layers(model), target, given)
    expected = attribute(lambda: model(x), choose_layers(model), target, best)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("squeeze", [False, True])
def test_one_logit_is_that_of_class_one(squeeze: bool) -> None:
    head = nn.Linear(4, 1)
    layer = nn.Linear(2, 4)
    x, target = torch.randn(N, 2), torch.arange(N) % 2

    def forward() -> Tensor:
        logit = head(layer(x))
        return logit[:, 0] if squeeze else logit

    _, v = attribute(forward, {"layer": layer}, target)["layer"]
    sign = (2 * target - 1)[:, None]
    torch.testing.assert_close(v, (sign * head.weight.detach()).double())
